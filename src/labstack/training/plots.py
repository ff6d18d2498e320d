"""Figures of an evaluation, which the run and the model card show."""

from collections.abc import Iterator
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from sklearn import metrics
from sklearn.calibration import CalibrationDisplay

from labstack.model.contract import Matrix
from labstack.training.config import Pipeline
from labstack.training.evaluate import HeldOutPredictions, Target

matplotlib.rcParams["text.parse_math"] = False  # a column's name may contain a $

SHOWN_CLASSES = 10


def draw(
    pipeline: Pipeline,
    target: Target,
    predictions: HeldOutPredictions,
    importance: dict[str, tuple[float, float]],
    curve: list[tuple[int, float, float]],
) -> dict[str, Figure]:
    """Return figures of the held-out rows, by file name."""
    figures = {}
    if pipeline.task == "classification":
        figures["confusion_matrix.png"] = _confusion(target, predictions)
        if predictions.probabilities is not None:
            curves = list(_curves(target, predictions.classes, predictions.probabilities))
            figures["roc_and_precision_recall.png"] = _ranking(curves)
            figures["calibration.png"] = _calibration(curves)
    else:
        figures["predictions.png"] = _predictions(target, predictions)
    figures["importance.png"] = _importance(pipeline.metric, importance)
    figures["learning_curve.png"] = _learning(pipeline.metric, curve)
    for figure in figures.values():
        figure.suptitle(f"{pipeline.model}, held-out rows")
    return figures


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def _confusion(target: Target, predictions: HeldOutPredictions) -> Figure:
    labels = np.unique(np.concatenate([target, predictions.outputs]).astype(str))
    size = min(4 + 0.4 * len(labels), 20)
    figure, axes = _figure(size + 1, size)
    metrics.ConfusionMatrixDisplay.from_predictions(
        target.astype(str),
        predictions.outputs.astype(str),
        ax=axes,
        cmap="Blues",
        colorbar=False,
        xticks_rotation="vertical" if len(labels) > 4 else "horizontal",
        include_values=len(labels) <= 20,
    )
    return figure


Curve = tuple[str, npt.NDArray[np.bool_], Matrix]


def _curves(target: Target, classes: tuple[str, ...], probabilities: Matrix) -> Iterator[Curve]:
    """For each class: its name, a mask of its rows, and its probabilities. Of two classes, only the second."""
    for index in [1] if len(classes) == 2 else range(min(len(classes), SHOWN_CLASSES)):
        is_class = target.astype(str) == classes[index]
        if is_class.any() and not is_class.all():
            yield classes[index], is_class, probabilities[:, index]


def _ranking(curves: list[Curve]) -> Figure:
    figure, (left, right) = _figure(11, 5, 2)
    for name, is_class, probabilities in curves:
        metrics.RocCurveDisplay.from_predictions(is_class, probabilities, name=name, ax=left)
        metrics.PrecisionRecallDisplay.from_predictions(is_class, probabilities, name=name, ax=right)
    left.plot([0, 1], [0, 1], "--", color="gray", linewidth=1)
    left.set(title="ROC", xlabel="False positive rate", ylabel="True positive rate")
    right.set(title="Precision and recall", xlabel="Recall", ylabel="Precision")
    return figure


def _calibration(curves: list[Curve]) -> Figure:
    figure, axes = _figure(6, 5)
    for name, is_class, probabilities in curves:
        CalibrationDisplay.from_predictions(is_class, probabilities, n_bins=10, strategy="quantile", name=name, ax=axes)
    axes.set(
        title="Calibration", xlabel="Mean predicted probability of a tenth of the rows", ylabel="Share of the class"
    )
    return figure


def _predictions(target: Target, predictions: HeldOutPredictions) -> Figure:
    figure, (left, middle, right) = _figure(15, 5, 3)
    for axes, kind in ((left, "actual_vs_predicted"), (middle, "residual_vs_predicted")):
        metrics.PredictionErrorDisplay.from_predictions(
            target, predictions.outputs, kind=kind, ax=axes, subsample=1000, random_state=0
        )
    right.hist(target - predictions.outputs, bins=30)
    right.set(title="Residuals", xlabel="Actual minus predicted", ylabel="Rows")
    return figure


def _importance(metric: str, importance: dict[str, tuple[float, float]]) -> Figure:
    names = list(importance)[:30][::-1]
    figure, axes = _figure(7, max(2.5, 1 + 0.3 * len(names)))
    means, deviations = zip(*(importance[name] for name in names), strict=True)
    axes.barh(names, means, xerr=deviations)
    axes.set(title="Feature importance", xlabel=f"Loss of {metric} when the feature is shuffled")
    return figure


def _learning(metric: str, curve: list[tuple[int, float, float]]) -> Figure:
    figure, axes = _figure(6, 5)
    rows, training_scores, test_scores = zip(*curve, strict=True) if curve else ((), (), ())
    axes.plot(rows, training_scores, "o-", label="training rows")
    axes.plot(rows, test_scores, "o-", label="held-out rows")
    axes.set(title="Learning curve", xlabel="Training rows", ylabel=metric)
    axes.legend()
    return figure
