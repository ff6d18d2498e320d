"""Evaluation of predictions of held-out rows: metrics with intervals, feature importances, a learning curve."""

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
from labstack.training.config import METRICS, PROBABILITY_METRICS, Pipeline
from labstack.training.table import Indices, TrainingTable

RESAMPLES = 200
LEVEL = 0.95
RANKED_ROWS = 20_000  # at most, in a resample of a metric that sorts its rows
CURVE_ROWS = 20_000  # at most, for the learning curve
PERMUTED_ROWS = 2_000  # at most, for the importances

Target = npt.NDArray[Any]


@dataclass(frozen=True)
class HeldOutPredictions:
    """Labels or numbers of rows; probabilities of shape (rows, classes) where the estimator gives them."""

    outputs: Target
    classes: tuple[str, ...] = ()
    probabilities: Matrix | None = None


def predict(estimator: Any, rows: Any) -> HeldOutPredictions:
    """Return the predictions of a fitted estimator for rows in the form that it was fitted on."""
    classes = tuple(map(str, getattr(estimator, "classes_", ())))
    has_probabilities = classes and hasattr(estimator, "predict_proba")
    return HeldOutPredictions(
        estimator.predict(rows), classes, estimator.predict_proba(rows) if has_probabilities else None
    )


def score(pipeline: Pipeline, estimator: Any, matrix: Matrix, target: Target) -> float:
    """Return the pipeline's metric of a fitted estimator; compute probabilities only when the metric needs them."""
    classes = tuple(map(str, getattr(estimator, "classes_", ())))
    if pipeline.metric in PROBABILITY_METRICS:
        probabilities = estimator.predict_proba(matrix)
        predictions = HeldOutPredictions(np.asarray(classes)[probabilities.argmax(axis=1)], classes, probabilities)
    else:
        predictions = HeldOutPredictions(estimator.predict(matrix), classes)
    return Scorer(pipeline.task, target, predictions)(pipeline.metric)


def agree(first: HeldOutPredictions, second: HeldOutPredictions | None) -> bool:
    """Return whether two versions predict the same of the same rows, up to rounding."""
    if second is None or first.classes != second.classes or len(first.outputs) != len(second.outputs):
        return False
    if not first.classes:
        return np.allclose(first.outputs, second.outputs, rtol=1e-9, atol=0)
    if not np.array_equal(first.outputs, second.outputs):
        return False
    if first.probabilities is None or second.probabilities is None:
        return first.probabilities is second.probabilities
    return np.allclose(first.probabilities, second.probabilities, rtol=0, atol=1e-9)


class Scorer:
    """The metrics of predictions, for all rows or a sample; the part of each row is computed once.

    Metrics of classes are computed from the confusion matrix, as in scikit-learn: `balanced_accuracy` is the mean of
    the classes' recalls, `f1_macro` of their F1, each over the classes that occur; `roc_auc` of more than two
    classes is the mean of each against the rest; `log_loss` is in nats.
    """

    def __init__(self, task: str, target: Target, predicted: HeldOutPredictions) -> None:
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
        """Return a metric of these rows; NaN when it is not defined."""
        chosen = np.arange(self.rows) if rows is None else rows
        if self._regresses:
            error = self._error[chosen]
            if metric == "mae":
                return float(np.abs(error).mean())
            if metric == "rmse":
                return float(np.sqrt((error**2).mean()))
            target = self._target[chosen]
            variation = ((target - target.mean()) ** 2).sum()
            return float(1 - (error**2).sum() / variation) if variation else float("nan")
        if metric == "log_loss":
            return float(self._surprise[chosen].mean())
        if metric == "roc_auc":
            return self._roc_auc(chosen if rows is None else chosen[:RANKED_ROWS])
        count = len(self._classes)
        confusion = np.bincount(self._cells[chosen], minlength=count**2).reshape(count, count)
        correct, actual, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
        if metric == "accuracy":
            return float(correct.sum() / actual.sum())
        if metric == "balanced_accuracy":
            return float((correct[actual > 0] / actual[actual > 0]).mean())
        occurs = actual + predicted > 0
        return float((2 * correct[occurs] / (actual + predicted)[occurs]).mean())

    def _roc_auc(self, rows: Indices) -> float:
        codes, probabilities = self._codes[rows], self._probabilities[rows]
        indices = [1] if len(self._classes) == 2 else range(len(self._classes))
        if any((codes == index).all() or not (codes == index).any() for index in indices):
            return float("nan")
        return float(np.mean([_auc(codes == index, probabilities[:, index]) for index in indices]))

    def all(self) -> dict[str, float]:
        """Return every metric that is defined."""
        values = {name: self(name) for name in self.names}
        return {name: value for name, value in values.items() if not np.isnan(value)}


