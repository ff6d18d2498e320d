"""Datasets and their rows: the tables that pipelines learn from.

Rows lie in chunks, and of each chunk every column lies by itself, so that a million rows go in and out in seconds.
Who writes: whoever loads a file, and the API when rows are appended; each in one writing transaction.
"""

import csv
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sqlalchemy import JSON, Engine, ForeignKey, LargeBinary, func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

from labstack.errors import LabError
from labstack.settings import ROOT
from labstack.store.database import Table, UtcDateTime, reading, writing

BUNDLED = ROOT / "db" / "datasets"
CHUNK_ROWS = 65_536
BATCH_ROWS = 512  # that are parsed at a time: more do not fit the processor's cache, and take twice as long
EXACT = 2**53  # beyond, float64 does not hold every whole number
NAMES = re.compile(r",\s*[-+]?0\d")  # a cell with a zero before it, as no number has
TEXT = f"text of at most {csv.field_size_limit():,} characters"  # as a CSV file may hold it
MAX_FAULTS = 100
SMALL_ROWS = 512  # a chunk of fewer takes the next rows that are appended

Array = npt.NDArray[Any]


class DatasetError(LabError):
    """A dataset cannot be read or loaded; the text says which, where and why."""


class UnknownDatasetError(DatasetError):
    """There is no dataset of that name; the text names those there are."""


class RowsError(DatasetError):
    """Rows that a dataset cannot take: `faults` is a list of (where, what is wrong), of the first hundred."""

    def __init__(self, text: str, faults: list[tuple[str, str]]) -> None:
        super().__init__(f"{text}: {' '.join(faults[0])}.")
        self.faults = faults


