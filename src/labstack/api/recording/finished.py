"""A finished prediction, as the prediction path hands it to the recorder."""

from typing import Any, NamedTuple

from labstack.api.serving.lineup import Role
from labstack.model.contract import FieldMessages, Matrix
from labstack.model.predictor import Predictions


class FinishedPrediction(NamedTuple):
    """A finished prediction."""

    endpoint: str  # the pattern of its path
    path: str
    request_id: str
    at: float  # seconds since 1970
    latency_ms: float
    role: Role
    trial: str  # the step of a canary's trial that it belongs to; empty if none
    matrix: Matrix
    warnings: FieldMessages
    predictions: Predictions


def outputs(record: FinishedPrediction, rows: int | None = None) -> list[dict[str, Any]]:
    """Return the predictions for the first `rows` rows, or for all: a class and its confidence, or a value, of each."""
    key = "class" if record.role.served.contract.task == "classification" else "value"
    shown: list[dict[str, Any]] = [{key: output} for output in record.predictions.outputs[:rows]]
    probabilities = record.predictions.probabilities
    if probabilities is not None:
        for output, confidence in zip(shown, probabilities[:rows].max(axis=1).tolist(), strict=True):
            output["confidence"] = confidence
    return shown
