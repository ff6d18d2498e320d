"""Datasets and their rows: the tables that pipelines learn from.

Rows are stored in chunks, and each column of a chunk by itself, so that a million rows are written and read in seconds.
Who writes: commands and services that load a file, and the API when rows are appended; each in one writing transaction.
"""

import csv
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import JSON, Engine, ForeignKey, LargeBinary, func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

from labstack.settings import ROOT
from labstack.store import csv_files
from labstack.store.database import Base, UtcDateTime, reading, writing
from labstack.store.rows import EXACT, Array, Column, DatasetError, Rows, join

BUNDLED = ROOT / "db" / "datasets"
CHUNK_ROWS = 65_536
SMALL_ROWS = 512  # a last chunk with fewer rows is merged with the next rows that are appended
TEXT = f"text of at most {csv.field_size_limit():,} characters"  # the limit of CSV files
MAX_FAULTS = 100


class UnknownDatasetError(DatasetError):
    """There is no dataset of that name; the text lists the names that exist."""


class RowsError(DatasetError):
    """Rows do not fit a dataset: `faults` is a list of (field, message), at most a hundred."""

    def __init__(self, text: str, faults: list[tuple[str, str]]) -> None:
        super().__init__(f"{text}: {' '.join(faults[0])}.")
        self.faults = faults


