"""The engine, its transactions and its migrations.

Who writes: training, the operators' commands, and the API's workers, which keep what they predicted. One transaction
writes at a time: on SQLite it takes the database's write lock from its first statement (BEGIN IMMEDIATE), on PostgreSQL
an advisory lock. So two writers queue instead of failing half-way; readers see the last commit and never wait. Moves of
roles, which wait for the registry too, queue for a lock of their own, and hold up no writer.

Every wait has a deadline: for a connection, for a lock, and for an answer. An SQLite file that is moved, deleted or
replaced while it is in use is noticed, and nothing that was written to the lost one counts as written.
"""

import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import alembic.command
import alembic.config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, DateTime, Dialect, Engine, TypeDecorator, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.pool import ConnectionPoolEntry

from labstack import locks, sqlite_files
from labstack.errors import LabError
from labstack.settings import ROOT

MIGRATIONS = ROOT / "db" / "migrations"
BUSY_TIMEOUT_SECONDS = 20.0
CONNECT_SECONDS = 3  # to a server that does not answer
READ_SECONDS = 20.0  # of one query on SQLite
PROGRESS_STEPS = 100_000  # of SQLite's virtual machine, about a millisecond, between two looks at the clock
ADVISORY_LOCK = 1_279_345_996  # any two numbers that no other program takes for its own
MOVES_LOCK = ADVISORY_LOCK + 1


class DatabaseError(LabError):
    """The database cannot be used; the text says which and why."""


class Table(DeclarativeBase):
    pass


class UtcDateTime(TypeDecorator[datetime]):
    """A moment with its zone, UTC, also from SQLite, which keeps none."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


def connect(url: str, busy_seconds: float = BUSY_TIMEOUT_SECONDS, durable: bool = False) -> Engine:
    """An engine for `url`, which waits for another writer no longer than `busy_seconds`, for a server little longer.

    A commit of a `durable` one outlives a loss of power too. Raises DatabaseError for a URL that names no database we
    can open.
    """
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "postgresql":
            timeouts = {"lock_timeout": busy_seconds, "statement_timeout": busy_seconds + 0.5}
            engine = create_engine(
                parsed.set(drivername="postgresql+psycopg"),
                connect_args={
                    "options": " ".join(f"-c {name}={1000 * seconds:.0f}" for name, seconds in timeouts.items()),
                    "connect_timeout": CONNECT_SECONDS,
                    "tcp_user_timeout": 1000 * math.ceil(busy_seconds),  # of a network that swallows everything
                },
                pool_pre_ping=True,
            )
            event.listen(engine, "do_connect", partial(_connect_bounded, busy_seconds + 1))
            return engine
        if parsed.get_backend_name() != "sqlite":
            raise DatabaseError(f"LAB_DATABASE_URL is of {parsed.drivername}; SQLite and PostgreSQL are known.")
        engine = create_engine(parsed, connect_args={"timeout": busy_seconds})
    except (ArgumentError, ImportError, ValueError) as error:
        raise DatabaseError(f"LAB_DATABASE_URL is not usable: {error}") from error
    try:
        sqlite_files.prepare(parsed)
    except OSError as error:
        raise DatabaseError(f"The database {parsed.database} cannot be made: {error.strerror}.") from error
    if parsed.database:
        event.listen(engine, "do_connect", _require_file)
        event.listen(engine, "connect", _remember_file)
        event.listen(engine, "checkout", _require_same_file)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    event.listen(engine, "before_cursor_execute", _begin_statement)
    if durable:
        event.listen(engine, "connect", _wait_for_disk)
    return engine


def _connect_bounded(
    silence_seconds: float, _dialect: Dialect, _record: ConnectionPoolEntry, args: Any, keywords: Any
) -> DBAPIConnection:
    from labstack.store.postgresql import BoundedConnection  # only now, as not every environment has the driver

    connection = BoundedConnection.connect(*args, **keywords)
    connection.silence_seconds = silence_seconds
    return connection  # type: ignore[return-value]  # which it is


def _require_file(_dialect: Dialect, _record: ConnectionPoolEntry, args: Any, _keywords: Any) -> None:
    """Raise DatabaseError where the file is gone: SQLite would make an empty one, while others go on with the lost."""
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
    """Have a connection to a file that is not at its path any more closed, and another one made."""
    path, number = record.info["file"]
    if _file_number(path) != number:
        raise DisconnectionError


def _file_number(path: str) -> tuple[int, int] | None:
    """What identifies the file at a path as long as it is open; None where none can be reached."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class _Deadline:
    """The moment, of the monotonic clock, at which SQLite is to give up the statement that it executes."""

    at = math.inf


