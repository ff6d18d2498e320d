"""From rows, wherever they lie, to a table that can be learnt from, or everything that keeps it from being one."""

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import balanced_accuracy_score, r2_score
from sklearn.model_selection import (
    GroupKFold,
    GroupShuffleSplit,
    KFold,
    StratifiedKFold,
    TimeSeriesSplit,
    train_test_split,
)
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from sqlalchemy import URL, Engine, create_engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from labstack import settings
from labstack.errors import LabError
from labstack.model.contract import LARGEST, Matrix
from labstack.store import datasets
from labstack.store.rows import EXACT
from labstack.training import filters
from labstack.training.config import Data, Pipeline, Sql

MAX_CATEGORIES = 1000
ENCODED_BYTES = 2 << 30  # at most, of all rows with their categories one-hot
LEAK_ROWS = 5000  # that are looked at for a leak
Indices = npt.NDArray[np.intp]


class DataError(LabError):
    """The rows cannot be learnt from; the text says why, every reason."""


@dataclass(frozen=True)
class Column:
    """A feature: a number or, when it has categories, one of these."""

    name: str
    categories: tuple[str, ...]
    missing: bool


@dataclass(frozen=True)
class Table:
    """Rows with their target, split.

    `frame` holds the features as people know them, float64 and text columns, numbers first; `matrix`, of shape (rows,
    features), as a contract does: a category is its place among all, a missing value NaN. `target` is of labels
    (text) or float64. `others` are the columns that are no features. `train` and `test` are places of rows.
    """

    columns: tuple[Column, ...]
    frame: pd.DataFrame
    matrix: Matrix
    target: npt.NDArray[Any]
    others: pd.DataFrame
    train: Indices
    test: Indices
    digest: str
    warnings: tuple[str, ...]

    def column(self, name: str) -> "pd.Series[Any]":
        """A column of the rows, whether it is a feature or not."""
        return self.frame[name] if name in self.frame else self.others[name]


def load(engine: Engine, pipeline: Pipeline) -> Table:
    """The pipeline's rows, checked and split with its seed.

    Raises DatasetError when the dataset does not exist, DataError when it cannot be learnt from.
    """
    rows = _read(engine, pipeline)
    warnings: list[str] = []
    rows, names = _chosen(rows, pipeline, warnings)
    target = _target(rows[pipeline.data.target], pipeline)
    names = _checked(rows, names, pipeline, warnings)
    numbers = [name for name in names if rows[name].dtype != object]
    columns = tuple(_column(rows[name]) for name in [*numbers, *(name for name in names if name not in numbers)])
    frame = rows[[column.name for column in columns]]
    matrix = _coded(frame, columns)
    others = rows.drop(columns=[*frame.columns, pipeline.data.target])
    for wish in pipeline.gates.expectations:
        if wish.class_ is not None and wish.class_ not in set(target):
            there = ", ".join(sorted(set(target))[:10])
            raise DataError(f"gates.expectations: the target has no class {wish.class_!r}; it has: {there}.")
    train, test = _split(pipeline, rows, target)
    warnings += _doubts(columns, matrix, target, train, test, pipeline)
    used = [name for name in (pipeline.split.column, *(one.column for one in pipeline.gates.slices)) if name in others]
    digest = _digest(frame.join(others[used]) if used else frame, target)
    return Table(columns, frame, matrix, target, others, train, test, digest, tuple(warnings))


def folds(pipeline: Pipeline, table: Table) -> list[tuple[Indices, Indices]]:
    """The cross-validation of the training rows: for each fold the places, among them, to learn from and to judge by.

    Raises DataError when there are too few rows.
    """
    count, seed = pipeline.search.folds, pipeline.split.seed
    target = table.target[table.train]
    groups = None
    if pipeline.split_by == "time":  # the training rows are in order
        splitter: Any = TimeSeriesSplit(count)
    elif pipeline.split_by == "group":
        splitter, groups = GroupKFold(count), table.column(pipeline.split.column or "").iloc[table.train]
    elif pipeline.split_by == "stratified":
        splitter = StratifiedKFold(count, shuffle=True, random_state=seed)
        fewest = np.unique(target, return_counts=True)[1].min()
        if fewest < count:
            raise DataError(f"A class has {fewest} training rows, too few for search.folds: {count}.")
    else:
        splitter = KFold(count, shuffle=True, random_state=seed)
    try:
        return list(splitter.split(target, target, groups))
    except ValueError as error:
        raise DataError(f"There are too few rows for search.folds: {count}: {error}") from error


