"""The engine, its transactions and its migrations.

Who writes: training, the operators' commands, and the API's workers, which keep what they predicted. One transaction
writes at a time: on SQLite it takes the database's write lock with its first statement (BEGIN IMMEDIATE), on PostgreSQL
an advisory lock. So a second writer waits instead of failing half-way; readers see the last commit and never wait.
Moves of roles, which also wait for the registry, have a lock of their own and delay no other writer.

Every wait has a deadline: for a connection, for a lock, and for an answer.
"""

import math
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
from sqlalchemy.engine.url import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.pool import ConnectionPoolEntry

from labstack import locks
from labstack.settings import ROOT
from labstack.store import sqlite
from labstack.store.sqlite import DatabaseError

__all__ = ["Base", "DatabaseError", "UtcDateTime", "connect", "migrate", "moving", "reading", "writing"]

MIGRATIONS = ROOT / "db" / "migrations"
BUSY_TIMEOUT_SECONDS = 20.0
CONNECT_SECONDS = 3  # to a server that does not answer
ADVISORY_LOCK = 1_279_345_996  # any two numbers that no other program uses
MOVES_LOCK = ADVISORY_LOCK + 1


class Base(DeclarativeBase):
    pass


class UtcDateTime(TypeDecorator[datetime]):
    """A time with its zone, UTC, also from SQLite, which stores none."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


def connect(url: str, busy_seconds: float = BUSY_TIMEOUT_SECONDS, durable: bool = False) -> Engine:
    """Return an engine, which waits at most `busy_seconds` for another writer, and a little longer for a server.

    A commit of a `durable` engine survives a loss of power too. Raises DatabaseError for a URL that cannot be opened.
    """
    try:
        parsed = make_url(url)
        match parsed.get_backend_name():
            case "postgresql":
                return _connect_postgresql(parsed, busy_seconds)
            case "sqlite":
                return sqlite.engine_for(parsed, busy_seconds, durable)
        raise DatabaseError(f"LAB_DATABASE_URL is of {parsed.drivername}; SQLite and PostgreSQL are known.")
    except (ArgumentError, ImportError, ValueError) as error:
        raise DatabaseError(f"LAB_DATABASE_URL is not usable: {error}") from error


def _connect_postgresql(url: URL, busy_seconds: float) -> Engine:
    timeouts = {"lock_timeout": busy_seconds, "statement_timeout": busy_seconds + 0.5}
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        connect_args={
            "options": " ".join(f"-c {name}={1000 * seconds:.0f}" for name, seconds in timeouts.items()),
            "connect_timeout": CONNECT_SECONDS,
            "tcp_user_timeout": 1000 * math.ceil(busy_seconds),  # for a network that drops all packets
        },
        pool_pre_ping=True,
    )
    event.listen(engine, "do_connect", partial(_connect_bounded, busy_seconds + 1))
    return engine


def _connect_bounded(
    silence_seconds: float, _dialect: Dialect, _record: ConnectionPoolEntry, args: Any, keywords: Any
) -> DBAPIConnection:
    from labstack.store.postgresql import BoundedConnection  # imported here, as not every environment has the driver

    connection = BoundedConnection.connect(*args, **keywords)
    connection.silence_seconds = silence_seconds
    return connection  # type: ignore[return-value]  # it is a connection of the DB-API


@contextmanager
def writing(on: Engine | Connection) -> Iterator[Session]:
    """A session in one writing transaction: committed at the end, rolled back on an exception.

    Raises DatabaseError if the commit failed, or if the database's file was moved, deleted or replaced.
    """
    with _usable(on.engine), Session(on.execution_options(writes=True)) as session:
        with session.begin():
            connection = session.connection()
            info = dict(connection.info)
            _lock(connection)  # before anything is read
            yield session
            sqlite.require_in_place(info)
        sqlite.require_in_place(info)


def _lock(connection: Connection) -> None:
    """Take the lock of writers, unless the begin of the transaction took it."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})")


@contextmanager
def moving(engine: Engine, seconds: float = BUSY_TIMEOUT_SECONDS) -> Iterator[Connection]:
    """Hold the lock of role moves, of all processes and replicas; the connection is the one to write the moves on.

    A server releases the lock with the connection, which then can write no more. Raises DatabaseError if the lock
    cannot be taken in time.
    """
    with _usable(engine), engine.connect() as connection, ExitStack() as lock:
        connection.detach()  # closed at the end, and the lock with it
        try:
            if connection.dialect.name == "postgresql":
                locks.wait_for(lambda: _try_moves_lock(connection), seconds)
            else:
                lock.enter_context(locks.exclusive(locks.moves_file(str(engine.url.database)), seconds))
        except TimeoutError as error:
            text = f"Another move of a role has been under way for {seconds:g} seconds; try again when it has ended."
            raise DatabaseError(text) from error
        except OSError as error:
            raise DatabaseError(f"The lock of moves cannot be taken: {error}.") from error
        yield connection


def _try_moves_lock(connection: Connection) -> bool:
    is_taken = connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({MOVES_LOCK})").scalar()
    connection.commit()  # the lock belongs to the session
    return bool(is_taken)


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """A session that sees one consistent state of the database."""
    with _usable(engine), Session(engine) as session:
        yield session


def migrate(engine: Engine, revision: str = "head") -> None:
    """Bring the database to a revision. Several processes may call it at once: one of them does the work.

    Raises DatabaseError if the database cannot be opened or written.
    """
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    try:
        if revision == "head" and _is_newest(engine, config):
            return
        with _usable(engine), engine.execution_options(writes=True).begin() as connection:
            _lock(connection)
            _lift_deadlines(connection)
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, revision)
    except CommandError as error:
        raise DatabaseError(f"The database {engine.url!r} was made by a newer Labstack than this: {error}.") from error


def _is_newest(engine: Engine, config: alembic.config.Config) -> bool:
    """Return whether all migrations are done, without waiting for a lock."""
    with _usable(engine), engine.connect() as connection:
        newest = ScriptDirectory.from_config(config).get_current_head()
        return MigrationContext.configure(connection).get_current_revision() == newest


def _lift_deadlines(connection: Connection) -> None:
    """Let the statements of a migration, which may rewrite tables, take as long as they need."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        connection.connection.driver_connection.silence_seconds = math.inf  # type: ignore[union-attr]
        connection.detach()


@contextmanager
def _usable(engine: Engine) -> Iterator[None]:
    """Turn the driver's errors, as of a locked, full, read-only or damaged database, into DatabaseError."""
    try:
        yield
    except DBAPIError as error:
        if isinstance(error, IntegrityError):
            raise
        raise DatabaseError(f"The database {engine.url!r} cannot be used: {error.orig}.") from error
    except PoolTimeoutError as error:
        raise DatabaseError(f"The database {engine.url!r} is too busy: no connection became free.") from error