def _auc(is_positive: npt.NDArray[np.bool_], scores: Matrix) -> float:
    """The area under the ROC curve, from the ranks of the scores (Hanley and McNeil, 1982); ties count half."""
    positives, rows = int(is_positive.sum()), len(is_positive)
    ranks = rankdata(scores)[is_positive].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * (rows - positives)))


def resamples(rows: int, seed: int, groups: npt.NDArray[Any] | None = None) -> Iterator[Indices]:
    """Yield bootstrap samples of row indices (Efron, 1979); whole groups are drawn when rows have groups."""
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
    """Return the percentile interval of a bootstrap's values at 0.95; NaN when none is defined."""
    defined = np.array([value for value in values if not np.isnan(value)])
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def groups_of(pipeline: Pipeline, table: TrainingTable) -> npt.NDArray[Any] | None:
    """Return the group of each held-out row as a number; None when the split is not by group."""
    if pipeline.split_by != "group":
        return None
    return pd.factorize(table.column(str(pipeline.split.column)).iloc[table.test])[0]


def intervals(scorer: Scorer, seed: int, groups: npt.NDArray[Any] | None = None) -> dict[str, tuple[float, float]]:
    """Return the bootstrap interval of every metric."""
    samples: dict[str, list[float]] = {name: [] for name in scorer.names}
    for rows in resamples(scorer.rows, seed, groups):
        for name, values in samples.items():
            values.append(scorer(name, rows))
    return {name: interval(values) for name, values in samples.items()}


def importances(pipeline: Pipeline, core: Any, table: TrainingTable) -> dict[str, tuple[float, float]]:
    """Return the loss of the metric when a feature is shuffled: mean and standard deviation of five shuffles."""
    rows = table.test[:PERMUTED_ROWS]

    def goodness(estimator: Any, matrix: Matrix, target: Target) -> float:
        value = score(pipeline, estimator, matrix, target)
        return value if pipeline.more_is_better else -value

    result = permutation_importance(
        core, table.matrix[rows], table.target[rows], scoring=goodness, n_repeats=5, random_state=pipeline.split.seed
    )
    order = np.argsort(-result.importances_mean)
    return {
        table.columns[index].name: (float(result.importances_mean[index]), float(result.importances_std[index]))
        for index in order
    }


def learning_curve(pipeline: Pipeline, core: Any, table: TrainingTable) -> list[tuple[int, float, float]]:
    """Return the metric for growing training sets: (rows, score on these rows, score on held-out rows)."""
    random = np.random.default_rng(pipeline.split.seed)
    order = table.train if pipeline.split_by == "time" else random.permutation(table.train)
    order, test = order[-CURVE_ROWS:], table.test[:CURVE_ROWS]
    points = []
    for share in (0.1, 0.25, 0.5, 1.0):
        rows = order[: max(int(len(order) * share), 2)]
        try:
            fitted = core if len(rows) == len(table.train) else clone(core).fit(table.matrix[rows], table.target[rows])
            scores = [score(pipeline, fitted, table.matrix[part], table.target[part]) for part in (rows, test)]
        except ValueError:  # too few rows for this estimator, or one class only
            continue
        points.append((len(rows), scores[0], scores[1]))
    return points