def _read(engine: Engine, pipeline: Pipeline) -> pd.DataFrame:
    """All rows, each column float64, or objects of text and None, or moments."""
    source = pipeline.data
    if source.dataset is not None or source.csv is not None:
        rows = datasets.read_csv(source.csv) if source.csv else datasets.read(engine, str(source.dataset))
        names = [column.name for column in rows.columns]
        return pd.DataFrame(dict(zip(names, rows.cells, strict=True)), copy=False)
    try:
        found = _query(engine, source.sql) if source.sql else _parquet(Path(str(source.parquet)))
    except DataError:
        raise
    except Exception as error:  # drivers and readers fail in many ways
        reason = getattr(error, "orig", None) or error
        raise DataError(f"{_capital(source)} cannot be read: {' '.join(str(reason).split())}") from error
    found = found.reset_index(drop=list(found.index.names) == [None])  # a named one is a column that somebody meant
    if not found.columns.is_unique:
        double = found.columns[found.columns.duplicated()].unique()
        raise DataError(f"Every column needs a name of its own; these come twice: {', '.join(map(str, double))}.")
    return pd.DataFrame({str(name): _typed(found[name]) for name in found})


def _parquet(path: Path) -> pd.DataFrame:
    """The rows of a file, or of a folder of files. Raises DataError where reading might never end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DataError(f"{path} is neither a file nor a folder.")
    return pd.read_parquet(str(path))


def _query(engine: Engine, sql: Sql) -> pd.DataFrame:
    """The rows of a query that can change nothing. Raises DataError, also for a database of the lab itself."""
    try:
        given = make_url(sql.url)
        parts = ("username", "password", "host", "database")
        known = {part: os.path.expandvars(value) for part in parts if (value := getattr(given, part))}
        url = given.set(**known)
        _require_foreign(engine, url)
        if url.get_backend_name() == "sqlite":
            source = create_engine("sqlite://", creator=partial(_open_sqlite, url.database))
        elif url.drivername == "postgresql+psycopg":  # prepared, what is sent is one statement and ends no transaction
            source = create_engine(url, connect_args={"prepare_threshold": 0})
        else:
            source = create_engine(url)
    except ImportError as error:
        raise DataError(f"data.sql.url: the driver of this database is not installed: {error}") from error
    except (SQLAlchemyError, ValueError):  # whose text may hold a part of a password
        raise DataError("data.sql.url: this is no URL of a database, such as sqlite:///path/to/file.db") from None
    if url.get_backend_name() == "postgresql":
        source = source.execution_options(postgresql_readonly=True)
    try:
        with source.connect() as connection:
            if url.get_backend_name() == "sqlite":
                cast(sqlite3.Connection, connection.connection.driver_connection).set_authorizer(_only_reading)
            return pd.read_sql_query(text(sql.query), connection)
    finally:
        source.dispose()


def _require_foreign(engine: Engine, url: URL) -> None:
    """Raise DataError when a URL names one of the lab's own databases."""
    lab = settings.load()
    own = {
        "LAB_DATABASE_URL": engine.url,
        "MLFLOW_BACKEND_STORE_URI": make_url(lab.mlflow_backend_store_uri),
        "SEARCH_DATABASE_URL": make_url(lab.search_database_url),
    }
    for name, other in own.items():
        if _place(url) is not None and _place(url) == _place(other):
            raise DataError(
                f"data.sql.url: this is the lab's own database ({name}), whose tables are not training data; "
                "name a dataset of the lab with data.dataset."
            )


def _place(url: URL) -> tuple[object, ...] | None:
    """What two URLs of one database have in common; None for one in memory, or a file that is not there."""
    if url.get_backend_name() != "sqlite":
        host = url.host or url.query.get("host") or "localhost"
        host = "localhost" if host in settings.LOOPBACK or str(host).startswith("/") else str(host).lower()
        port = url.port or {"postgresql": 5432, "mysql": 3306}.get(url.get_backend_name())
        return url.get_backend_name(), host, port, url.database or url.username
    try:
        found = os.stat(url.database or "")
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _open_sqlite(database: str | None) -> sqlite3.Connection:
    """A connection that reads an SQLite file, or an empty database in memory."""
    if database in (None, "", ":memory:"):
        return sqlite3.connect(":memory:")
    path = Path(str(database)).absolute()
    if not path.is_file():
        raise DataError(f"data.sql.url: there is no file {path}.")
    return sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)


