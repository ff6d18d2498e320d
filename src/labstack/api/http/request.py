"""The current Flask request: the service that answers it, its id, its body and its query."""

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
    """Give every request an id, and count every answer."""
    app.before_request(_begin)
    app.after_request(_end)


def service() -> Service:
    """Return the service of the application that handles this request."""
    current: Service = current_app.extensions["labstack"]
    return current


def call() -> Call:
    """Return the request as predictions need it. The recorder counts such a request, and nothing else does."""
    g.recorded = True
    endpoint = request.url_rule.rule if request.url_rule else request.path
    key = sticky_key(request.headers.get("X-Canary-Key"), body())
    return Call(endpoint, request.path, g.request_id, key, g.started)


def body() -> bytes:
    """Return the request's body. Raises Problem, 415, for a compressed one."""
    if request.content_encoding not in (None, "identity"):
        raise Problem(415, "content-encoding", f"The body is {request.content_encoding!r}-encoded; send it plain.")
    return request.get_data()


def json_body() -> Any:
    """Return the request's JSON value, as parse_json does. Raises Problem."""
    if not request.is_json:
        content_type = repr(request.mimetype) if request.mimetype else "none"
        raise Problem(
            415, "content-type", f"The content type is {content_type}; send -H 'Content-Type: application/json'."
        )
    return parse_json(body())


def parse_json(text: bytes) -> Any:
    """Return a JSON value; NaN and Infinity pass, so that the contract can name their field. Raises Problem."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        first_error = error
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # fails on half a surrogate pair, which no answer could quote
        return value
    except (ValueError, RecursionError):
        raise Problem(400, "json", f"The body is not JSON: {first_error}.") from None


def query_model() -> str:
    """Return the model that the query names, by default the default model."""
    return request.args.get("model") or service().settings.default_model_name


def whole_number(text: str) -> int | None:
    """Return the number of a text of at most 19 ASCII digits; None for any other text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def query_number(name: str, default: int, minimum: int, maximum: int) -> int:
    """Return a parameter of the query, a whole number within limits. Raises Problem, 422."""
    text = request.args.get(name, str(default))
    number = whole_number(text)
    if number is None or not minimum <= number <= maximum:
        raise Problem(422, "query", f"{name} is {text[:50]!r}; a whole number from {minimum} to {maximum} is needed.")
    return number


def _begin() -> None:
    g.started = time.perf_counter()
    g.request_id = request_id(request.headers.get("X-Request-Id", ""))
    _read_body()


def _read_body() -> None:
    """Read the body, from which forms are parsed too, before any route acts.

    Raises werkzeug's ClientDisconnected for an incomplete body, and RequestEntityTooLarge.
    """
    data = request.get_data()
    if request.content_length is None and len(data) == request.max_content_length:
        raise RequestEntityTooLarge  # werkzeug cuts a chunked body at the limit without an error


def _end(response: Response) -> Response:
    response.headers["X-Request-Id"] = g.request_id
    if not ("recorded" in g and response.status_code == 200):
        endpoint = request.url_rule.rule if request.url_rule else "none"
        metrics.requests.labels(endpoint, str(response.status_code)).inc()
    return response
