"""The request that Flask's lane handles: who serves it, what it is called, what its body holds."""

import json
import time
from typing import Any

import orjson
from flask import Flask, Response, current_app, g, request
from werkzeug.exceptions import RequestEntityTooLarge

from labstack.api import metrics
from labstack.api.predicting.call import Call, request_id, sticky_key
from labstack.api.problems import Problem
from labstack.api.service import Service


def register(app: Flask) -> None:
    """Name every request, and count every answer."""
    app.before_request(_begin)
    app.after_request(_end)


def service() -> Service:
    """The service of the application that handles this request."""
    found: Service = current_app.extensions["labstack"]
    return found


def call() -> Call:
    """The request as predictions know it; the recorder counts it then."""
    g.recorded = True
    endpoint = request.url_rule.rule if request.url_rule else request.path
    key = sticky_key(request.headers.get("X-Canary-Key"), body())
    return Call(endpoint, request.path, g.request_id, key, g.started)


def body() -> bytes:
    """The request's body. Raises Problem for an encoded one."""
    if request.content_encoding not in (None, "identity"):
        raise Problem(415, "content-encoding", f"The body is {request.content_encoding!r}-encoded; send it plain.")
    return request.get_data()


def json_body() -> Any:
    """The request's JSON. Raises Problem; NaN and Infinity, which are no JSON, yet common, are read as such."""
    if not request.is_json:
        sent = f"{request.mimetype!r}" if request.mimetype else "none"
        raise Problem(415, "content-type", f"The content type is {sent}; send -H 'Content-Type: application/json'.")
    return parse_json(body())


def parse_json(text: bytes) -> Any:
    """JSON with NaN and Infinity, so that the contract names the field that holds one. Raises Problem."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        fault = error
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # fails on half a surrogate pair, which no answer could name
        return value
    except (ValueError, RecursionError):
        raise Problem(400, "json", f"The body is not JSON: {fault}.") from None


def model_asked() -> str:
    """The model that the query asks about, by default the default model."""
    return request.args.get("model") or service().settings.default_model_name


def whole_number(text: str) -> int | None:
    """The number that a text of at most 19 ASCII digits says; None for any other text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def number_asked(name: str, default: int, least: int, most: int) -> int:
    """A whole number of the query. Raises Problem."""
    text = request.args.get(name, str(default))
    number = whole_number(text)
    if number is None or not least <= number <= most:
        raise Problem(422, "query", f"{name} is {text[:50]!r}; a whole number from {least} to {most} is needed.")
    return number


def _begin() -> None:
    g.started = time.perf_counter()
    g.request_id = request_id(request.headers.get("X-Request-Id", ""))
    _read_body()


def _read_body() -> None:
    """Read the body, which forms are parsed from too, before any route acts.

    Raises werkzeug's ClientDisconnected for one that does not come whole, and RequestEntityTooLarge.
    """
    data = request.get_data()
    if request.content_length is None and len(data) == request.max_content_length:
        raise RequestEntityTooLarge  # a chunked body is cut at the limit without a word


def _end(response: Response) -> Response:
    response.headers["X-Request-Id"] = g.request_id
    if not ("recorded" in g and response.status_code == 200):
        endpoint = request.url_rule.rule if request.url_rule else "none"
        metrics.requests.labels(endpoint, str(response.status_code)).inc()
    return response
