"""A prediction, from the body's JSON to the answer's: what the hot lane and Flask's routes share."""

import time
from typing import Any

import orjson

from labstack.api.problems import Problem
from labstack.api.recorder import Record
from labstack.api.service import Service
from labstack.api.serving.lineup import Lineup, Served
from labstack.api.serving.predictor import Predictions
from labstack.contract import ContractError


def predict(service: Service, lineup: Lineup, body: Any, endpoint: str, request_id: str, started: float) -> bytes:
    """Predict the rows of a body, hand the prediction to the recorder; the answer's JSON.

    `started` is the moment of `time.perf_counter` at which the request came. Raises Problem or ContractError.
    """
    role = lineup.pick()
    served = role.served
    rows, place = _rows(body, service.settings.max_request_rows)
    matrix = served.plan.matrix(rows, place)
    predictions = served.predictor.predict(matrix)
    results = _results(served, predictions)
    answer = orjson.dumps(
        {
            **({"predictions": results} if place else {"prediction": results[0]}),
            "model": role.block,
            "request_id": request_id,
        }
    )
    latency_ms = (time.perf_counter() - started) * 1000
    service.recorder.put(Record(endpoint, request_id, latency_ms, served, role.name, matrix, predictions))
    return answer


def _rows(body: Any, limit: int) -> tuple[list[Any], str]:
    """The rows of a body, and what stands before a row's number in errors; nothing for one object alone."""
    if isinstance(body, dict) and isinstance(body.get("instances"), list):
        rows, place = body["instances"], "instances"
        if len(body) > 1:
            unknown = [name for name in body if name != "instances"]
            raise ContractError([(name, "is not known beside instances") for name in unknown])
    elif isinstance(body, list):
        rows, place = body, "rows"
    elif isinstance(body, dict):
        return [body], ""
    else:
        raise ContractError(
            [("body", 'is a single value; an object, a list of objects or {"instances": [...]} is needed')]
        )
    if not rows:
        raise ContractError([(place, "is empty; at least one row is needed")])
    if len(rows) > limit:
        raise Problem(413, "too-many-rows", f"The body holds {len(rows):,} rows; at most {limit:,} (MAX_REQUEST_ROWS).")
    return rows, place


def _results(served: Served, predictions: Predictions) -> list[dict[str, Any]]:
    """One result a row: a class with its confidence and all probabilities, or a value."""
    if served.contract.task == "regression":
        return [{"value": output} for output in predictions.outputs]
    if predictions.probabilities is None:
        return [{"class": output} for output in predictions.outputs]
    classes = served.contract.classes
    return [
        {"class": output, "confidence": max(row), "probabilities": dict(zip(classes, row, strict=True))}
        for output, row in zip(predictions.outputs, predictions.probabilities.tolist(), strict=True)
    ]
