"""How good predictions of held-out rows are: metrics with their intervals, importances, and plots for people."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata
from sklearn.base import clone
from sklearn.inspection import permutation_importance

from labstack.model.contract import Matrix
from labstack.training.config import METRICS, OF_PROBABILITIES, Pipeline
from labstack.training.table import Indices, TrainingTable

RESAMPLES = 200
LEVEL = 0.95
RANKED_ROWS = 20_000  # at most, for what sorts them in each resample
LEARNT_ROWS = 20_000  # at most, for the learning curve
PERMUTED_ROWS = 2_000  # at most, for the importances

Target = npt.NDArray[Any]


@dataclass(frozen=True)
class Predictions:
    """Labels or numbers of rows; probabilities of shape (rows, classes) where the estimator gives them."""

    outputs: Target
    classes: tuple[str, ...] = ()
    probabilities: Matrix | None = None


def predict(estimator: Any, rows: Any) -> Predictions:
    """What a fitted estimator predicts of rows, in whatever form it was fitted on."""
    classes = tuple(map(str, getattr(estimator, "classes_", ())))
    gives = classes and hasattr(estimator, "predict_proba")
    return Predictions(estimator.predict(rows), classes, estimator.predict_proba(rows) if gives else None)


def score(pipeline: Pipeline, estimator: Any, matrix: Matrix, target: Target) -> float:
    """The pipeline's metric of a fitted estimator's predictions, of which no more are made than it needs."""
    classes = tuple(map(str, getattr(estimator, "classes_", ())))
    if pipeline.metric in OF_PROBABILITIES:
        probabilities = estimator.predict_proba(matrix)
        predicted = Predictions(np.asarray(classes)[probabilities.argmax(axis=1)], classes, probabilities)
    else:
        predicted = Predictions(estimator.predict(matrix), classes)
    return Scorer(pipeline.task, target, predicted)(pipeline.metric)


def agree(one: Predictions, other: Predictions | None) -> bool:
    """Whether two versions predict the same of the same rows, but for rounding."""
    if other is None or one.classes != other.classes or len(one.outputs) != len(other.outputs):
        return False
    if not one.classes:
        return np.allclose(one.outputs, other.outputs, rtol=1e-9, atol=0)
    if not np.array_equal(one.outputs, other.outputs):
        return False
    if one.probabilities is None or other.probabilities is None:
        return one.probabilities is other.probabilities
    return np.allclose(one.probabilities, other.probabilities, rtol=0, atol=1e-9)


class Scorer:
    """The metrics of predictions, of all rows or of some: what each row adds is computed once.

    A metric of classes is computed from their confusion matrix, as in scikit-learn: `balanced_accuracy` is the mean of
    the classes' recalls, `f1_macro` of their F1, each over the classes that occur; `roc_auc` of more than two
    classes is the mean of each against the rest; `log_loss` is in nats.
    """

    def __init__(self, task: str, target: Target, predicted: Predictions) -> None:
        self.rows = len(target)
        self._regresses = task == "regression"
        if self._regresses:
            self._target = target.astype(np.float64)
            self._error = predicted.outputs.astype(np.float64) - self._target
            self.names = list(METRICS[task])
            return
        self._classes = np.unique(np.concatenate([predicted.classes, target, predicted.outputs]).astype(str))
        count = len(self._classes)
        self._codes = np.searchsorted(self._classes, target.astype(str))
        self._cells = self._codes * count + np.searchsorted(self._classes, predicted.outputs.astype(str))
        self.names = ["accuracy", "balanced_accuracy", "f1_macro"]
        self._probabilities = np.zeros((self.rows, count))
        if predicted.probabilities is not None:
            self._probabilities[:, np.searchsorted(self._classes, predicted.classes)] = predicted.probabilities
            least = np.finfo(np.float64).eps
            self._surprise = -np.log(np.clip(self._probabilities[np.arange(self.rows), self._codes], least, 1))
            self.names += ["roc_auc", "log_loss"]

    def __call__(self, metric: str, rows: Indices | None = None) -> float:
        """A metric of these rows; NaN where it is not defined."""
        chosen = np.arange(self.rows) if rows is None else rows
        if self._regresses:
            error = self._error[chosen]
            if metric == "mae":
                return float(np.abs(error).mean())
            if metric == "rmse":
                return float(np.sqrt((error**2).mean()))
            target = self._target[chosen]
            spread = ((target - target.mean()) ** 2).sum()
            return float(1 - (error**2).sum() / spread) if spread else float("nan")
        if metric == "log_loss":
            return float(self._surprise[chosen].mean())
        if metric == "roc_auc":
            return self._roc_auc(chosen if rows is None else chosen[:RANKED_ROWS])
        count = len(self._classes)
        confusion = np.bincount(self._cells[chosen], minlength=count**2).reshape(count, count)
        right, actual, said = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
        if metric == "accuracy":
            return float(right.sum() / actual.sum())
        if metric == "balanced_accuracy":
            return float((right[actual > 0] / actual[actual > 0]).mean())
        there = actual + said > 0
        return float((2 * right[there] / (actual + said)[there]).mean())

    def _roc_auc(self, rows: Indices) -> float:
        codes, probabilities = self._codes[rows], self._probabilities[rows]
        places = [1] if len(self._classes) == 2 else range(len(self._classes))
        if any((codes == place).all() or not (codes == place).any() for place in places):
            return float("nan")
        return float(np.mean([_auc(codes == place, probabilities[:, place]) for place in places]))

    def all(self) -> dict[str, float]:
        """Every metric that is defined."""
        found = {name: self(name) for name in self.names}
        return {name: value for name, value in found.items() if not np.isnan(value)}


def _auc(is_one: npt.NDArray[np.bool_], scores: Matrix) -> float:
    """The area under the ROC curve, from the ranks of the scores (Hanley and McNeil, 1982); ties count half."""
    ones = int(is_one.sum())
    return float((rankdata(scores)[is_one].sum() - ones * (ones + 1) / 2) / (ones * (len(is_one) - ones)))


def resamples(rows: int, seed: int, groups: npt.NDArray[Any] | None = None) -> Iterator[Indices]:
    """Bootstrap samples of so many rows (Efron, 1979); of whole groups, where rows belong together."""
    random = np.random.default_rng(seed)
    if groups is None:
        for _ in range(RESAMPLES):
            yield random.integers(0, rows, rows)
        return
    order = np.argsort(groups, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    for _ in range(RESAMPLES):
        yield np.concatenate([parts[drawn] for drawn in random.integers(0, len(parts), len(parts))])


def interval(values: list[float]) -> tuple[float, float]:
    """The percentile interval of a bootstrap's values, at the level of 0.95."""
    known = np.array([value for value in values if not np.isnan(value)])
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def groups_of(pipeline: Pipeline, table: TrainingTable) -> npt.NDArray[Any] | None:
    """The group of each held-out row, as a number; None where rows stand for themselves."""
    if pipeline.split_by != "group":
        return None
    return pd.factorize(table.column(str(pipeline.split.column)).iloc[table.test])[0]


