"""From the store's rows to a training set and a held-out set."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.model_selection import train_test_split
from sqlalchemy import Engine

from labstack.errors import LabError
from labstack.store import datasets
from labstack.training.config import Pipeline


class DataError(LabError):
    """The rows cannot be learnt from; the text says why."""


@dataclass(frozen=True)
class Split:
    """Features as frames of float64 columns, targets as arrays of labels (text) or numbers; rows match."""

    train_features: pd.DataFrame
    test_features: pd.DataFrame
    train_target: npt.NDArray[Any]
    test_target: npt.NDArray[Any]


def load(engine: Engine, pipeline: Pipeline) -> Split:
    """The pipeline's rows, split with its seed, by class where there are classes.

    Raises DatasetError when the dataset does not exist, DataError when it cannot be learnt from.
    """
    rows = datasets.read(engine, pipeline.data.dataset)
    frame = pd.DataFrame(rows.cells, columns=[column.name for column in rows.columns])
    target = pipeline.data.target
    if target not in frame:
        raise DataError(
            f"Dataset {pipeline.data.dataset!r} has no column {target!r}; it has: {', '.join(map(str, frame))}."
        )
    text = [column.name for column in rows.columns if column.type == "text" and column.name != target]
    if text:
        raise DataError(f"Features must be numbers; these columns hold text: {', '.join(text)}.")
    if len(frame.columns) < 2:
        raise DataError(f"Dataset {pipeline.data.dataset!r} has no column besides the target.")
    missing = [str(name) for name in frame if frame[name].isna().any()]
    if missing:
        raise DataError(f"These columns have empty cells: {', '.join(missing)}.")
    features = frame.drop(columns=target).astype(np.float64)
    classifies = pipeline.task == "classification"
    labels = _labels(frame[target]) if classifies else _numbers(frame[target])
    try:
        return Split(
            *train_test_split(
                features,
                labels,
                test_size=pipeline.split.test_fraction,
                random_state=pipeline.split.seed,
                stratify=labels if classifies else None,
            )
        )
    except ValueError as error:
        raise DataError(f"Dataset {pipeline.data.dataset!r} is too small to be split: {error}") from error


def _labels(column: "pd.Series[Any]") -> npt.NDArray[np.str_]:
    labels = np.array([_label(cell) for cell in column])
    if len(np.unique(labels)) < 2:
        raise DataError(f"The target {column.name!r} has one class only.")
    return labels


def _label(cell: str | float) -> str:
    """A class by its name; a whole number without its point."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _numbers(column: "pd.Series[Any]") -> npt.NDArray[np.float64]:
    try:
        return column.to_numpy(np.float64)
    except ValueError as error:
        raise DataError(f"The target {column.name!r} holds text; a regression needs numbers.") from error
