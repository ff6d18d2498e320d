"""The fast path and Flask give the same answers to every request."""

import json
from typing import Any

import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.test import Client, TestResponse

from labstack.api.predicting.fast_path import FastPath
from tests.conftest import IRIS_ROW

SAME = {"X-Request-Id": "same"}


def both(app: Flask, path: str, **request: Any) -> tuple[TestResponse, TestResponse]:
    """The answers of the fast path, with Flask behind it, and of Flask alone."""
    fast_path = app.wsgi_app
    assert isinstance(fast_path, FastPath)
    request["headers"] = SAME | request.get("headers", {})
    return Client(fast_path).post(path, **request), Client(fast_path._flask).post(path, **request)


def assert_alike(app: Flask, path: str, **request: Any) -> TestResponse:
    fast, flask = both(app, path, **request)
    assert (fast.status_code, fast.data) == (flask.status_code, flask.data)
    assert dict(fast.headers) == dict(flask.headers)
    return fast


@pytest.fixture
def flask_unused(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Flask:
    """The application, whose Flask part fails the test."""

    def fail(*_: object) -> None:
        pytest.fail("the request reached Flask")

    monkeypatch.setattr(app.wsgi_app, "_flask", fail)
    return app


@pytest.mark.parametrize("path", ["/predict", "/models/iris/predict"])
@pytest.mark.parametrize("body", [IRIS_ROW, [IRIS_ROW] * 3, {"instances": [IRIS_ROW]}])
def test_an_ordinary_prediction_never_meets_flask(flask_unused: Flask, path: str, body: Any) -> None:
    answer = Client(flask_unused.wsgi_app).post(path, json=body)
    assert answer.status_code == 200
    assert answer.json["model"]["name"] == "iris"
    assert answer.headers["X-Request-Id"] == answer.json["request_id"]


@pytest.mark.parametrize("path", ["/predict?model=student_exam", "/models/iris/predict?version=2", "/predict?"])
def test_both_read_the_query(app: Flask, path: str) -> None:
    assert assert_alike(app, path, json=IRIS_ROW).status_code == (200 if path.endswith("?") else 422)


@pytest.mark.parametrize("path", ["/predict", "/models/iris/predict", "/models/student_exam/predict"])
@pytest.mark.parametrize(
    "body",
    [
        IRIS_ROW,
        [IRIS_ROW, IRIS_ROW],
        {"instances": [IRIS_ROW]},
        {"instances": [IRIS_ROW], "more": 1},
        [],
        {},
        None,
        IRIS_ROW | {"petal_width": None},
        IRIS_ROW | {"petal_width": "wide"},
        IRIS_ROW | {"petal_width": True},
        IRIS_ROW | {"colour": 3},
        IRIS_ROW | {"petal_width": 1e31},
        IRIS_ROW | {"petal_width": 10**400},
        {"hours_studied": 2, "sleep_hours": 7, "attendance_percent": 60, "previous_scores": 50},
    ],
)
def test_every_body_is_answered_alike(app: Flask, path: str, body: Any) -> None:
    assert_alike(app, path, json=body)


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        ("/predict", {"data": b"{", "content_type": "application/json"}),
        ("/predict", {"data": b'{"petal_width": NaN}', "content_type": "application/json"}),
        ("/predict", {"data": b"\xff\xfe", "content_type": "application/json"}),
        ("/predict", {"data": b"", "content_type": "application/json"}),
        ("/predict", {"data": json.dumps(IRIS_ROW), "content_type": "text/plain"}),
        ("/predict", {"data": json.dumps(IRIS_ROW), "content_type": "application/json; charset=utf-8"}),
        ("/predict", {"data": json.dumps(IRIS_ROW)}),
        ("/predict", {"data": b" " * 5_000_000, "content_type": "application/json"}),
        ("/predict", {"json": IRIS_ROW, "headers": {"Content-Encoding": "gzip"}}),
        ("/predict", {"json": IRIS_ROW, "headers": {"X-Request-Id": "with spaces"}}),
        ("/predict/", {"json": IRIS_ROW}),
        ("/models//predict", {"json": IRIS_ROW}),
        ("/models/irish/predict", {"json": IRIS_ROW}),
        ("/models/ïris/predict", {"json": IRIS_ROW}),
        ("/models/iris/predict/predict", {"json": IRIS_ROW}),
    ],
)
def test_every_other_request_is_answered_alike(app: Flask, path: str, request_: dict[str, Any]) -> None:
    fast, flask = both(app, path, **request_)
    assert (fast.status_code, set(fast.headers.keys())) == (flask.status_code, set(flask.headers.keys()))
    if request_.get("headers", {}).get("X-Request-Id") is None:
        assert fast.data == flask.data


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
rows = st.dictionaries(st.sampled_from([*IRIS_ROW, "colour"]), values, max_size=5)
whole_rows = st.fixed_dictionaries(dict.fromkeys(IRIS_ROW, st.floats(allow_nan=False) | st.integers()))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(body=whole_rows | rows | st.lists(rows | whole_rows, max_size=3) | st.builds(lambda r: {"instances": r}, values))
def test_any_json_is_answered_alike_and_never_with_a_5xx(app: Flask, body: Any) -> None:
    data = json.dumps(body).encode()
    assert assert_alike(app, "/predict", data=data, content_type="application/json").status_code < 500


def test_both_are_recorded_alike(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[Any] = []
    monkeypatch.setattr(app.extensions["labstack"].recorder, "put", records.append)
    both(app, "/models/iris/predict", json=IRIS_ROW)
    fast, flask = records
    assert (fast.endpoint, fast.path, fast.request_id) == (flask.endpoint, flask.path, flask.request_id)
    assert (fast.endpoint, fast.path) == ("/models/<model>/predict", "/models/iris/predict")
    assert fast.role is flask.role
    assert 0 < fast.latency_ms < 1000