def intervals(scorer: Scorer, seed: int, groups: npt.NDArray[Any] | None = None) -> dict[str, tuple[float, float]]:
    """The bootstrap interval of every metric."""
    found: dict[str, list[float]] = {name: [] for name in scorer.names}
    for rows in resamples(scorer.rows, seed, groups):
        for name, values in found.items():
            values.append(scorer(name, rows))
    return {name: interval(values) for name, values in found.items()}


def importances(pipeline: Pipeline, core: Any, table: TrainingTable) -> dict[str, tuple[float, float]]:
    """By how much the metric gets worse when a feature's values are shuffled: the mean and spread of five times."""
    rows = table.test[:PERMUTED_ROWS]

    def goodness(estimator: Any, matrix: Matrix, target: Target) -> float:
        value = score(pipeline, estimator, matrix, target)
        return value if pipeline.more_is_better else -value

    found = permutation_importance(
        core, table.matrix[rows], table.target[rows], scoring=goodness, n_repeats=5, random_state=pipeline.split.seed
    )
    order = np.argsort(-found.importances_mean)
    return {
        table.columns[place].name: (float(found.importances_mean[place]), float(found.importances_std[place]))
        for place in order
    }


def learning_curve(pipeline: Pipeline, core: Any, table: TrainingTable) -> list[tuple[int, float, float]]:
    """The metric after learning from ever more rows: (rows, of the rows learnt from, of those held out)."""
    random = np.random.default_rng(pipeline.split.seed)
    order = table.train if pipeline.split_by == "time" else random.permutation(table.train)
    order, test = order[-LEARNT_ROWS:], table.test[:LEARNT_ROWS]
    found = []
    for share in (0.1, 0.25, 0.5, 1.0):
        rows = order[: max(int(len(order) * share), 2)]
        try:
            fitted = core if len(rows) == len(table.train) else clone(core).fit(table.matrix[rows], table.target[rows])
            scores = [score(pipeline, fitted, table.matrix[part], table.target[part]) for part in (rows, test)]
        except ValueError:  # too few rows for this estimator, or one class only
            continue
        found.append((len(rows), scores[0], scores[1]))
    return found
