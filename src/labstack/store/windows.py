"""Windows: what each worker counted of each version in a period, as numbers and never as rows.

Who writes: each worker its own windows, again and again while their period lasts. The controller merges old ones.
"""

from collections.abc import Callable, Sequence

from sqlalchemy import Double, Engine, Index, Text, delete, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from labstack.store.database import Table, reading

MERGED = ""  # the writer of what was merged


class Window(Table):
    """What one writer counted of a version, in a role, in the period that began at `started`, in seconds since 1970.

    `trial` names the step of a canary that was tried beside it; it is empty when there was none. `source` is where the
    version's files are, as the number of one that was deleted may be used again by another registry.
    """

    __tablename__ = "windows"
    __table_args__ = (Index("ix_windows_model", "model", "started"),)

    writer: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    role: Mapped[str] = mapped_column(primary_key=True)
    trial: Mapped[str] = mapped_column(primary_key=True)
    source: Mapped[str] = mapped_column(primary_key=True)
    started: Mapped[float] = mapped_column(Double, primary_key=True)
    counts: Mapped[str] = mapped_column(Text)


def put(session: Session, windows: Sequence[Window]) -> None:
    """Write windows, each in the place of what its writer wrote of it before."""
    for window in windows:
        session.merge(window)


def since(engine: Engine, model: str, moment: float) -> list[Window]:
    """A model's windows that began at a moment or later, oldest first."""
    query = select(Window).where(Window.model == model, Window.started >= moment).order_by(Window.started)
    with reading(engine) as session:
        return list(session.scalars(query))


def of_trial(engine: Engine, model: str, trial: str) -> list[Window]:
    """A model's windows of one trial, oldest first."""
    query = select(Window).where(Window.model == model, Window.trial == trial).order_by(Window.started)
    with reading(engine) as session:
        return list(session.scalars(query))


def merge(session: Session, before: float, seconds: float, add: Callable[[str, str], str]) -> int:
    """Merge what all writers counted in periods that began before a moment, into longer ones; how many windows went.

    `add` makes one text of counts of two.
    """
    ended = session.scalars(select(Window).where(Window.started < before, Window.writer != MERGED)).all()
    for window in ended:
        names = ("model", "version", "role", "trial", "source")
        key = {name: getattr(window, name) for name in names}
        key |= {"writer": MERGED, "started": window.started // seconds * seconds}
        merged = session.get(Window, key)
        if merged is not None:
            merged.counts = add(merged.counts, window.counts)
        else:
            session.add(Window(**key, counts=window.counts))
            session.flush()
        session.delete(window)
    return len(ended)


def remove(session: Session, before: float) -> None:
    """Remove windows that began before a moment."""
    session.execute(delete(Window).where(Window.started < before))
