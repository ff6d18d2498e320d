"""Checks of the rows before training: the rows and columns that a pipeline uses, and warnings about them."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import balanced_accuracy_score, r2_score
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from labstack.model.contract import LARGEST, Matrix
from labstack.training import filters
from labstack.training.config import Pipeline
from labstack.training.table import DataError, FeatureColumn, Indices, label

MAX_CATEGORIES = 1000
ENCODED_BYTES = 2 << 30  # at most, of all rows with their categories one-hot encoded
LEAK_ROWS = 5000  # at most, that are searched for a leak
LEAK_SCORE = 0.999  # of a tree on one feature, from which the feature looks like a leak
SHOWN_NAMES = 10


def require_columns(rows: pd.DataFrame, pipeline: Pipeline) -> None:
    """Raise DataError when the pipeline names a column that the rows do not have, or splits by its target."""
    data, split_column = pipeline.data, pipeline.split.column
    slice_columns = [rule.column for rule in pipeline.gates.slices]
    columns_by_key = {
        "data.target": [data.target],
        "data.features": data.features or (),
        "data.drop": data.drop,
        "split.column": [split_column] if split_column else [],
        "gates.slices": slice_columns,
    }
    for key, names in columns_by_key.items():
        if unknown := [name for name in names if name not in rows]:
            known = ", ".join(map(str, rows))
            raise DataError(f"{key}: {data.title} has no column {', '.join(map(repr, unknown))}; it has: {known}.")
    if data.target in (split_column, *slice_columns):
        raise DataError(f"The target {data.target!r} can neither split the rows nor slice them.")


def filtered(rows: pd.DataFrame, pipeline: Pipeline) -> pd.DataFrame:
    """Return the rows that meet `data.filter`. Raises DataError when the filter does not fit the columns."""
    if pipeline.data.filter is None:
        return rows
    try:
        return rows[filters.parse(pipeline.data.filter)(rows)]
    except (filters.FilterError, TypeError) as error:  # TypeError: datetimes with and without a time zone
        raise DataError(f"data.filter: {error}") from error


def feature_names(rows: pd.DataFrame, pipeline: Pipeline) -> list[str]:
    """Return the columns that the pipeline takes as features. Raises DataError when there is none."""
    data = pipeline.data
    every = data.features or [str(name) for name in rows if name not in (data.target, pipeline.split.column)]
    names = [name for name in every if name not in data.drop]
    if not names:
        raise DataError(f"{data.title} has no column besides the target that could be a feature.")
    for expectation in pipeline.gates.expectations:
        if expectation.feature not in names:
            raise DataError(f"gates.expectations: {expectation.feature!r} is no feature: {', '.join(names)}.")
    return names


def complete_rows(rows: pd.DataFrame, features: list[str], pipeline: Pipeline, warnings: list[str]) -> pd.DataFrame:
    """Drop rows without any feature or without a target; sort the others when they are split by time.

    Raises DataError when no rows are left, or the column that splits them has missing values.
    """
    empty = rows[features].isna().all(axis=1)
    unlabelled = rows[pipeline.data.target].isna() & ~empty
    for count, reason in ((empty.sum(), "no feature"), (unlabelled.sum(), "no target")):
        if count:
            warnings.append(f"{count:,} rows have {reason}, and are dropped")
    rows = rows[~(empty | unlabelled)].reset_index(drop=True)
    column = pipeline.split.column
    if pipeline.split.by == "time":
        rows[column] = _ordered_values(rows[column])
        rows = rows.sort_values(str(column), kind="stable", ignore_index=True)
    if column and rows[column].isna().any():
        raise DataError(f"split.column: {column!r} has missing values.")
    if rows.empty:
        raise DataError(f"{pipeline.data.title} has no rows to train on.")
    return rows


def _ordered_values(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return numbers or datetimes that rows can be sorted by. Raises DataError for text other than ISO 8601 dates."""
    if column.dtype != object:
        return column
    times = pd.to_datetime(column, format="ISO8601", errors="coerce", utc=True)
    invalid = column[times.isna() & column.notna()]
    if len(invalid):
        raise DataError(f"split.column: {column.name!r} holds {invalid.iloc[0]!r}, no date such as 2026-01-31.")
    return times


def usable_features(rows: pd.DataFrame, names: list[str], pipeline: Pipeline, warnings: list[str]) -> list[str]:
    """Return the features that vary. Raises DataError, which names every column that cannot be a feature."""
    problems: list[str] = []
    usable: list[str] = []
    for name in names:
        column, present = rows[name], rows[name].dropna()
        if not pd.api.types.is_datetime64_any_dtype(column) and _is_constant(column):
            value = f"is {label(present.iloc[0])} in every row" if present.size else "has no values"
            warnings.append(f"{name!r} {value}, carries no information, and is dropped")
            continue
        problems += _problems(present)
        usable.append(name)
        if column.dtype != object and _counts_rows(present):
            warnings.append(f"{name!r} counts the rows and looks like an id; data.drop drops it")
    if problems:
        raise DataError(f"{pipeline.data.title} cannot be used for training: {'; '.join(problems)}.")
    for expectation in pipeline.gates.expectations:
        if expectation.feature not in usable:
            raise DataError(f"gates.expectations: {expectation.feature!r} carries no information, and is no feature.")
    _require_memory(rows, usable, pipeline)
    if not usable:
        raise DataError(f"{pipeline.data.title} has no feature that carries information: {'; '.join(warnings)}.")
    return usable


