"""Loading a pipeline's rows as a checked and split table, and splitting its training rows into folds."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.model_selection import (
    GroupKFold,
    GroupShuffleSplit,
    KFold,
    StratifiedKFold,
    TimeSeriesSplit,
    train_test_split,
)
from sqlalchemy import Engine

from labstack.model.contract import Matrix
from labstack.training import checks, sources
from labstack.training.config import Pipeline
from labstack.training.table import DataError, FeatureColumn, Indices, TrainingTable, label


def load(engine: Engine, pipeline: Pipeline) -> TrainingTable:
    """Read the pipeline's rows, check them, and split them with its seed.

    Raises DatasetError when the dataset does not exist, DataError when it cannot be used for training.
    """
    rows = sources.read(engine, pipeline.data)
    warnings: list[str] = []
    checks.require_columns(rows, pipeline)
    rows = checks.filtered(rows, pipeline)
    names = checks.feature_names(rows, pipeline)
    rows = checks.complete_rows(rows, names, pipeline, warnings)
    target = _target(rows[pipeline.data.target], pipeline)
    names = checks.usable_features(rows, names, pipeline, warnings)
    columns = _columns(rows, names)
    frame = rows[[column.name for column in columns]]
    matrix = _matrix(frame, columns)
    others = rows.drop(columns=[*frame.columns, pipeline.data.target])
    train, test = _split(pipeline, rows, target)
    warnings += checks.warnings_of(columns, matrix, target, train, test, pipeline)
    digest = _digest(pipeline, frame, others, target)
    return TrainingTable(columns, frame, matrix, target, others, train, test, digest, tuple(warnings))


def folds(pipeline: Pipeline, table: TrainingTable) -> list[tuple[Indices, Indices]]:
    """Split the training rows for cross-validation: for each fold, indices among them to fit on and to score on.

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


def _target(column: "pd.Series[Any]", pipeline: Pipeline) -> npt.NDArray[Any]:
    """Return the target as float64 or as labels. Raises DataError when the task cannot predict it."""
    name = column.name
    if pipeline.task == "regression":
        if column.dtype != np.float64:
            raise DataError(f"The target {name!r} holds text; a regression needs numbers.")
        if not np.isfinite(column).all():
            raise DataError(f"The target {name!r} holds infinite numbers.")
        if column.nunique() < 2:
            raise DataError(f"The target {name!r} is the same in every row.")
        return column.to_numpy(np.float64)
    values, codes = np.unique(column.to_numpy(), return_inverse=True)
    if len(values) < 2:
        raise DataError(f"The target {name!r} has only one class.")
    if len(values) > 20 and len(values) > len(column) / 2:
        raise DataError(f"The target {name!r} has {len(values):,} classes in {len(column):,} rows.")
    labels = [label(value) for value in values]
    for expectation in pipeline.gates.expectations:
        if expectation.class_ is not None and expectation.class_ not in labels:
            known = ", ".join(sorted(labels)[: checks.SHOWN_NAMES])
            raise DataError(f"gates.expectations: the target has no class {expectation.class_!r}; it has: {known}.")
    return np.array(labels)[codes]


def _columns(rows: pd.DataFrame, names: list[str]) -> tuple[FeatureColumn, ...]:
    """The feature columns, numbers first."""
    numbers = [name for name in names if rows[name].dtype != object]
    texts = [name for name in names if rows[name].dtype == object]
    return tuple(_column(rows[name]) for name in [*numbers, *texts])


def _column(column: "pd.Series[Any]") -> FeatureColumn:
    present = column.dropna()
    categories = tuple(sorted(present.unique())) if column.dtype == object else ()
    return FeatureColumn(str(column.name), categories, len(present) < len(column))


def _matrix(frame: pd.DataFrame, columns: tuple[FeatureColumn, ...]) -> Matrix:
    """Encode a frame as a contract does: a category by its index, a missing value as NaN."""
    matrix = np.empty((len(frame), len(columns)), order="F")
    for index, column in enumerate(columns):
        values = frame[column.name]
        if column.categories:
            codes = pd.Categorical(values, categories=column.categories).codes.astype(np.float64)
            matrix[:, index] = np.where(codes < 0, np.nan, codes)
        else:
            matrix[:, index] = values
    return matrix


def _split(pipeline: Pipeline, rows: pd.DataFrame, target: npt.NDArray[Any]) -> tuple[Indices, Indices]:
    """Return the indices of the training rows and of the held-out rows. Raises DataError when there are too few."""
    indices = np.arange(len(rows))
    share, seed = pipeline.split.test_fraction, pipeline.split.seed
    try:
        if pipeline.split_by == "time":
            first = round(len(rows) * (1 - share))
            train, test = indices[:first], indices[first:]
        elif pipeline.split_by == "group":
            splitter = GroupShuffleSplit(1, test_size=share, random_state=seed)
            train, test = next(splitter.split(indices, groups=rows[pipeline.split.column]))
        else:
            stratify = target if pipeline.split_by == "stratified" else None
            train, test = train_test_split(indices, test_size=share, random_state=seed, stratify=stratify)
    except ValueError as error:
        raise DataError(f"{pipeline.data.title} is too small to be split: {error}") from error
    if len(train) < 2 or len(test) < 1:
        raise DataError(f"{pipeline.data.title} is too small to be split: {len(rows)} rows.")
    if pipeline.task == "classification" and (lost := set(target) - set(target[train])):
        raise DataError(f"No training row is of class {', '.join(sorted(lost))}; change the split.")
    return train, test


def _digest(pipeline: Pipeline, frame: pd.DataFrame, others: pd.DataFrame, target: npt.NDArray[Any]) -> str:
    """Hash what training uses: the names and cells of the features, the columns that split and slice, the target."""
    names = (pipeline.split.column, *(rule.column for rule in pipeline.gates.slices))
    used = frame.join(others[[name for name in names if name in others]])
    digest = hashlib.sha256(repr(list(used)).encode())
    for name in used:
        digest.update(pd.util.hash_pandas_object(used[name], index=False).to_numpy().tobytes())
    digest.update(np.ascontiguousarray(target).tobytes())
    return digest.hexdigest()
