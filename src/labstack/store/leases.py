"""Leases: which of several processes, here or on other machines, does what only one should do."""

import time

from sqlalchemy import Double, Engine
from sqlalchemy.orm import Mapped, mapped_column

from labstack.store.database import Table, writing


class Lease(Table):
    """Who may do something, until a moment in seconds since 1970."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    until: Mapped[float] = mapped_column(Double)


def take(engine: Engine, name: str, holder: str, seconds: float) -> bool:
    """Take a lease that nobody holds, or keep one's own for so long from now; whether it is the holder's then.

    Clocks of machines that share the database must agree to within the seconds. Raises DatabaseError.
    """
    now = time.time()
    with writing(engine) as session:
        lease = session.get(Lease, name)
        if lease is not None and lease.holder != holder and lease.until > now:
            return False
        session.merge(Lease(name=name, holder=holder, until=now + seconds))
        return True


def release(engine: Engine, name: str, holder: str) -> None:
    """Let another one take a lease at once, if it is the holder's."""
    with writing(engine) as session:
        lease = session.get(Lease, name)
        if lease is not None and lease.holder == holder:
            session.delete(lease)