def _only_reading(action: int, _first: str | None, function: str | None, *_place: str | None) -> int:
    """Whether SQLite may do what a query asks for: selecting, and nothing that writes or opens another file."""
    reads = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)
    allowed = action in reads and (action != sqlite3.SQLITE_FUNCTION or function != "load_extension")
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _typed(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """A column of whatever type as numbers, text or moments."""
    if pd.api.types.is_datetime64_any_dtype(column):
        return column
    if pd.api.types.is_integer_dtype(column) and (column.abs() > EXACT).any():
        return _text(column)  # numbers that are names: float64 would mix them up
    if pd.api.types.is_numeric_dtype(column):  # booleans too, as 0 and 1
        return column.astype("Float64").astype(np.float64) if column.hasnans else column.astype(np.float64)
    there = column.notna()
    if not any(isinstance(cell, str) for cell in column[there]):
        try:
            return pd.Series(np.array(column.where(there), np.float64))  # decimals
        except (TypeError, ValueError):
            pass
    return _text(column)


def _text(column: "pd.Series[Any]") -> "pd.Series[Any]":
    cells = [str(cell) if known else None for cell, known in zip(column, column.notna(), strict=True)]
    return pd.Series(np.array(cells, object))


def _chosen(rows: pd.DataFrame, pipeline: Pipeline, warnings: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """The rows that are meant, and the names of the features. Raises DataError."""
    data, gates = pipeline.data, pipeline.gates
    named = {
        "data.target": [data.target],
        "data.features": data.features or (),
        "data.drop": data.drop,
        "split.column": [pipeline.split.column] if pipeline.split.column else [],
        "gates.slices": [one.column for one in gates.slices],
    }
    for place, names in named.items():
        if unknown := [name for name in names if name not in rows]:
            there = ", ".join(map(str, rows))
            raise DataError(
                f"{place}: {_capital(data)} has no column {', '.join(map(repr, unknown))}; it has: {there}."
            )
    if data.target in (pipeline.split.column, *(one.column for one in gates.slices)):
        raise DataError(f"The target {data.target!r} can neither split the rows nor slice them.")
    if data.filter is not None:
        try:
            rows = rows[filters.parse(data.filter)(rows)]
        except (filters.FilterError, TypeError) as error:  # moments with and without a time zone
            raise DataError(f"data.filter: {error}") from error
    features = list(data.features or (str(name) for name in rows if name not in (data.target, pipeline.split.column)))
    features = [name for name in features if name not in data.drop]
    if not features:
        raise DataError(f"{_capital(data)} has no column besides the target that could be a feature.")
    for expectation in gates.expectations:
        if expectation.feature not in features:
            raise DataError(f"gates.expectations: {expectation.feature!r} is no feature: {', '.join(features)}.")
    empty = rows[features].isna().all(axis=1)
    unknown_target = rows[data.target].isna()
    for count, what in ((empty.sum(), "no feature"), ((unknown_target & ~empty).sum(), "no target")):
        if count:
            warnings.append(f"{count:,} rows have {what}, and are left out")
    rows = rows[~(empty | unknown_target)].reset_index(drop=True)
    if pipeline.split.by == "time":
        rows[pipeline.split.column] = _moments(rows[pipeline.split.column])
        rows = rows.sort_values(str(pipeline.split.column), kind="stable", ignore_index=True)
    if pipeline.split.column and rows[pipeline.split.column].isna().any():
        raise DataError(f"split.column: {pipeline.split.column!r} has missing values.")
    if rows.empty:
        raise DataError(f"{_capital(data)} has no rows to learn from.")
    return rows, features


def _moments(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """What rows are ordered by: numbers or moments. Raises DataError for other text than dates of ISO 8601."""
    if column.dtype != object:
        return column
    found = pd.to_datetime(column, format="ISO8601", errors="coerce", utc=True)
    strange = column[found.isna() & column.notna()]
    if len(strange):
        raise DataError(f"split.column: {column.name!r} holds {strange.iloc[0]!r}, which is no date as 2026-01-31 is.")
    return found


def _checked(rows: pd.DataFrame, names: list[str], pipeline: Pipeline, warnings: list[str]) -> list[str]:
    """The features that can teach something. Raises DataError that names all that cannot be features."""
    faults, kept = [], []
    for name in names:
        column = rows[name]
        known = column.dropna()
        if pd.api.types.is_datetime64_any_dtype(column):
            faults.append(f"{name!r} holds moments; drop it, or make numbers of it")
        elif column.nunique() < 2 and not (known.size and column.isna().any()):
            what = f"is {_label(known.iloc[0])} in every row" if known.size else "has no values"
            warnings.append(f"{name!r} {what}, teaches nothing, and is left out")
        elif column.dtype == object:
            faults += _text_faults(known)
            kept.append(name)
        else:
            if (known.abs() > LARGEST).any():
                faults.append(f"{name!r} holds numbers beyond {LARGEST:g}, which no prediction takes")
            if len(known) > 10 and known.nunique() == len(known) == np.ptp(known) + 1:
                warnings.append(f"{name!r} counts the rows and looks like an id; data.drop leaves it out")
            kept.append(name)
    if faults:
        raise DataError(f"{_capital(pipeline.data)} cannot be learnt from: {'; '.join(faults)}.")
    for wish in pipeline.gates.expectations:
        if wish.feature not in kept:
            raise DataError(f"gates.expectations: {wish.feature!r} teaches nothing, and is no feature.")
    width = sum(rows[name].nunique() for name in kept if rows[name].dtype == object)
    if pipeline.preprocessing.encode == "one_hot" and width * len(rows) * 8 > ENCODED_BYTES:
        raise DataError(
            f"{width:,} categories in {len(rows):,} rows are too many to be one-hot encoded; say preprocessing.encode: "
            "ordinal, or leave columns out with data.drop."
        )
    if not kept:
        raise DataError(f"{_capital(pipeline.data)} has no feature that teaches anything: {'; '.join(warnings)}.")
    return kept


def _text_faults(known: "pd.Series[Any]") -> Iterator[str]:
    """What keeps a column of text from being a category."""
    name, different = known.name, known.nunique()
    numbers = pd.to_numeric(known, errors="coerce")
    if 0.8 <= numbers.notna().mean() < 1:
        strange = ", ".join(map(repr, known[numbers.isna()].unique()[:3]))
        yield f"{name!r} holds numbers, but for {numbers.isna().sum():,} cells such as {strange}"
    elif different == len(known) > 10 or different > max(0.9 * len(known), 50):
        yield f"{name!r} is another text in nearly every row, as an id is; leave it out with data.drop"
    elif different > MAX_CATEGORIES:
        yield f"{name!r} has {different:,} categories, more than {MAX_CATEGORIES:,}; leave it out with data.drop"


def _target(column: "pd.Series[Any]", pipeline: Pipeline) -> npt.NDArray[Any]:
    if pipeline.task == "regression":
        if column.dtype != np.float64:
            raise DataError(f"The target {column.name!r} holds text; a regression needs numbers.")
        if not np.isfinite(column).all():
            raise DataError(f"The target {column.name!r} holds infinite numbers.")
        if column.nunique() < 2:
            raise DataError(f"The target {column.name!r} is the same in every row.")
        return column.to_numpy(np.float64)
    values, places = np.unique(column.to_numpy(), return_inverse=True)
    if len(values) < 2:
        raise DataError(f"The target {column.name!r} has one class only.")
    if len(values) > 20 and len(values) > len(column) / 2:
        raise DataError(f"The target {column.name!r} has {len(values):,} classes in {len(column):,} rows.")
    return np.array([_label(value) for value in values])[places]


def _label(cell: str | float) -> str:
    """A class by its name; a whole number without its point."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _column(column: "pd.Series[Any]") -> Column:
    known = column.dropna()
    categories = tuple(sorted(known.unique())) if column.dtype == object else ()
    return Column(str(column.name), categories, len(known) < len(column))


def _coded(frame: pd.DataFrame, columns: tuple[Column, ...]) -> Matrix:
    matrix = np.empty((len(frame), len(columns)), order="F")
    for place, column in enumerate(columns):
        values = frame[column.name]
        if column.categories:
            codes = pd.Categorical(values, categories=column.categories).codes.astype(np.float64)
            matrix[:, place] = np.where(codes < 0, np.nan, codes)
        else:
            matrix[:, place] = values
    return matrix


def _split(pipeline: Pipeline, rows: pd.DataFrame, target: npt.NDArray[Any]) -> tuple[Indices, Indices]:
    """The places of the rows to learn from and of those held out. Raises DataError when there are too few."""
    places = np.arange(len(rows))
    share, seed = pipeline.split.test_fraction, pipeline.split.seed
    try:
        if pipeline.split_by == "time":
            first = round(len(rows) * (1 - share))
            train, test = places[:first], places[first:]
        elif pipeline.split_by == "group":
            splitter = GroupShuffleSplit(1, test_size=share, random_state=seed)
            train, test = next(splitter.split(places, groups=rows[pipeline.split.column]))
        else:
            stratify = target if pipeline.split_by == "stratified" else None
            train, test = train_test_split(places, test_size=share, random_state=seed, stratify=stratify)
    except ValueError as error:
        raise DataError(f"{_capital(pipeline.data)} is too small to be split: {error}") from error
    if len(train) < 2 or len(test) < 1:
        raise DataError(f"{_capital(pipeline.data)} is too small to be split: {len(rows)} rows.")
    if pipeline.task == "classification" and (lost := set(target) - set(target[train])):
        raise DataError(f"No training row is of class {', '.join(sorted(lost))}; split otherwise.")
    return train, test


def _doubts(
    columns: tuple[Column, ...],
    matrix: Matrix,
    target: npt.NDArray[Any],
    train: Indices,
    test: Indices,
    pipeline: Pipeline,
) -> Iterator[str]:
    """What does not stop a training, and yet people should know of their table."""
    seen: dict[bytes, str] = {}
    sample = np.random.default_rng(0).permutation(train)[:LEAK_ROWS]
    for place, column in enumerate(columns):
        values = matrix[:, place]
        key = hashlib.sha256(values.tobytes()).digest()
        if key in seen and not column.categories:
            yield f"{column.name!r} equals {seen[key]!r} in every row"
        seen.setdefault(key, column.name)
        if column.categories:
            new = set(values[test]) - set(values[train])
            names = [column.categories[int(code)] for code in sorted(code for code in new if code == code)]
            if names:
                yield f"{column.name!r} has categories that only held-out rows hold: {', '.join(names[:5])}"
        if _tells(values[sample], target[sample], pipeline.task, bool(column.categories)):
            yield f"{column.name!r} alone tells the target: is it known before the prediction is made, or a leak?"


def _tells(values: Matrix, target: npt.NDArray[Any], task: str, is_category: bool) -> bool:
    """Whether one feature alone decides the target: a small tree of it makes no error, or nearly none."""
    if len(values) < 20 or len(np.unique(target)) < 2:
        return False
    if is_category:  # told by the most frequent class, or the mean, of each category
        if len(np.unique(values)) > len(values) / 10:
            return False
        groups = pd.Series(target).groupby(pd.Series(values).fillna(-1))
        told = groups.transform(lambda of: of.mode().iloc[0] if task == "classification" else of.mean()).to_numpy()
    elif task == "classification":
        leaves = len(np.unique(target))
        tree: Any = DecisionTreeClassifier(max_leaf_nodes=leaves, class_weight="balanced", random_state=0)
        told = tree.fit(values[:, None], target).predict(values[:, None])
    else:
        known = ~np.isnan(values)
        if known.sum() < 20 or np.ptp(values[known]) == 0 or np.ptp(target[known]) == 0:
            return False
        if abs(np.corrcoef(values[known], target[known])[0, 1]) > 0.9999:
            return True
        half = len(values) // 2
        tree = DecisionTreeRegressor(min_samples_leaf=5, random_state=0).fit(values[:half, None], target[:half])
        values, target = values[half:], target[half:]
        told = tree.predict(values[:, None])
    score = balanced_accuracy_score if task == "classification" else r2_score
    return bool(score(target, told) > 0.999)


def _digest(frame: pd.DataFrame, target: npt.NDArray[Any]) -> str:
    """A hash of what is learnt from: the features' names and cells, and the target."""
    found = hashlib.sha256(repr(list(frame)).encode())
    for name in frame:
        found.update(pd.util.hash_pandas_object(frame[name], index=False).to_numpy().tobytes())
    found.update(np.ascontiguousarray(target).tobytes())
    return found.hexdigest()


def _capital(data: Data) -> str:
    """The source, as a sentence begins with it."""
    said = str(data)
    return said if data.csv or data.parquet else said[0].upper() + said[1:]
