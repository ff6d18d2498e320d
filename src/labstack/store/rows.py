"""Rows of typed columns, as datasets hold them in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from labstack.errors import LabError

EXACT = 2**53  # the largest whole number up to which float64 holds every one

Array = npt.NDArray[Any]


class DatasetError(LabError):
    """A dataset cannot be read or loaded; the text says which, where and why."""


@dataclass(frozen=True)
class Column:
    name: str
    type: Literal["number", "text"]

    @property
    def dtype(self) -> "np.dtype[Any]":
        """The type of its array: float64 with NaN, or objects, which are text and None."""
        return np.dtype(float if self.type == "number" else object)


@dataclass(frozen=True)
class Rows:
    """Columns, and an array of the cells of each, oldest row first."""

    columns: tuple[Column, ...]
    cells: tuple[Array, ...]

    def __len__(self) -> int:
        return len(self.cells[0])

    def dicts(self) -> Iterator[dict[str, float | str | None]]:
        """Yield the rows by column name, a missing value as None."""
        names = [column.name for column in self.columns]
        for row in zip(*map(values, self.cells), strict=True):
            yield dict(zip(names, row, strict=True))


def values(array: Array) -> list[float | str | None]:
    """Return the cells of a column, a missing value as None."""
    return array.tolist() if array.dtype == object else [None if x != x else x for x in array.tolist()]


def join(columns: tuple[Column, ...], parts: list[tuple[Array, ...]]) -> Rows:
    """Return rows that were read in parts as one."""
    empty = tuple(np.empty(0, column.dtype) for column in columns)
    return Rows(columns, tuple(np.concatenate(arrays) for arrays in zip(empty, *parts, strict=True)))
