"""The audit: one row for every move of a role, every reload, and everything that was refused."""

from datetime import UTC, datetime
from typing import Any, Literal

import structlog
from sqlalchemy import JSON, Engine, select
from sqlalchemy.orm import Mapped, mapped_column

from labstack.store.database import DatabaseError, Table, UtcDateTime, reading, writing

log = structlog.get_logger(__name__)

Action = Literal["move", "reload", "refused"]


class Entry(Table):
    """What was done, or refused, by whom and why.

    A move takes a role from one version to another; None stands for no version. `evidence` is what was judged by.
    """

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=lambda: datetime.now(UTC))
    action: Mapped[str] = mapped_column(default="move")
    model: Mapped[str | None] = mapped_column(index=True)
    role: Mapped[str | None]
    from_version: Mapped[int | None]
    to_version: Mapped[int | None]
    actor: Mapped[str]
    reason: Mapped[str]
    evidence: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


def history(
    engine: Engine,
    model: str | None = None,
    *,
    action: Action | None = None,
    limit: int | None = None,
    before: int | None = None,
) -> list[Entry]:
    """What happened to one model and to all of them, or to any model, newest first; of one kind, or of all.

    `limit` is the most entries, and `before` the id of one that all of them are older than.
    """
    query = select(Entry).order_by(Entry.id.desc()).limit(limit)
    if model is not None:
        query = query.where((Entry.model == model) | Entry.model.is_(None))
    if action is not None:
        query = query.where(Entry.action == action)
    if before is not None:
        query = query.where(Entry.id < before)
    with reading(engine) as session:
        return list(session.scalars(query))


def role_moves(engine: Engine, model: str | None = None) -> list[Entry]:
    """The moves of one model's roles, or of all models', newest first."""
    return history(engine, model, action="move")


def note(
    engine: Engine,
    action: Action,
    *,
    actor: str,
    reason: str,
    model: str | None = None,
    version: int | None = None,
    evidence: dict[str, Any] | None = None,
) -> None:
    """Add an entry that is no move; a database that is away is logged, as what was done or refused stands."""
    entry = Entry(action=action, model=model, to_version=version, actor=actor, reason=reason, evidence=evidence)
    try:
        with writing(engine) as session:
            session.add(entry)
    except DatabaseError as error:
        log.error("audit not written", action=action, reason=reason, error=str(error))
