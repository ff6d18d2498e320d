"""How good a fitted estimator is on the held-out rows: metrics as numbers, and plots for people."""

from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from sklearn import metrics

from labstack.training.config import Pipeline


def measure(pipeline: Pipeline, estimator: Any, features: pd.DataFrame, target: npt.NDArray[Any]) -> dict[str, float]:
    """The task's metrics; `log_loss`, in nats, only where the estimator gives probabilities."""
    predicted = estimator.predict(features)
    if pipeline.task == "regression":
        return {
            "rmse": float(metrics.root_mean_squared_error(target, predicted)),
            "mae": float(metrics.mean_absolute_error(target, predicted)),
            "r2": float(metrics.r2_score(target, predicted)),
        }
    found = {
        "accuracy": float(metrics.accuracy_score(target, predicted)),
        "f1_macro": float(metrics.f1_score(target, predicted, average="macro", zero_division=0.0)),
    }
    if hasattr(estimator, "predict_proba"):
        found["log_loss"] = float(
            metrics.log_loss(target, estimator.predict_proba(features), labels=estimator.classes_)
        )
    return found


def plots(pipeline: Pipeline, estimator: Any, features: pd.DataFrame, target: npt.NDArray[Any]) -> dict[str, Figure]:
    """Figures by file name: the confusion matrix, or predictions beside the truth with their residuals."""
    predicted = estimator.predict(features)
    if pipeline.task == "classification":
        figure = Figure(figsize=(6, 5), layout="constrained")
        axes = figure.subplots()
        metrics.ConfusionMatrixDisplay.from_predictions(target, predicted, ax=axes, cmap="Blues", colorbar=False)
        axes.set_title(f"{pipeline.model}: held-out rows")
        return {"confusion_matrix.png": figure}
    figure = Figure(figsize=(11, 5), layout="constrained")
    figure.suptitle(f"{pipeline.model}: held-out rows")
    left, right = figure.subplots(1, 2)
    for axes, kind in ((left, "actual_vs_predicted"), (right, "residual_vs_predicted")):
        metrics.PredictionErrorDisplay.from_predictions(np.asarray(target), predicted, kind=kind, ax=axes)
    return {"predictions.png": figure}