class Dataset(Table):
    __tablename__ = "datasets"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    description: Mapped[str]
    columns: Mapped[list[dict[str, str]]] = mapped_column(JSON)  # [{"name": ..., "type": "number" | "text"}], in order
    source_sha256: Mapped[str]
    loaded_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Chunk(Table):
    __tablename__ = "dataset_chunks"

    id: Mapped[int] = mapped_column(primary_key=True)
    dataset_id: Mapped[int] = mapped_column(ForeignKey("datasets.id"), index=True)
    rows: Mapped[int]
    added_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Cells(Table):
    """A column of a chunk: numbers as little-endian float64, NaN where one is missing; text as a list in JSON."""

    __tablename__ = "dataset_cells"

    chunk_id: Mapped[int] = mapped_column(ForeignKey("dataset_chunks.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[bytes] = mapped_column(LargeBinary)


@dataclass(frozen=True)
class Column:
    name: str
    type: Literal["number", "text"]


@dataclass(frozen=True)
class Rows:
    """Columns, and the cells of each, oldest first: float64 with NaN, or objects, text and None."""

    columns: tuple[Column, ...]
    cells: tuple[Array, ...]

    def __len__(self) -> int:
        return len(self.cells[0])

    def dicts(self) -> Iterator[dict[str, float | str | None]]:
        """The rows one by one, a missing value as None."""
        names = [column.name for column in self.columns]
        for row in zip(*map(_values, self.cells), strict=True):
            yield dict(zip(names, row, strict=True))


@dataclass(frozen=True)
class Summary:
    name: str
    description: str
    columns: tuple[Column, ...]
    rows: int
    changed_at: datetime


def load_csv(engine: Engine, path: Path, name: str, append: bool = False) -> int:
    """Load a CSV file as a new dataset, or append it to one with the same columns; how many rows were loaded.

    Leading lines that start with `#` are the dataset's description. A column is of numbers when all its cells
    that are not empty are finite numbers; an empty cell is a missing value.

    Raises DatasetError for a file that is no table, and where the dataset is there, or is not, against expectation.
    """
    known = summary(engine, name).columns if append else ()
    description, parts = _read_csv(path, {column.name for column in known if column.type == "text"})
    columns = parts[0].columns
    now = datetime.now(UTC)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        with writing(engine) as session:
            if append:
                dataset = _require(session, name)
                parts = [_arranged(part, dataset, str(path)) for part in parts]
            elif _find(session, name) is not None:
                raise DatasetError(f"There is a dataset {name!r} already; append to it, or take another name.")
            else:
                dataset = Dataset(
                    name=name,
                    description=description,
                    columns=[{"name": column.name, "type": column.type} for column in columns],
                    source_sha256=digest,
                    loaded_at=now,
                )
                session.add(dataset)
                session.flush()
            for part in parts:
                _add(session, dataset, part, now)
    except IntegrityError as error:  # on PostgreSQL two may make one dataset at once
        raise DatasetError(f"There is a dataset {name!r} already; append to it, or take another name.") from error
    return sum(map(len, parts))


def read_csv(path: Path) -> Rows:
    """The rows of a CSV file, typed as those of a dataset. Raises DatasetError."""
    _, parts = _read_csv(path)
    cells = zip(*(part.cells for part in parts), strict=True)
    return Rows(parts[0].columns, tuple(np.concatenate(column) for column in cells))


def load_bundled(engine: Engine) -> list[tuple[str, int]]:
    """Load every CSV file of db/datasets that is not loaded yet; name and rows of each."""
    found = []
    for path in sorted(BUNDLED.glob("*.csv")):
        with reading(engine) as session:
            there = _find(session, path.stem) is not None
        if not there:
            try:
                load_csv(engine, path, path.stem)
            except DatasetError:  # another process was quicker, or the file is at fault
                with reading(engine) as session:
                    if _find(session, path.stem) is None:
                        raise
        with reading(engine) as session:
            found.append((path.stem, _count(session, _require(session, path.stem))))
    return found


def append(engine: Engine, name: str, records: Sequence[Mapping[str, Any]]) -> int:
    """Append rows, each with all of the dataset's columns, None for a missing value; how many there are then.

    Raises UnknownDatasetError; and RowsError that names every fault, when nothing was appended.
    """
    with writing(engine) as session:
        dataset = _require(session, name)
        columns = _columns(dataset)
        faults = list(islice(_faults(records, columns), MAX_FAULTS))
        if faults:
            raise RowsError(f"Dataset {name!r} takes no such rows", faults)
        cells = ([_kept(record[column.name]) for record in records] for column in columns)
        arrays: tuple[Array, ...] = tuple(
            np.array(found, _dtype(column)) for found, column in zip(cells, columns, strict=True)
        )
        _add(session, dataset, Rows(columns, arrays), datetime.now(UTC))
        return _count(session, dataset)


def read(engine: Engine, name: str, offset: int = 0, limit: int | None = None) -> Rows:
    """The rows of a dataset from `offset` on, at most `limit`. Raises UnknownDatasetError."""
    with reading(engine) as session:
        dataset = _require(session, name)
        columns = _columns(dataset)
        end = math.inf if limit is None else offset + limit
        parts: list[list[Array]] = [[] for _ in columns]
        first = 0  # row of the chunk
        for chunk, rows in session.execute(_chunks(dataset)).all():
            start, stop = max(offset - first, 0), min(end - first, rows)
            if start < stop:
                for part, array in zip(parts, _load(session, chunk, columns), strict=True):
                    part.append(array[start : int(stop)])
            first += rows
        empty: list[Array] = [np.empty(0, _dtype(column)) for column in columns]
        return Rows(columns, tuple(np.concatenate([none, *part]) for none, part in zip(empty, parts, strict=True)))


def summaries(engine: Engine) -> list[Summary]:
    """What there is, by name."""
    with reading(engine) as session:
        return [_summary(session, dataset) for dataset in session.scalars(select(Dataset).order_by(Dataset.name))]


def summary(engine: Engine, name: str) -> Summary:
    """What is known of one dataset without reading its rows. Raises UnknownDatasetError."""
    with reading(engine) as session:
        return _summary(session, _require(session, name))


def csv_lines(engine: Engine, name: str) -> Iterator[str]:
    """A dataset as the lines of a CSV file that `load_csv` and other programs read. Raises UnknownDatasetError.

    The description is left out, because other programs would take its first line for the header. A header that begins
    with `#` or a byte order mark is quoted, so that they stay part of the name. The cells of a single text column are
    quoted, because other programs skip blank lines.
    """
    known = summary(engine, name)
    parts = (read(engine, name, start, CHUNK_ROWS).cells for start in range(0, known.rows, CHUNK_ROWS))
    names = [column.name for column in known.columns]
    is_lone_text = [column.type for column in known.columns] == ["text"]
    return chain(
        _csv([names], quoted=names[0].startswith(("#", "\ufeff"))),
        chain.from_iterable(
            _csv(zip(*(map(_written, _values(cells)) for cells in part), strict=True), is_lone_text) for part in parts
        ),
    )


class _Lines:
    """A file that returns each line that is written to it."""

    def write(self, line: str) -> str:
        return line.removesuffix("\r\n") + "\n"


def _csv(rows: Iterable[Iterable[object]], quoted: bool) -> Iterator[str]:
    # the writer quotes cells with a character of its line end; \r is in it, as readers take a lone \r for a line end
    quoting: Literal[0, 1] = csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL
    return map(csv.writer(_Lines(), lineterminator="\r\n", quoting=quoting).writerow, rows)


def _written(cell: float | str | None) -> str:
    """A cell as a file holds it; a whole number without its point."""
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < EXACT:
        return str(int(cell))
    return "" if cell is None else str(cell)


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
    """Write rows as a chunk, together with those of the last one when it is small."""
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
    found = session.scalars(select(Cells.data).where(Cells.chunk_id == chunk).order_by(Cells.position))
    return [
        np.frombuffer(data, "<f8") if column.type == "number" else np.array(json.loads(data), object)
        for data, column in zip(found, columns, strict=True)
    ]


def _bytes(array: Array) -> bytes:
    return json.dumps(array.tolist()).encode() if array.dtype == object else array.astype("<f8").tobytes()


def _dtype(column: Column) -> type:
    return float if column.type == "number" else object


def _values(array: Array) -> list[float | str | None]:
    return array.tolist() if array.dtype == object else [None if x != x else x for x in array.tolist()]


def _arranged(part: Rows, dataset: Dataset, path: str) -> Rows:
    """Rows of a file in the order of the dataset's columns. Raises DatasetError where they do not fit."""
    cells = dict(zip(part.columns, part.cells, strict=True))
    columns = _columns(dataset)
    arrays = []
    for column in columns:
        number = Column(column.name, "number")
        if column.type == "text" and number in cells and np.isnan(cells[number]).all():
            cells[column] = np.full(len(part), None, object)  # all missing: neither numbers nor text
        if column not in cells:
            raise DatasetError(f"{path}: dataset {dataset.name!r} needs a column {column.name!r} of {column.type}s.")
        arrays.append(cells[column])
    if len(part.columns) > len(columns):
        more = ", ".join({column.name for column in part.columns} - {column.name for column in columns})
        raise DatasetError(f"{path}: dataset {dataset.name!r} has no column {more}.")
    return Rows(columns, tuple(arrays))


def _faults(records: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> Iterator[tuple[str, str]]:
    """What is wrong with rows to be appended: where, and what."""
    names = {column.name for column in columns}
    for number, record in enumerate(records):
        for column in columns:
            value = record.get(column.name, ...)
            if value is ...:
                yield f"[{number}].{column.name}", "is not there; null stands for a missing value"
            elif value is not None and not _fits(value, column):
                wanted = "finite number that is kept exactly" if column.type == "number" else TEXT
                yield f"[{number}].{column.name}", f"is no {wanted}"
        for name in record.keys() - names:
            yield f"[{number}].{name}", "is not a column of this dataset"


def _kept(value: Any) -> Any:
    """A cell as a file would bring it: an empty text is a missing value, and lines end in one way."""
    return value.replace("\r\n", "\n").replace("\r", "\n") or None if isinstance(value, str) else value


def _fits(value: object, column: Column) -> bool:
    if column.type == "text":
        return isinstance(value, str) and len(value) <= csv.field_size_limit() and _is_whole(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= EXACT
    return isinstance(value, float) and math.isfinite(value)


def _is_whole(text: str) -> bool:
    """Whether all characters of a text can be written to a file, which half of one cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_csv(path: Path, names: AbstractSet[str] = frozenset()) -> tuple[str, list[Rows]]:
    """The description and the typed rows of a CSV file, in chunks; columns of these names are of text."""
    text: set[int] = set()  # the places of columns that are known to hold text
    if path.exists() and not path.is_file():
        raise DatasetError(f"{path} is not a regular file, and may never end. Name a CSV file.")
    try:
        while (found := _parse(path, text, names)) is None:
            pass  # what was taken for numbers in a first part of the file is text
        return found
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def _parse(path: Path, text: set[int], names: AbstractSet[str]) -> tuple[str, list[Rows]] | None:
    """Read a file once; columns that turn out to be of text are added to `text`. None when one did so late."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        comments: list[str] = []
        for line in file:
            if not line.startswith("#"):
                break
            comments.append(line.strip("# \r\n"))
        else:
            line = ""
        reader = csv.reader(chain([line], file), strict=True)
        batches: list[tuple[Array, ...]] = []
        size = min(BATCH_ROWS, CHUNK_ROWS)
        try:
            header = [name.strip() for name in next(reader, [])]
            if header and ("" in header or len(set(header)) < len(header)):
                raise DatasetError(f"{path}: every column needs a name of its own; the header is: {', '.join(header)}.")
            text |= {place for place, name in enumerate(header) if name in names}
            rows = filter(None, reader)  # an empty line is no row
            while batch := list(islice(rows, size)):
                if not {len(header)}.issuperset(map(len, batch)):
                    raise _ragged(path, len(comments), len(header))
                known = len(text)
                columns = enumerate(zip(*batch, strict=True))
                batches.append(tuple(_convert(cells, place, text) for place, cells in columns))
                if len(batches) > 1 and len(text) > known:
                    return None
        except csv.Error as error:
            raise DatasetError(f"{path}, line {len(comments) + reader.line_num}: {error}.") from error
    if not batches:
        raise DatasetError(f"{path}: a header line and at least one row are needed.")
    named = tuple(Column(name, "text" if place in text else "number") for place, name in enumerate(header))
    many = CHUNK_ROWS // size
    chunks = (batches[start : start + many] for start in range(0, len(batches), many))
    return " ".join(comments), [Rows(named, tuple(map(np.concatenate, zip(*part, strict=True)))) for part in chunks]


def _ragged(path: Path, comments: int, width: int) -> DatasetError:
    """What to say of a file whose rows are not all as wide as its header: where the first is."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(islice(file, comments, None), strict=True)
        row = next(row for row in reader if row and len(row) != width)
        return DatasetError(f"{path}, line {comments + reader.line_num}: {len(row)} cells under {width} columns.")


def _convert(cells: Sequence[str], place: int, text: set[int]) -> Array:
    """A column's cells as numbers, or as text, whose place is then added to `text`."""
    if place not in text:
        try:
            return _numbers(cells)
        except ValueError:
            text.add(place)
    return np.array([cell or None for cell in cells], object)


def _numbers(cells: Sequence[str]) -> npt.NDArray[np.float64]:
    """Finite numbers, NaN for an empty cell. Raises ValueError for text.

    Python's own `1_000`, `inf` and `nan` are text, and so is what a number would not give back: `007`, and whole
    numbers that float64 does not hold.
    """
    together = ",".join(("", *cells))
    if "_" in together or NAMES.search(together):
        raise ValueError(cells)
    try:
        numbers, missing = np.array(list(map(float, cells))), 0
    except ValueError:
        numbers = np.array([float(cell) if cell.strip() else math.nan for cell in cells])
        missing = sum(not cell.strip() for cell in cells)
    if np.isfinite(numbers).sum() + missing < len(cells):
        raise ValueError(cells)
    large = np.flatnonzero(np.abs(numbers) > EXACT).tolist()
    if any(cells[place].strip().lstrip("+-").isdecimal() for place in large):
        raise ValueError(cells)
    return numbers
