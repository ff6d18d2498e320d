"""Predictions, from the production version and no other."""

import json
import time
from typing import Any

import orjson
from flask import Blueprint, g, request
from werkzeug.exceptions import RequestEntityTooLarge

from labstack import registry
from labstack.api.problems import Problem
from labstack.api.recorder import Record
from labstack.api.service import service
from labstack.api.serving.lineup import Served
from labstack.api.serving.predictor import Predictions
from labstack.contract import ContractError, to_matrix

blueprint = Blueprint("predict", __name__)


@blueprint.post("/predict")
def predict_default() -> dict[str, Any]:
    """Predict with the default model."""
    return _predict(service().settings.default_model_name)


@blueprint.post("/models/<model>/predict")
def predict_model(model: str) -> dict[str, Any]:
    """Predict with a model by name."""
    return _predict(model)


def _predict(model: str) -> dict[str, Any]:
    started = time.perf_counter()
    served = service().lineup(model).production
    rows, place = _rows(_body(), service().settings.max_request_rows)
    matrix = to_matrix(served.contract, rows, place)
    predictions = served.predictor.predict(matrix)
    results = _results(served, predictions)
    latency_ms = (time.perf_counter() - started) * 1000
    service().recorder.put(
        Record(request.path, g.request_id, latency_ms, served, registry.PRODUCTION, matrix, predictions)
    )
    return {
        **({"predictions": results} if place else {"prediction": results[0]}),
        "model": {
            "name": served.model,
            "version": served.version,
            "role": registry.PRODUCTION,
            "runtime": served.predictor.runtime,
        },
        "request_id": g.request_id,
    }


def _body() -> Any:
    """The request's JSON. Raises Problem, or ContractError where NaN stands for a number."""
    if not request.is_json:
        sent = f"{request.mimetype!r}" if request.mimetype else "none"
        raise Problem(415, "content-type", f"The content type is {sent}; send -H 'Content-Type: application/json'.")
    if request.content_encoding not in (None, "identity"):
        raise Problem(415, "content-encoding", f"The body is {request.content_encoding!r}-encoded; send it plain.")
    body = request.get_data(cache=False)
    if request.content_length is None and len(body) == request.max_content_length:
        raise RequestEntityTooLarge  # a chunked body is cut at the limit without a word
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        fault = error
    try:  # NaN and Infinity are no JSON, yet common: read them here, so that the contract names the field
        value = json.loads(body)
        json.dumps(value, ensure_ascii=False).encode()  # fails on half a surrogate pair, which no answer could name
        return value
    except (ValueError, RecursionError):
        raise Problem(400, "json", f"The body is not JSON: {fault}.") from None


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
