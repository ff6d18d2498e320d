"""The audit: one row for every move of a role."""

from datetime import UTC, datetime

from sqlalchemy import Engine, select
from sqlalchemy.orm import Mapped, mapped_column

from labstack.store.database import Table, UtcDateTime, reading


class RoleMove(Table):
    """A role of a model went from one version to another; None stands for no version."""

    __tablename__ = "role_moves"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=lambda: datetime.now(UTC))
    model: Mapped[str] = mapped_column(index=True)
    role: Mapped[str]
    from_version: Mapped[int | None]
    to_version: Mapped[int | None]
    actor: Mapped[str]
    reason: Mapped[str]


def history(engine: Engine, model: str | None = None) -> list[RoleMove]:
    """The moves of one model's roles, or of all models', newest first."""
    query = select(RoleMove).order_by(RoleMove.id.desc())
    if model is not None:
        query = query.where(RoleMove.model == model)
    with reading(engine) as session:
        return list(session.scalars(query))
