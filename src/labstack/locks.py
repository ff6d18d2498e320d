"""Locks between processes, with a timeout; a lock ends with the process that holds it."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PAUSE_SECONDS = 0.05


def wait_for(take: Callable[[], bool], seconds: float) -> None:
    """Call `take` until it returns true. Raises TimeoutError after so many seconds."""
    deadline = time.monotonic() + seconds
    while not take():
        if time.monotonic() >= deadline:
            raise TimeoutError
        time.sleep(PAUSE_SECONDS)


@contextmanager
def exclusive(path: Path, seconds: float) -> Iterator[None]:
    """Hold the lock of a file, which is made if it is missing. Raises TimeoutError or another OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)  # another user's may be read-only
    try:
        wait_for(lambda: _locked(descriptor), seconds)
        yield
    finally:
        os.close(descriptor)


def moves_file(database: str | Path) -> Path:
    """The file that a move of a role locks, for a database that is an SQLite file."""
    return Path(f"{database}-moves")


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
