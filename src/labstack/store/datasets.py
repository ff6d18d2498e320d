"""Datasets and their rows: the tables that pipelines learn from."""

import csv
import hashlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import JSON, Engine, ForeignKey, func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

from labstack.errors import LabError
from labstack.settings import ROOT
from labstack.store.database import Table, UtcDateTime, reading, writing

BUNDLED = ROOT / "db" / "datasets"

Cell = float | str | None


class DatasetError(LabError):
    """A dataset cannot be read or loaded; the text says which, where and why."""


class Dataset(Table):
    __tablename__ = "datasets"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    description: Mapped[str]
    columns: Mapped[list[dict[str, str]]] = mapped_column(JSON)  # [{"name": ..., "type": "number" | "text"}], in order
    source_sha256: Mapped[str]
    loaded_at: Mapped[datetime] = mapped_column(UtcDateTime)


class DatasetRow(Table):
    __tablename__ = "dataset_rows"

    id: Mapped[int] = mapped_column(primary_key=True)
    dataset_id: Mapped[int] = mapped_column(ForeignKey("datasets.id"), index=True)
    cells: Mapped[list[Cell]] = mapped_column(JSON)  # in the order of the dataset's columns
    added_at: Mapped[datetime] = mapped_column(UtcDateTime)


@dataclass(frozen=True)
class Column:
    name: str
    type: Literal["number", "text"]


@dataclass(frozen=True)
class Rows:
    """A dataset's columns, and its rows as lists of cells in the columns' order, oldest first."""

    columns: tuple[Column, ...]
    cells: list[list[Cell]]


def load_csv(engine: Engine, path: Path, name: str) -> tuple[int, bool]:
    """Load a CSV file as dataset `name`, once: an existing dataset of that name stays as it is.

    Leading lines that start with `#` are the dataset's description. A column is of numbers when all its cells
    that are not empty are finite numbers; an empty cell is a missing value.

    Returns (rows of the dataset, whether they were loaded now). Raises DatasetError for a file that is no table.
    """
    with reading(engine) as session:
        if (existing := _find(session, name)) is not None:
            return _count(session, existing), False
    description, rows = _read_csv(path)
    now = datetime.now(UTC)
    try:
        with writing(engine) as session:
            dataset = Dataset(
                name=name,
                description=description,
                columns=[{"name": column.name, "type": column.type} for column in rows.columns],
                source_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                loaded_at=now,
            )
            session.add(dataset)
            session.flush()
            session.execute(
                insert(DatasetRow),
                [{"dataset_id": dataset.id, "cells": cells, "added_at": now} for cells in rows.cells],
            )
    except IntegrityError:  # another process loaded it since we looked
        return len(rows.cells), False
    return len(rows.cells), True


def read(engine: Engine, name: str) -> Rows:
    """All rows of a dataset. Raises DatasetError when there is none of that name, naming those there are."""
    with reading(engine) as session:
        dataset = _find(session, name)
        if dataset is None:
            names = ", ".join(session.scalars(select(Dataset.name).order_by(Dataset.name))) or "none"
            raise DatasetError(f"There is no dataset {name!r} in the database; there are: {names}.")
        query = select(DatasetRow.cells).where(DatasetRow.dataset_id == dataset.id).order_by(DatasetRow.id)
        columns = tuple(Column(column["name"], column["type"]) for column in dataset.columns)  # type: ignore[arg-type]
        return Rows(columns, list(session.scalars(query)))


def load_bundled(engine: Engine) -> Iterator[tuple[str, int, bool]]:
    """Load every CSV file of db/datasets; yields (name, rows, whether they were loaded now)."""
    for path in sorted(BUNDLED.glob("*.csv")):
        yield path.stem, *load_csv(engine, path, path.stem)


def _find(session: Session, name: str) -> Dataset | None:
    return session.scalars(select(Dataset).where(Dataset.name == name)).one_or_none()


def _count(session: Session, dataset: Dataset) -> int:
    query = select(func.count()).select_from(DatasetRow).where(DatasetRow.dataset_id == dataset.id)
    return session.scalars(query).one()


def _read_csv(path: Path) -> tuple[str, Rows]:
    """The description and the typed rows of a CSV file."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    start = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    description = " ".join(line.lstrip("# ") for line in lines[:start])
    reader = csv.reader(io.StringIO("\n".join(lines[start:]), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        texts = []
        for row in filter(None, reader):  # an empty line is no row
            if len(row) != len(header):
                raise DatasetError(
                    f"{path}, line {start + reader.line_num}: {len(row)} cells under {len(header)} columns."
                )
            texts.append(row)
    except csv.Error as error:
        raise DatasetError(f"{path}, line {start + reader.line_num}: {error}.") from error
    if not header or not texts:
        raise DatasetError(f"{path}: a header line and at least one row are needed.")
    if "" in header or len(set(header)) < len(header):
        raise DatasetError(f"{path}: every column needs a name of its own; the header is: {', '.join(header)}.")
    converted = [_convert(list(column)) for column in zip(*texts, strict=True)]
    columns = tuple(Column(name, kind) for name, (kind, _) in zip(header, converted, strict=True))
    return description, Rows(columns, [list(row) for row in zip(*(cells for _, cells in converted), strict=True)])


def _convert(texts: list[str]) -> tuple[Literal["number", "text"], list[Any]]:
    try:
        numbers = [_number(text) if text.strip() else None for text in texts]
    except ValueError:
        return "text", [text or None for text in texts]
    return "number", numbers


def _number(text: str) -> float:
    """A finite number; Python's own `1_000`, `inf` and `nan` are text."""
    number = float(text)
    if "_" in text or not math.isfinite(number):
        raise ValueError(text)
    return number
