"""The table that a model is trained on: its feature columns, and the rows with their target, split for evaluation."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from labstack.errors import LabError
from labstack.model.contract import Matrix

Indices = npt.NDArray[np.intp]


class DataError(LabError):
    """The rows cannot be used for training; the text gives every reason."""


@dataclass(frozen=True)
class FeatureColumn:
    """A feature: a category when it has `categories`, else a number. `missing` is true when some values are missing."""

    name: str
    categories: tuple[str, ...]
    missing: bool


@dataclass(frozen=True)
class TrainingTable:
    """Rows with their target, split into training rows and held-out rows.

    `frame` holds the features as float64 and text columns, numbers first; `matrix`, of shape (rows, features), holds
    them as a contract does: a category is its index among all, a missing value is NaN. `target` holds labels (text) or
    float64. `others` are the columns that are not features. `train` and `test` are row indices.
    """

    columns: tuple[FeatureColumn, ...]
    frame: pd.DataFrame
    matrix: Matrix
    target: npt.NDArray[Any]
    others: pd.DataFrame
    train: Indices
    test: Indices
    digest: str
    warnings: tuple[str, ...]

    def column(self, name: str) -> "pd.Series[Any]":
        """Return a column of the rows, be it a feature or not."""
        return self.frame[name] if name in self.frame else self.others[name]


def label(cell: str | float) -> str:
    """Return the name of a class; a whole number is written without a decimal point."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
