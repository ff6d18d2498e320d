"""The audit: one row for every move of a role, every reload, and every refusal.

Who writes: the moves of roles, each with its move; the API and commands for reloads and refusals.
"""

from datetime import UTC, datetime
from typing import Any, Literal

import structlog
from sqlalchemy import JSON, Engine, select
from sqlalchemy.orm import Mapped, mapped_column

from labstack.store.database import Base, DatabaseError, UtcDateTime, reading, writing

log = structlog.get_logger(__name__)

Action = Literal["move", "reload", "refused"]


class Entry(Base):
    """An action or a refusal, with its actor and reason.

    A move takes a role from one version to another; None stands for no version. `evidence` holds the numbers behind it.
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
    """Return the entries of one model, with those that concern all models, or of any model; newest first.

    `action` selects one kind, `limit` bounds their number, and all are older than the entry with the id `before`.
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
    """Return the moves of one model's roles, or of all models', newest first."""
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
    """Add an entry that is no move. If the database cannot be written, log that: the action itself stands."""
    entry = Entry(action=action, model=model, to_version=version, actor=actor, reason=reason, evidence=evidence)
    try:
        with writing(engine) as session:
            session.add(entry)
    except DatabaseError as error:
        log.error("audit not written", action=action, reason=reason, error=str(error))
