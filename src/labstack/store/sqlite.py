"""Connections to SQLite: how they are set up, how their transactions begin, and the loss of their file.

A file that is moved, deleted or replaced while it is in use is noticed: a connection to the lost file is closed, and
a write to it does not count as written.
"""

import math
import os
import time
from typing import Any

from sqlalchemy import Connection, Dialect, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.engine.url import URL
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry

from labstack import sqlite_files
from labstack.errors import LabError

READ_SECONDS = 20.0  # of one query
PROGRESS_STEPS = 100_000  # of SQLite's virtual machine, about a millisecond, between two checks of the deadline


class DatabaseError(LabError):
    """The database cannot be used; the text says which one and why."""


def engine_for(url: URL, busy_seconds: float, durable: bool) -> Engine:
    """Return an engine for a file or for memory. Raises DatabaseError."""
    engine = create_engine(url, connect_args={"timeout": busy_seconds})
    try:
        sqlite_files.prepare(url)
    except OSError as error:
        raise DatabaseError(f"The database {url.database} cannot be made: {error.strerror}.") from error
    if url.database:
        event.listen(engine, "do_connect", _require_file)
        event.listen(engine, "connect", _remember_file)
        event.listen(engine, "checkout", _require_same_file)
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    event.listen(engine, "before_cursor_execute", _begin_statement)
    if durable:
        event.listen(engine, "connect", _wait_for_disk)
    return engine


def _require_file(_dialect: Dialect, _record: ConnectionPoolEntry, args: Any, _keywords: Any) -> None:
    """Raise DatabaseError if the file is gone: SQLite would make an empty one, while others still use the lost file."""
    if not os.path.exists(args[0]):
        raise DatabaseError(
            f"The database {args[0]} is gone: it was moved or deleted while the lab uses it. Put it back; to begin "
            "with an empty one, stop the lab and start it again."
        )


def _remember_file(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    path = cursor.execute("PRAGMA database_list").fetchone()[2]
    cursor.close()
    record.info["file"] = path, _file_number(path)


def _require_same_file(_connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: object) -> None:
    """Have the pool close a connection whose file is no longer at its path, and make another one."""
    path, number = record.info["file"]
    if _file_number(path) != number:
        raise DisconnectionError


def require_in_place(connection_info: dict[Any, Any]) -> None:
    """Raise DatabaseError if the file of a connection is no longer at its path."""
    path, number = connection_info.get("file", (None, None))
    if path is not None and _file_number(path) != number:
        raise DatabaseError(f"The database {path} was moved, deleted or replaced while it was written.")


def _file_number(path: str) -> tuple[int, int] | None:
    """Return the device and inode of the file at a path, unique while it is open; None if it cannot be reached."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


class _Deadline:
    """The time, of the monotonic clock, at which SQLite aborts the current statement."""

    at = math.inf


def _prepare(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # transactions begin as `_begin` says
    deadline = record.info["deadline"] = _Deadline()
    connection.set_progress_handler(lambda: time.monotonic() > deadline.at, PROGRESS_STEPS)
    write_ahead(connection, record)
    _set(connection, "foreign_keys = ON")


def write_ahead(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    """Set up a new connection so that readers never wait for the writer."""
    _set(connection, "journal_mode = WAL", "synchronous = NORMAL")


def _wait_for_disk(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    _set(connection, "synchronous = FULL")


def _set(connection: DBAPIConnection, *pragmas: str) -> None:
    cursor = connection.cursor()
    for pragma in pragmas:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if _writes(connection) else "BEGIN")


def _begin_statement(
    connection: Connection, _cursor: object, _statement: str, _parameters: object, _context: object, _many: bool
) -> None:
    connection.info["deadline"].at = math.inf if _writes(connection) else time.monotonic() + READ_SECONDS


def _writes(connection: Connection) -> bool:
    return bool(connection.get_execution_options().get("writes", False))
