"""Reading rows from a dataset of the store, a CSV or Parquet file, or an SQL query that can only read."""

import os
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from sqlalchemy import URL, Engine, create_engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from labstack import settings
from labstack.store import datasets
from labstack.store.rows import EXACT
from labstack.training.config import Data, Sql
from labstack.training.table import DataError

DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306}


def read(engine: Engine, source: Data) -> pd.DataFrame:
    """Read all rows. Each column is float64, or text and None as objects, or datetimes.

    Raises DatasetError when the dataset does not exist, DataError when the source cannot be read.
    """
    if source.dataset is not None or source.csv is not None:
        rows = datasets.read_csv(source.csv) if source.csv else datasets.read(engine, str(source.dataset))
        names = [column.name for column in rows.columns]
        return pd.DataFrame(dict(zip(names, rows.cells, strict=True)), copy=False)
    try:
        frame = _read_sql(engine, source.sql) if source.sql else _read_parquet(Path(str(source.parquet)))
    except DataError:
        raise
    except Exception as error:  # drivers and readers fail in many ways
        reason = getattr(error, "orig", None) or error
        raise DataError(f"{source.title} cannot be read: {' '.join(str(reason).split())}") from error
    frame = frame.reset_index(drop=list(frame.index.names) == [None])  # a named index is a column that was stored
    if not frame.columns.is_unique:
        duplicates = frame.columns[frame.columns.duplicated()].unique()
        raise DataError(f"Column names must be unique; these occur twice: {', '.join(map(str, duplicates))}.")
    return pd.DataFrame({str(name): _convert(frame[name]) for name in frame})


def _read_parquet(path: Path) -> pd.DataFrame:
    """Read a file, or a folder of files. Raises DataError for a pipe or a device, which might never end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DataError(f"{path} is neither a file nor a folder.")
    return pd.read_parquet(str(path))


def _read_sql(engine: Engine, sql: Sql) -> pd.DataFrame:
    """Run a query that cannot write. Raises DataError, also when the database is one of the lab's own."""
    try:
        url = _expand(make_url(sql.url))
        _require_foreign(engine, url)
        source = _read_only_engine(url)
    except ImportError as error:
        raise DataError(f"data.sql.url: the driver of this database is not installed: {error}") from error
    except (SQLAlchemyError, ValueError):  # its text may contain a part of the password
        raise DataError("data.sql.url: this is no URL of a database, such as sqlite:///path/to/file.db") from None
    try:
        with source.connect() as connection:
            if url.get_backend_name() == "sqlite":
                cast(sqlite3.Connection, connection.connection.driver_connection).set_authorizer(_authorize_reading)
            return pd.read_sql_query(text(sql.query), connection)
    finally:
        source.dispose()


def _expand(url: URL) -> URL:
    """Replace `$NAME` in the parts of a URL by variables of the environment."""
    parts = ("username", "password", "host", "database")
    return url.set(**{part: os.path.expandvars(value) for part in parts if (value := getattr(url, part))})


def _read_only_engine(url: URL) -> Engine:
    if url.get_backend_name() == "sqlite":
        return create_engine("sqlite://", creator=partial(_open_sqlite, url.database))
    # a prepared query is a single statement, so that it cannot end the read-only transaction
    options = {"connect_args": {"prepare_threshold": 0}} if url.drivername == "postgresql+psycopg" else {}
    engine = create_engine(url, **options)
    return engine.execution_options(postgresql_readonly=True) if url.get_backend_name() == "postgresql" else engine


def _require_foreign(engine: Engine, url: URL) -> None:
    """Raise DataError when a URL names one of the lab's own databases."""
    lab = settings.load()
    own_urls = {
        "LAB_DATABASE_URL": engine.url,
        "MLFLOW_BACKEND_STORE_URI": make_url(lab.mlflow_backend_store_uri),
        "SEARCH_DATABASE_URL": make_url(lab.search_database_url),
    }
    for name, own_url in own_urls.items():
        if _identity(url) is not None and _identity(url) == _identity(own_url):
            raise DataError(
                f"data.sql.url: this is the lab's own database ({name}), whose tables are not training data; "
                "name a dataset of the lab with data.dataset."
            )


def _identity(url: URL) -> tuple[object, ...] | None:
    """A value that all URLs of one database share; None for a database in memory, and a file that does not exist."""
    if url.get_backend_name() != "sqlite":
        host = url.host or url.query.get("host") or "localhost"
        host = "localhost" if host in settings.LOOPBACK or str(host).startswith("/") else str(host).lower()
        port = url.port or DEFAULT_PORTS.get(url.get_backend_name())
        return url.get_backend_name(), host, port, url.database or url.username
    try:
        status = os.stat(url.database or "")
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _open_sqlite(database: str | None) -> sqlite3.Connection:
    """Open an SQLite file for reading, or an empty database in memory."""
    if database in (None, "", ":memory:"):
        return sqlite3.connect(":memory:")
    path = Path(str(database)).absolute()
    if not path.is_file():
        raise DataError(f"data.sql.url: there is no file {path}.")
    return sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)


def _authorize_reading(action: int, _first: str | None, function: str | None, *_context: str | None) -> int:
    """Allow SQLite to select, and nothing that writes or opens another file."""
    reads = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)
    allowed = action in reads and (action != sqlite3.SQLITE_FUNCTION or function != "load_extension")
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _convert(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Convert a column of any type to numbers, text or datetimes."""
    if pd.api.types.is_datetime64_any_dtype(column):
        return column
    if pd.api.types.is_integer_dtype(column) and (column.abs() > EXACT).any():
        return _to_text(column)  # these numbers are names, and float64 would merge some of them
    if pd.api.types.is_numeric_dtype(column):  # booleans too, as 0 and 1
        return column.astype("Float64").astype(np.float64) if column.hasnans else column.astype(np.float64)
    present = column.notna()
    if not any(isinstance(cell, str) for cell in column[present]):
        try:
            return pd.Series(np.array(column.where(present), np.float64))  # decimals
        except (TypeError, ValueError):
            pass
    return _to_text(column)


def _to_text(column: "pd.Series[Any]") -> "pd.Series[Any]":
    cells = [str(cell) if present else None for cell, present in zip(column, column.notna(), strict=True)]
    return pd.Series(np.array(cells, object))