def _begin_statement(
    connection: Connection, _cursor: object, _statement: str, _parameters: object, _context: object, _many: bool
) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.info["deadline"].at = math.inf if writes else time.monotonic() + READ_SECONDS


def _prepare_sqlite(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # transactions begin as _begin_sqlite says
    deadline = record.info["deadline"] = _Deadline()
    connection.set_progress_handler(lambda: time.monotonic() > deadline.at, PROGRESS_STEPS)
    write_ahead(connection, record)
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def write_ahead(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    """Have readers of an SQLite database never wait for its writer, on a connection that was just made."""
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _wait_for_disk(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def writing(on: Engine | Connection) -> Iterator[Session]:
    """A session in one writing transaction: committed at the end, rolled back on an exception.

    Raises DatabaseError when it could not be committed, and when it was to a file that was moved, deleted or replaced.
    """
    with _usable(on.engine), Session(on.execution_options(writes=True)) as session:
        with session.begin():
            connection = session.connection()
            file = connection.info.get("file")
            _lock(connection)  # now, before anything is read
            yield session
            _require_in_place(file)
        _require_in_place(file)


def _require_in_place(file: tuple[str, tuple[int, int]] | None) -> None:
    if file is not None and _file_number(file[0]) != file[1]:
        raise DatabaseError(f"The database {file[0]} was moved, deleted or replaced while it was written.")


def _lock(connection: Connection) -> None:
    """Take the lock of writers, if the transaction's begin did not."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})")


@contextmanager
def moving(engine: Engine, seconds: float = BUSY_TIMEOUT_SECONDS) -> Iterator[Connection]:
    """Hold the lock of moves of roles, of all processes and replicas; the connection to write them on.

    A server gives up the lock with the connection, which then writes no more. Raises DatabaseError when the lock is not
    to be had within the seconds.
    """
    with _usable(engine), engine.connect() as connection, ExitStack() as lock:
        connection.detach()  # closed at the end, and the lock with it
        try:
            if connection.dialect.name == "postgresql":
                locks.wait_for(lambda: _moves_locked(connection), seconds)
            else:
                lock.enter_context(locks.exclusive(locks.moves_file(str(engine.url.database)), seconds))
        except TimeoutError as error:
            text = f"Another move of a role has been under way for {seconds:g} seconds; try again when it has ended."
            raise DatabaseError(text) from error
        except OSError as error:
            raise DatabaseError(f"The lock of moves cannot be taken: {error}.") from error
        yield connection


def _moves_locked(connection: Connection) -> bool:
    taken = connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({MOVES_LOCK})").scalar()
    connection.commit()  # the lock is of the session
    return bool(taken)


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """A session that sees one consistent state of the database."""
    with _usable(engine), Session(engine) as session:
        yield session


def migrate(engine: Engine, revision: str = "head") -> None:
    """Bring the database to a revision. Several processes may call it at once: one does the work.

    Raises DatabaseError when the database cannot be opened or written, as all that follows here does.
    """
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    try:
        with (
            _usable(engine),
            engine.connect() as connection,
        ):  # most often there is nothing to do, nor a lock to wait for
            newest = ScriptDirectory.from_config(config).get_current_head()
            if revision == "head" and MigrationContext.configure(connection).get_current_revision() == newest:
                return
        with _usable(engine), engine.execution_options(writes=True).begin() as connection:
            _lock(connection)
            _lift_deadlines(connection)
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, revision)
    except CommandError as error:
        raise DatabaseError(f"The database {engine.url!r} was made by a newer Labstack than this: {error}.") from error


def _lift_deadlines(connection: Connection) -> None:
    """Let the statements of a migration, which may rewrite tables, take as long as they need."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        connection.connection.driver_connection.silence_seconds = math.inf  # type: ignore[union-attr]
        connection.detach()


@contextmanager
def _usable(engine: Engine) -> Iterator[None]:
    """Turn a database that is locked, full, read-only or no database into DatabaseError."""
    try:
        yield
    except DBAPIError as error:
        if isinstance(error, IntegrityError):
            raise
        raise DatabaseError(f"The database {engine.url!r} cannot be used: {error.orig}.") from error
    except PoolTimeoutError as error:
        raise DatabaseError(f"The database {engine.url!r} is too busy: no connection became free.") from error
