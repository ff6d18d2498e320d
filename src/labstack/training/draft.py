"""A first look at a dataset: a description of its columns, and a draft of a pipeline file."""

import json
import re
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import Engine

from labstack.store import datasets
from labstack.store.rows import Rows
from labstack.training.checks import MAX_CATEGORIES
from labstack.training.table import DataError

CLASSES = 20  # a target of numbers with at most this many different values is taken for classes

TEXT = """\
# {question}
model: {model}
task: {task}
data:
  dataset: {dataset}
  target: {target}{drop}
split:
  by: {split}
  test_fraction: 0.25
  seed: 42
# The defaults impute, scale and one-hot encode as the columns need it; `preprocessing:` changes that.
candidates:
{candidates}
search:
  trials: 20
  folds: {folds}
metric: {metric}
gates:
  # thresholds: {{{metric}: {limit}}}
  margin: 0.0 # how much worse than production the metric may be
  latency_ms: 50
approval: auto # or ask, or manual
"""

DROP = "\n  drop: {names} # these look like ids, or have a single value"

CLASSIFIERS = """\
  - estimator: sklearn.linear_model.LogisticRegression
    params: {max_iter: 1000}
    search: {C: {low: 0.001, high: 100, log: true}}
  - estimator: sklearn.ensemble.RandomForestClassifier
    params: {n_estimators: 100, random_state: 0}
    search: {max_depth: [4, 8, 16, null], min_samples_leaf: {low: 1, high: 10}}"""

REGRESSORS = """\
  - estimator: sklearn.linear_model.Ridge
    search: {alpha: {low: 0.001, high: 1000, log: true}}
  - estimator: sklearn.ensemble.RandomForestRegressor
    params: {n_estimators: 100, random_state: 0}
    search: {max_depth: [4, 8, 16, null], min_samples_leaf: {low: 1, high: 10}}"""


def write(engine: Engine, dataset: str, target: str, model: str | None) -> str:
    """Return the text of a pipeline file for a dataset of the store. Raises DatasetError and DataError."""
    rows = datasets.read(engine, dataset)
    columns = dict(zip([column.name for column in rows.columns], rows.cells, strict=True))
    if target not in columns:
        raise DataError(f"Dataset {dataset!r} has no column {target!r}; it has: {', '.join(columns)}.")
    labels = pd.Series(columns[target]).dropna()
    classifies = labels.dtype == object or labels.nunique() <= min(CLASSES, len(labels) // 10)
    drop = [name for name, cells in columns.items() if name != target and _is_useless(cells)]
    fewest = int(labels.value_counts().min()) if classifies and len(labels) else len(labels)
    return TEXT.format(
        question=f"What is {target}?" if classifies else f"How much is {target}?",
        model=model or _name(dataset),
        task="classification" if classifies else "regression",
        dataset=json.dumps(dataset, ensure_ascii=False),
        target=json.dumps(target, ensure_ascii=False),
        drop=DROP.format(names=json.dumps(drop, ensure_ascii=False)) if drop else "",
        split="stratified" if classifies else "random",
        folds=max(2, min(5, fewest * 3 // 4)),
        candidates=CLASSIFIERS if classifies else REGRESSORS,
        metric="accuracy" if classifies else "rmse",
        limit=0.8 if classifies else round(float(np.std(labels.to_numpy(float))) / 2, 4),
    )


def _name(dataset: str) -> str:
    """Derive a model's name from a dataset's."""
    name = re.sub(r"\W+", "_", dataset, flags=re.ASCII).strip("_")[:64]
    return name if name[:1].isalpha() else f"model_{name}"[:64]


def describe(rows: Rows) -> list[dict[str, Any]]:
    """Describe each column: range, mean and standard deviation of numbers, the most frequent values of text."""
    descriptions = []
    for column, cells in zip(rows.columns, rows.cells, strict=True):
        present = pd.Series(cells).dropna()
        entry: dict[str, Any] = {"column": column.name, "type": column.type, "missing": len(cells) - len(present)}
        entry["different"] = int(present.nunique())
        if column.type == "number" and len(present):
            entry |= {"min": present.min(), "mean": present.mean(), "max": present.max(), "std": present.std(ddof=0)}
        elif len(present):
            entry["most"] = {str(name): int(count) for name, count in present.value_counts().head(5).items()}
        descriptions.append(entry)
    return descriptions


def _is_useless(cells: Any) -> bool:
    """Return whether a column is constant, has too many categories, or looks like an id."""
    present = pd.Series(cells).dropna()
    different = present.nunique()
    if present.dtype == object:
        return different < 2 or different > MAX_CATEGORIES or different == len(present) > 10
    return different < 2 or (len(present) > 10 and bool((np.diff(present) == 1).all()))
