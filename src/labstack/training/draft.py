"""A look at a table: what its columns hold, and the first draft of a pipeline file."""

import json
import re
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import Engine

from labstack.store import datasets
from labstack.store.datasets import Rows
from labstack.training.checks import MAX_CATEGORIES
from labstack.training.table import DataError

CLASSES = 20  # numbers of at most so many different values are taken for classes

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
# Imputing, scaling and one-hot encoding follow from the columns; `preprocessing:` would say otherwise.
candidates:
{candidates}
search:
  trials: 20
  folds: {folds}
metric: {metric}
gates:
  # thresholds: {{{metric}: {limit}}}
  margin: 0.0 # how much worse than production's the metric may be
  latency_ms: 50
approval: auto # or ask, or manual
"""

DROP = "\n  drop: {names} # they look like ids, or hold one value"

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
    """The text of a pipeline for a dataset of the store. Raises DatasetError and DataError."""
    rows = datasets.read(engine, dataset)
    columns = dict(zip([column.name for column in rows.columns], rows.cells, strict=True))
    if target not in columns:
        raise DataError(f"Dataset {dataset!r} has no column {target!r}; it has: {', '.join(columns)}.")
    known = pd.Series(columns[target]).dropna()
    classifies = known.dtype == object or known.nunique() <= min(CLASSES, len(known) // 10)
    drop = [name for name, cells in columns.items() if name != target and _is_useless(cells)]
    fewest = int(known.value_counts().min()) if classifies and len(known) else len(known)
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
        limit=0.8 if classifies else round(float(np.std(known.to_numpy(float))) / 2, 4),
    )


def _name(dataset: str) -> str:
    """A model's name after a dataset's."""
    name = re.sub(r"\W+", "_", dataset, flags=re.ASCII).strip("_")[:64]
    return name if name[:1].isalpha() else f"model_{name}"[:64]


def describe(rows: Rows) -> list[dict[str, Any]]:
    """What each column holds: for numbers their range, mean and spread, for text the most frequent values."""
    found = []
    for column, cells in zip(rows.columns, rows.cells, strict=True):
        known = pd.Series(cells).dropna()
        about: dict[str, Any] = {"column": column.name, "type": column.type, "missing": len(cells) - len(known)}
        about["different"] = int(known.nunique())
        if column.type == "number" and len(known):
            about |= {"min": known.min(), "mean": known.mean(), "max": known.max(), "std": known.std(ddof=0)}
        elif len(known):
            about["most"] = {str(name): int(count) for name, count in known.value_counts().head(5).items()}
        found.append(about)
    return found


def _is_useless(cells: Any) -> bool:
    known = pd.Series(cells).dropna()
    different = known.nunique()
    if known.dtype == object:
        return different < 2 or different > MAX_CATEGORIES or different == len(known) > 10
    return different < 2 or (len(known) > 10 and bool((np.diff(known) == 1).all()))
