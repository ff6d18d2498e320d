"""CSV files as rows of typed columns, and rows as the lines of a CSV file."""

import csv
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Literal

import numpy as np
import numpy.typing as npt

from labstack.store.rows import EXACT, Array, Column, DatasetError, Rows, values

BATCH_ROWS = 512  # parsed at a time; more do not fit the processor's cache, and take twice as long
LEADING_ZERO = re.compile(r",\s*[-+]?0\d")  # a cell that begins like 007, which a number would not preserve


@dataclass(frozen=True)
class CsvFile:
    """The contents of a CSV file: its leading comment lines, and its rows in chunks."""

    description: str
    chunks: list[Rows]


def read(path: Path, chunk_rows: int, text_columns: AbstractSet[str] = frozenset()) -> CsvFile:
    """Return a CSV file's contents; columns of these names are text in any case. Raises DatasetError.

    A column is numeric if all cells that are not empty are finite numbers; an empty cell is a missing value.
    """
    if path.exists() and not path.is_file():
        raise DatasetError(f"{path} is not a regular file, and may never end. Name a CSV file.")
    text: set[int] = set()  # the positions of columns that are known to be text
    try:
        while (contents := _parse(path, chunk_rows, text, text_columns)) is None:
            pass  # a column whose first rows looked like numbers is text
        return contents
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def _parse(path: Path, chunk_rows: int, text: set[int], text_columns: AbstractSet[str]) -> CsvFile | None:
    """Read a file once, and add the positions of text columns to `text`; None if one is added after the first batch."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        comments, first_line = _comments(file)
        reader = csv.reader(chain([first_line], file), strict=True)
        batch_rows = min(BATCH_ROWS, chunk_rows)
        batches: list[tuple[Array, ...]] = []
        try:
            header = _header(path, next(reader, []))
            text |= {position for position, name in enumerate(header) if name in text_columns}
            rows = filter(None, reader)  # an empty line is no row
            while batch := list(islice(rows, batch_rows)):
                if not {len(header)}.issuperset(map(len, batch)):
                    raise _ragged(path, len(comments), len(header))
                known = len(text)
                columns = enumerate(zip(*batch, strict=True))
                batches.append(tuple(_convert(cells, position, text) for position, cells in columns))
                if len(batches) > 1 and len(text) > known:
                    return None
        except csv.Error as error:
            raise DatasetError(f"{path}, line {len(comments) + reader.line_num}: {error}.") from error
    if not batches:
        raise DatasetError(f"{path}: a header line and at least one row are needed.")
    named = tuple(Column(name, "text" if position in text else "number") for position, name in enumerate(header))
    size = chunk_rows // batch_rows
    chunks = (batches[start : start + size] for start in range(0, len(batches), size))
    return CsvFile(
        " ".join(comments), [Rows(named, tuple(map(np.concatenate, zip(*chunk, strict=True)))) for chunk in chunks]
    )


def _comments(file: IO[str]) -> tuple[list[str], str]:
    """Return the leading lines that start with `#`, and the line after them."""
    comments: list[str] = []
    for line in file:
        if not line.startswith("#"):
            return comments, line
        comments.append(line.strip("# \r\n"))
    return comments, ""


def _header(path: Path, cells: Sequence[str]) -> list[str]:
    """Return the names of the columns. Raises DatasetError unless each has one that no other has."""
    header = [name.strip() for name in cells]
    if header and ("" in header or len(set(header)) < len(header)):
        raise DatasetError(f"{path}: every column needs a name of its own; the header is: {', '.join(header)}.")
    return header


def _ragged(path: Path, comments: int, width: int) -> DatasetError:
    """Return the error of a file whose rows are not all as wide as its header: it names the first one."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(islice(file, comments, None), strict=True)
        row = next(row for row in reader if row and len(row) != width)
        return DatasetError(f"{path}, line {comments + reader.line_num}: {len(row)} cells under {width} columns.")


def _convert(cells: Sequence[str], position: int, text: set[int]) -> Array:
    """Return a column's cells as numbers; or as text, and then add the column's position to `text`."""
    if position not in text:
        try:
            return _numbers(cells)
        except ValueError:
            text.add(position)
    return np.array([cell or None for cell in cells], object)


def _numbers(cells: Sequence[str]) -> npt.NDArray[np.float64]:
    """Return finite numbers, NaN for an empty cell. Raises ValueError for text.

    Python's `1_000`, `inf` and `nan` are text, and so is what a number would not preserve: `007`, and whole numbers
    that float64 does not hold.
    """
    joined = ",".join(("", *cells))
    if "_" in joined or LEADING_ZERO.search(joined):
        raise ValueError(cells)
    try:
        numbers, missing = np.array(list(map(float, cells))), 0
    except ValueError:
        numbers = np.array([float(cell) if cell.strip() else math.nan for cell in cells])
        missing = sum(not cell.strip() for cell in cells)
    if np.isfinite(numbers).sum() + missing < len(cells):
        raise ValueError(cells)
    large = np.flatnonzero(np.abs(numbers) > EXACT).tolist()
    if any(cells[position].strip().lstrip("+-").isdecimal() for position in large):
        raise ValueError(cells)
    return numbers


def lines(columns: Sequence[Column], parts: Iterable[tuple[Array, ...]]) -> Iterator[str]:
    """Yield the lines of a CSV file that `read` and other programs read, from cells in parts.

    A header that begins with `#` or a byte order mark is quoted, so that they stay part of the name. The cells of a
    single text column are quoted, because other programs skip blank lines.
    """
    names = [column.name for column in columns]
    is_lone_text = [column.type for column in columns] == ["text"]
    yield from _written([names], quoted=names[0].startswith(("#", "\ufeff")))
    for part in parts:
        yield from _written(zip(*(map(_cell, values(cells)) for cells in part), strict=True), is_lone_text)


class _Lines:
    """A file whose `write` returns the line instead."""

    def write(self, line: str) -> str:
        return line.removesuffix("\r\n") + "\n"


def _written(rows: Iterable[Iterable[object]], quoted: bool) -> Iterator[str]:
    # the writer quotes cells that hold a character of its line end; \r is one, as readers take a lone \r for a line end
    quoting: Literal[0, 1] = csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL
    return map(csv.writer(_Lines(), lineterminator="\r\n", quoting=quoting).writerow, rows)


def _cell(cell: float | str | None) -> str:
    """Return a cell as a file holds it; a whole number without its point."""
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < EXACT:
        return str(int(cell))
    return "" if cell is None else str(cell)
