"""Windows: the counts of one worker and version in a period.

Who writes: each worker its own windows, repeatedly while their period lasts; the controller merges old ones.
"""

from collections.abc import Callable, Sequence

from sqlalchemy import Double, Engine, Index, Text, delete, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from labstack.store.database import Base, reading

MERGED = ""  # the writer of merged windows


class Window(Base):
    """The counts of one writer, version and role in the period that began at `started`, in seconds since 1970.

    `trial` names the step of a canary's trial; it is empty without a canary. `source` is where the version's files are,
    because another registry may reuse the number of a deleted version.
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
    """Write windows, each in the place of its former state."""
    for window in windows:
        session.merge(window)


def since(engine: Engine, model: str, moment: float) -> list[Window]:
    """Return a model's windows that began at a time or later, oldest first."""
    query = select(Window).where(Window.model == model, Window.started >= moment).order_by(Window.started)
    with reading(engine) as session:
        return list(session.scalars(query))


def of_trial(engine: Engine, model: str, trial: str) -> list[Window]:
    """Return a model's windows of one trial, oldest first."""
    query = select(Window).where(Window.model == model, Window.trial == trial).order_by(Window.started)
    with reading(engine) as session:
        return list(session.scalars(query))


def merge(session: Session, before: float, seconds: float, add: Callable[[str, str], str]) -> int:
    """Merge all writers' windows that began before a time into windows of so many seconds.

    Return how many were merged. `add` adds two texts of counts.
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
    """Remove windows that began before a time."""
    session.execute(delete(Window).where(Window.started < before))
