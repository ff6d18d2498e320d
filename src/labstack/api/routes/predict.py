"""Predictions, from the versions that have a role and no other."""

import json
import time
from typing import Any

import orjson
from flask import Blueprint, Response, g, request
from werkzeug.exceptions import RequestEntityTooLarge

from labstack.api import prediction
from labstack.api.problems import Problem
from labstack.api.service import service

blueprint = Blueprint("predict", __name__)


@blueprint.post("/predict")
def predict_default() -> Response:
    """Predict with the default model."""
    return _predict(service().settings.default_model_name)


@blueprint.post("/models/<model>/predict")
def predict_model(model: str) -> Response:
    """Predict with a model by name."""
    return _predict(model)


def _predict(model: str) -> Response:
    started = time.perf_counter()
    lineup = service().lineup(model)
    answer = prediction.predict(service(), lineup, _body(), request.path, g.request_id, started)
    return Response(answer, content_type="application/json")


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
