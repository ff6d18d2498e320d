"""Leases: they choose one of several processes, also on other machines, for work that only one may do."""

import time

from sqlalchemy import Double, Engine
from sqlalchemy.orm import Mapped, mapped_column

from labstack.store.database import Base, writing


class Lease(Base):
    """The holder of a lease, until a time in seconds since 1970."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    until: Mapped[float] = mapped_column(Double)


def take(engine: Engine, name: str, holder: str, seconds: float) -> bool:
    """Take a free or expired lease, or extend the holder's own, for so long from now. Return whether it was taken.

    The clocks of machines that share the database must differ by less than these seconds. Raises DatabaseError.
    """
    now = time.time()
    with writing(engine) as session:
        lease = session.get(Lease, name)
        if lease is not None and lease.holder != holder and lease.until > now:
            return False
        session.merge(Lease(name=name, holder=holder, until=now + seconds))
        return True


def release(engine: Engine, name: str, holder: str) -> None:
    """End a lease now if it is the holder's, so that another process can take it."""
    with writing(engine) as session:
        lease = session.get(Lease, name)
        if lease is not None and lease.holder == holder:
            session.delete(lease)