def _is_constant(column: "pd.Series[Any]") -> bool:
    """Return whether the values are all equal and present, or all missing."""
    some_missing = column.isna().any() and not column.isna().all()
    return column.nunique() < 2 and not some_missing


def _counts_rows(present: "pd.Series[Any]") -> bool:
    return bool(
        not pd.api.types.is_datetime64_any_dtype(present)
        and len(present) > 10
        and present.nunique() == len(present) == np.ptp(present) + 1
    )


def _problems(present: "pd.Series[Any]") -> Iterator[str]:
    """The reasons why a column, given by its present values, cannot be a feature."""
    name, different = present.name, present.nunique()
    if pd.api.types.is_datetime64_any_dtype(present):
        yield f"{name!r} holds dates; drop it, or convert it to numbers"
        return
    if present.dtype != object:
        if (present.abs() > LARGEST).any():
            yield f"{name!r} holds numbers above {LARGEST:g}, which no prediction takes"
        return
    numbers = pd.to_numeric(present, errors="coerce")
    if 0.8 <= numbers.notna().mean() < 1:
        examples = ", ".join(map(repr, present[numbers.isna()].unique()[:3]))
        yield f"{name!r} holds numbers, except for {numbers.isna().sum():,} cells such as {examples}"
    elif different == len(present) > 10 or different > max(0.9 * len(present), 50):
        yield f"{name!r} is a different text in nearly every row, as an id is; drop it with data.drop"
    elif different > MAX_CATEGORIES:
        yield f"{name!r} has {different:,} categories, more than {MAX_CATEGORIES:,}; drop it with data.drop"


def _require_memory(rows: pd.DataFrame, names: list[str], pipeline: Pipeline) -> None:
    """Raise DataError when one-hot encoded categories would take too much memory."""
    width = sum(rows[name].nunique() for name in names if rows[name].dtype == object)
    if pipeline.preprocessing.encode == "one_hot" and width * len(rows) * 8 > ENCODED_BYTES:
        raise DataError(
            f"{width:,} categories in {len(rows):,} rows are too many to be one-hot encoded; set "
            "preprocessing.encode: ordinal, or drop columns with data.drop."
        )


def warnings_of(
    columns: tuple[FeatureColumn, ...],
    matrix: Matrix,
    target: npt.NDArray[Any],
    train: Indices,
    test: Indices,
    pipeline: Pipeline,
) -> Iterator[str]:
    """Warnings about features: copies of others, categories that only held-out rows have, and possible leaks."""
    names_by_content: dict[bytes, str] = {}
    sample = np.random.default_rng(0).permutation(train)[:LEAK_ROWS]
    for index, column in enumerate(columns):
        values = matrix[:, index]
        content = hashlib.sha256(values.tobytes()).digest()
        if content in names_by_content and not column.categories:
            yield f"{column.name!r} equals {names_by_content[content]!r} in every row"
        names_by_content.setdefault(content, column.name)
        if column.categories:
            unseen = {code for code in set(values[test]) - set(values[train]) if not np.isnan(code)}
            if unseen:
                names = ", ".join(column.categories[int(code)] for code in sorted(unseen)[:5])
                yield f"{column.name!r} has categories that only held-out rows have: {names}"
        if _predicts_alone(values[sample], target[sample], pipeline.task, bool(column.categories)):
            yield f"{column.name!r} alone predicts the target: is it known before the prediction is made, or a leak?"


def _predicts_alone(values: Matrix, target: npt.NDArray[Any], task: str, is_category: bool) -> bool:
    """Return whether one feature alone predicts the target with almost no error."""
    if len(values) < 20 or len(np.unique(target)) < 2:
        return False
    if is_category:
        score = _category_score(values, target, task)
    elif task == "classification":
        score = _class_score(values, target)
    else:
        score = _number_score(values, target)
    return score > LEAK_SCORE


def _category_score(values: Matrix, target: npt.NDArray[Any], task: str) -> float:
    """The score of predicting the most frequent class, or the mean, of each category; 0 for too many categories."""
    if len(np.unique(values)) > len(values) / 10:
        return 0.0
    groups = pd.Series(target).groupby(pd.Series(values).fillna(-1))
    if task == "classification":
        predicted = groups.transform(lambda group: group.mode().iloc[0]).to_numpy()
        return float(balanced_accuracy_score(target, predicted))
    return float(r2_score(target, groups.transform("mean").to_numpy()))


def _class_score(values: Matrix, target: npt.NDArray[Any]) -> float:
    """The balanced accuracy of a tree on one number, with one leaf for each class."""
    leaves = len(np.unique(target))
    tree = DecisionTreeClassifier(max_leaf_nodes=leaves, class_weight="balanced", random_state=0)
    return float(balanced_accuracy_score(target, tree.fit(values[:, None], target).predict(values[:, None])))


def _number_score(values: Matrix, target: npt.NDArray[Any]) -> float:
    """R² of a tree on one number, fitted on one half and scored on the other; 1 for a straight line."""
    present = ~np.isnan(values)
    if present.sum() < 20 or np.ptp(values[present]) == 0 or np.ptp(target[present]) == 0:
        return 0.0
    if abs(np.corrcoef(values[present], target[present])[0, 1]) > 0.9999:
        return 1.0
    half = len(values) // 2
    tree = DecisionTreeRegressor(min_samples_leaf=5, random_state=0).fit(values[:half, None], target[:half])
    return float(r2_score(target[half:], tree.predict(values[half:, None])))