class Dataset(Base):
    __tablename__ = "datasets"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    description: Mapped[str]
    columns: Mapped[list[dict[str, str]]] = mapped_column(JSON)  # [{"name": ..., "type": "number" | "text"}], in order
    source_sha256: Mapped[str]
    loaded_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Chunk(Base):
    """Some consecutive rows of a dataset."""

    __tablename__ = "dataset_chunks"

    id: Mapped[int] = mapped_column(primary_key=True)
    dataset_id: Mapped[int] = mapped_column(ForeignKey("datasets.id"), index=True)
    rows: Mapped[int]
    added_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Cells(Base):
    """A column of a chunk: numbers as little-endian float64, NaN for a missing one; text as a list in JSON."""

    __tablename__ = "dataset_cells"

    chunk_id: Mapped[int] = mapped_column(ForeignKey("dataset_chunks.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[bytes] = mapped_column(LargeBinary)


@dataclass(frozen=True)
class Summary:
    name: str
    description: str
    columns: tuple[Column, ...]
    rows: int
    changed_at: datetime


def load_csv(engine: Engine, path: Path, name: str, append: bool = False) -> int:
    """Load a CSV file as a new dataset, or append it to one with the same columns. Return the number of rows loaded.

    Leading lines that start with `#` are the dataset's description.

    Raises DatasetError for a file that is no table, for a new dataset whose name is in use, and for unknown ones.
    """
    known = summary(engine, name).columns if append else ()
    file = csv_files.read(path, CHUNK_ROWS, {column.name for column in known if column.type == "text"})
    chunks = file.chunks
    now, sha256 = datetime.now(UTC), _sha256(path)  # hashed before other writers have to wait
    try:
        with writing(engine) as session:
            if append:
                dataset = _require(session, name)
                chunks = [_arrange(chunk, dataset, path) for chunk in chunks]
            elif _find(session, name) is None:
                dataset = _new(name, file, sha256, now)
                session.add(dataset)
                session.flush()
            else:
                raise _in_use(name)
            for chunk in chunks:
                _add(session, dataset, chunk, now)
    except IntegrityError as error:  # on PostgreSQL two processes may make one dataset at once
        raise _in_use(name) from error
    return sum(map(len, chunks))


def _new(name: str, file: csv_files.CsvFile, sha256: str, now: datetime) -> Dataset:
    return Dataset(
        name=name,
        description=file.description,
        columns=[{"name": column.name, "type": column.type} for column in file.chunks[0].columns],
        source_sha256=sha256,
        loaded_at=now,
    )


def _in_use(name: str) -> DatasetError:
    return DatasetError(f"There is a dataset {name!r} already; append to it, or choose another name.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_csv(path: Path) -> Rows:
    """Return the rows of a CSV file, typed as those of a dataset. Raises DatasetError."""
    chunks = csv_files.read(path, CHUNK_ROWS).chunks
    return join(chunks[0].columns, [chunk.cells for chunk in chunks])


def load_bundled(engine: Engine) -> list[tuple[str, int]]:
    """Load every CSV file of db/datasets that is not loaded yet. Return the name and the number of rows of each."""
    loaded = []
    for path in sorted(BUNDLED.glob("*.csv")):
        if not _exists(engine, path.stem):
            try:
                load_csv(engine, path, path.stem)
            except DatasetError:
                if not _exists(engine, path.stem):  # else another process has loaded it meanwhile
                    raise
        loaded.append((path.stem, summary(engine, path.stem).rows))
    return loaded


def _exists(engine: Engine, name: str) -> bool:
    with reading(engine) as session:
        return _find(session, name) is not None


def append(engine: Engine, name: str, records: Sequence[Mapping[str, Any]]) -> int:
    """Append rows with a value for each column, None for a missing one. Return the dataset's number of rows.

    Raises UnknownDatasetError; or RowsError, which lists every error, if nothing was appended.
    """
    with writing(engine) as session:
        dataset = _require(session, name)
        columns = _columns(dataset)
        faults = list(islice(_faults(records, columns), MAX_FAULTS))
        if faults:
            raise RowsError(f"Dataset {name!r} takes no such rows", faults)
        arrays: tuple[Array, ...] = tuple(
            np.array([_normalized(record[column.name]) for record in records], column.dtype) for column in columns
        )
        _add(session, dataset, Rows(columns, arrays), datetime.now(UTC))
        return _count(session, dataset)


def read(engine: Engine, name: str, offset: int = 0, limit: int | None = None) -> Rows:
    """Return the rows of a dataset from `offset` on, at most `limit`. Raises UnknownDatasetError."""
    end = math.inf if limit is None else offset + limit
    with reading(engine) as session:
        dataset = _require(session, name)
        columns = _columns(dataset)
        parts: list[tuple[Array, ...]] = []
        first = 0  # the number of the chunk's first row
        for chunk, rows in session.execute(_chunks(dataset)).all():
            start, stop = max(offset - first, 0), min(end - first, rows)
            if start < stop:
                parts.append(tuple(array[start : int(stop)] for array in _load(session, chunk, columns)))
            first += rows
        return join(columns, parts)


def summaries(engine: Engine) -> list[Summary]:
    """Return the summaries of all datasets, by name."""
    with reading(engine) as session:
        return [_summary(session, dataset) for dataset in session.scalars(select(Dataset).order_by(Dataset.name))]


def summary(engine: Engine, name: str) -> Summary:
    """Return the summary of one dataset, without reading its rows. Raises UnknownDatasetError."""
    with reading(engine) as session:
        return _summary(session, _require(session, name))


def csv_lines(engine: Engine, name: str) -> Iterator[str]:
    """Return a dataset as the lines of a CSV file. Raises UnknownDatasetError.

    The description is left out, because other programs would take its first line for the header.
    """
    known = summary(engine, name)
    parts = (read(engine, name, start, CHUNK_ROWS).cells for start in range(0, known.rows, CHUNK_ROWS))
    return csv_files.lines(known.columns, parts)


def _find(session: Session, name: str) -> Dataset | None:
    return session.scalars(select(Dataset).where(Dataset.name == name)).one_or_none()


def _require(session: Session, name: str) -> Dataset:
    dataset = _find(session, name)
    if dataset is None:
        names = ", ".join(session.scalars(select(Dataset.name).order_by(Dataset.name))) or "none"
        raise UnknownDatasetError(f"There is no dataset {name!r} in the database; there are: {names}.")
    return dataset


def _columns(dataset: Dataset) -> tuple[Column, ...]:
    return tuple(Column(column["name"], column["type"]) for column in dataset.columns)  # type: ignore[arg-type]


def _chunks(dataset: Dataset) -> Any:
    return select(Chunk.id, Chunk.rows).where(Chunk.dataset_id == dataset.id).order_by(Chunk.id)


def _count(session: Session, dataset: Dataset) -> int:
    query = select(func.coalesce(func.sum(Chunk.rows), 0)).where(Chunk.dataset_id == dataset.id)
    return int(session.scalars(query).one())


def _summary(session: Session, dataset: Dataset) -> Summary:
    changed = session.scalars(select(func.max(Chunk.added_at)).where(Chunk.dataset_id == dataset.id)).one()
    count = _count(session, dataset)
    return Summary(dataset.name, dataset.description, _columns(dataset), count, changed or dataset.loaded_at)


def _add(session: Session, dataset: Dataset, rows: Rows, now: datetime) -> None:
    """Write rows as a chunk, merged with the last one if that is small."""
    session.refresh(dataset, with_for_update=True)  # on PostgreSQL, where two transactions may write at a time
    last = session.execute(_chunks(dataset).order_by(None).order_by(Chunk.id.desc()).limit(1)).first()
    if last is not None and last.rows < SMALL_ROWS:
        before = _load(session, last.id, rows.columns)
        rows = Rows(rows.columns, tuple(np.concatenate(pair) for pair in zip(before, rows.cells, strict=True)))
        for table, key in ((Cells, Cells.chunk_id), (Chunk, Chunk.id)):
            session.query(table).where(key == last.id).delete()
    chunk = Chunk(dataset_id=dataset.id, rows=len(rows), added_at=now)
    session.add(chunk)
    session.flush()
    session.execute(
        insert(Cells),
        [
            {"chunk_id": chunk.id, "position": position, "data": _bytes(array)}
            for position, array in enumerate(rows.cells)
        ],
    )


def _load(session: Session, chunk: int, columns: Sequence[Column]) -> list[Array]:
    stored = session.scalars(select(Cells.data).where(Cells.chunk_id == chunk).order_by(Cells.position))
    return [
        np.frombuffer(data, "<f8") if column.type == "number" else np.array(json.loads(data), object)
        for data, column in zip(stored, columns, strict=True)
    ]


def _bytes(array: Array) -> bytes:
    return json.dumps(array.tolist()).encode() if array.dtype == object else array.astype("<f8").tobytes()


def _arrange(rows: Rows, dataset: Dataset, path: Path) -> Rows:
    """Return rows of a file in the order of the dataset's columns. Raises DatasetError if they do not fit."""
    cells = dict(zip(rows.columns, rows.cells, strict=True))
    columns = _columns(dataset)
    arrays = []
    for column in columns:
        number = Column(column.name, "number")
        if column.type == "text" and number in cells and np.isnan(cells[number]).all():
            cells[column] = np.full(len(rows), None, object)  # all missing: neither numbers nor text
        if column not in cells:
            raise DatasetError(f"{path}: dataset {dataset.name!r} needs a column {column.name!r} of {column.type}s.")
        arrays.append(cells[column])
    if len(rows.columns) > len(columns):
        known = {column.name for column in columns}
        unknown = ", ".join(column.name for column in rows.columns if column.name not in known)
        raise DatasetError(f"{path}: dataset {dataset.name!r} has no column {unknown}.")
    return Rows(columns, tuple(arrays))


def _faults(records: Iterable[Mapping[str, Any]], columns: Sequence[Column]) -> Iterator[tuple[str, str]]:
    """Yield the errors in rows that are to be appended: field and message."""
    names = {column.name for column in columns}
    for number, record in enumerate(records):
        for column in columns:
            value = record.get(column.name, ...)
            if value is ...:
                yield f"[{number}].{column.name}", "is not there; null stands for a missing value"
            elif value is not None and not _fits(value, column):
                expected = "finite number that is kept exactly" if column.type == "number" else TEXT
                yield f"[{number}].{column.name}", f"is no {expected}"
        for name in record:
            if name not in names:
                yield f"[{number}].{name}", "is not a column of this dataset"


def _normalized(value: Any) -> Any:
    """Return a cell as a CSV file would give it: empty text is a missing value, and lines end with a newline alone."""
    return value.replace("\r\n", "\n").replace("\r", "\n") or None if isinstance(value, str) else value


def _fits(value: object, column: Column) -> bool:
    if column.type == "text":
        return isinstance(value, str) and len(value) <= csv.field_size_limit() and _is_encodable(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= EXACT
    return isinstance(value, float) and math.isfinite(value)


def _is_encodable(text: str) -> bool:
    """Return whether a text can be written to a file; half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
