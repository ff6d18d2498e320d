"""The engine, its transactions and its migrations.

Who writes: training, the operators' commands, and the API's workers, which keep what they predicted. One transaction
writes at a time: on SQLite it takes the database's write lock from its first statement (BEGIN IMMEDIATE), on PostgreSQL
an advisory lock. So two writers queue instead of failing half-way; readers see the last commit and never wait.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import alembic.command
import alembic.config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, DateTime, Dialect, Engine, TypeDecorator, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.pool import ConnectionPoolEntry

from labstack import sqlite_files
from labstack.errors import LabError
from labstack.settings import ROOT

MIGRATIONS = ROOT / "db" / "migrations"
BUSY_TIMEOUT_SECONDS = 20.0
CONNECT_SECONDS = 3  # to a server that does not answer; whoever asks for metrics waits as long
ADVISORY_LOCK = 1_279_345_996  # any number that no other program takes for its own


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
    """An engine for `url`, which waits for another writer no longer than `busy_seconds`.

    A commit of a `durable` one outlives a loss of power too. Raises DatabaseError for a URL that names no database we
    can open.
    """
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "postgresql":
            options = f"-c lock_timeout={busy_seconds:g}s"
            return create_engine(
                parsed.set(drivername="postgresql+psycopg"),
                connect_args={
                    "options": options,
                    "connect_timeout": CONNECT_SECONDS,
                    "tcp_user_timeout": 1000 * math.ceil(busy_seconds),  # of a network that swallows everything
                },
                pool_pre_ping=True,
            )
        if parsed.get_backend_name() != "sqlite":
            raise DatabaseError(f"LAB_DATABASE_URL is of {parsed.drivername}; SQLite and PostgreSQL are known.")
        engine = create_engine(parsed, connect_args={"timeout": busy_seconds})
    except (ArgumentError, ImportError, ValueError) as error:
        raise DatabaseError(f"LAB_DATABASE_URL is not usable: {error}") from error
    try:
        sqlite_files.prepare(parsed)
    except OSError as error:
        raise DatabaseError(f"The database {parsed.database} cannot be made: {error.strerror}.") from error
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    if durable:
        event.listen(engine, "connect", _wait_for_disk)
    return engine


def _prepare_sqlite(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # transactions begin as _begin_sqlite says
    write_ahead(connection, _record)
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
def writing(engine: Engine) -> Iterator[Session]:
    """A session in one writing transaction: committed at the end, rolled back on an exception."""
    with _usable(engine), Session(engine.execution_options(writes=True)) as session, session.begin():
        _lock(session.connection())  # now, before anything is read
        yield session


def _lock(connection: Connection) -> None:
    """Take the lock of writers, if the transaction's begin did not."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})")


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
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, revision)
    except CommandError as error:
        raise DatabaseError(f"The database {engine.url!r} was made by a newer Labstack than this: {error}.") from error


@contextmanager
def _usable(engine: Engine) -> Iterator[None]:
    """Turn a database that is locked, full, read-only or no database into DatabaseError."""
    try:
        yield
    except DBAPIError as error:
        if isinstance(error, IntegrityError):
            raise
        raise DatabaseError(f"The database {engine.url!r} cannot be used: {error.orig}.") from error
