"""Predictions: the three forms of a body, and every error in one."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labstack.api.app import create_app
from labstack.registry import moves
from labstack.registry.roles import Rollout
from tests.conftest import IRIS_ROW, Lab

STUDENT_ROW = {"hours_studied": 10.9, "sleep_hours": 6.6, "attendance_percent": 55.9, "previous_scores": 75.6}


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def refused(client: FlaskClient, status: int, **request: Any) -> dict[str, Any]:
    """Return the problem with which a request to /predict is answered."""
    answer = client.post("/predict", **request)
    assert answer.status_code == status, answer.text
    assert answer.content_type == "application/problem+json"
    problem: dict[str, Any] = json.loads(answer.data)
    assert problem.keys() >= {"type", "title", "status", "detail", "request_id"}
    assert problem["status"] == status
    assert problem["request_id"] == answer.headers["X-Request-Id"]
    assert "Traceback" not in answer.text
    return problem


def test_one_object_gets_one_prediction(client: FlaskClient) -> None:
    answer = client.post("/predict", json=IRIS_ROW).json
    assert answer["prediction"]["class"] == "setosa"
    assert answer["prediction"]["confidence"] == max(answer["prediction"]["probabilities"].values())
    assert math.isclose(sum(answer["prediction"]["probabilities"].values()), 1)
    assert answer["model"] == {"name": "iris", "version": 1, "role": "production", "runtime": "onnx"}


@pytest.mark.parametrize("wrap", [list, lambda rows: {"instances": list(rows)}], ids=["list", "instances"])
def test_rows_get_predictions_in_their_order(client: FlaskClient, wrap: Any) -> None:
    virginica = {"sepal_length": 7.4, "sepal_width": 2.8, "petal_length": 6.1, "petal_width": 1.9}
    answer = client.post("/predict", json=wrap([IRIS_ROW, virginica, IRIS_ROW])).json
    assert [result["class"] for result in answer["predictions"]] == ["setosa", "virginica", "setosa"]


def test_one_row_in_a_list_is_answered_as_a_list(client: FlaskClient) -> None:
    assert len(client.post("/predict", json=[IRIS_ROW]).json["predictions"]) == 1


def test_a_regression_answers_with_a_value(client: FlaskClient) -> None:
    answer = client.post("/models/student_exam/predict", json=STUDENT_ROW).json
    assert answer["prediction"].keys() == {"value"}
    assert 50 < answer["prediction"]["value"] < 100
    assert answer["model"]["name"] == "student_exam"


def test_the_default_model_answers_by_its_name_too(client: FlaskClient) -> None:
    by_name = client.post("/models/iris/predict", json=IRIS_ROW).json
    assert by_name["prediction"] == client.post("/predict", json=IRIS_ROW).json["prediction"]


def test_an_unknown_model_is_named_with_those_that_are_served(client: FlaskClient) -> None:
    answer = client.post("/models/irish/predict", json=IRIS_ROW)
    assert answer.status_code == 404
    assert "'irish'; served models: iris, " in answer.json["detail"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"hello", b'{"a": 1,}', b"\xff\xfe", b'"\xed\xa0\x80"', b"[" * 100_000, b"1e"]
)
def test_a_body_that_is_not_json_is_400(client: FlaskClient, body: bytes) -> None:
    assert "not JSON" in refused(client, 400, data=body, content_type="application/json")["detail"]


@pytest.mark.parametrize("content_type", [None, "text/csv", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_another_content_type_is_415_and_the_right_one_is_named(client: FlaskClient, content_type: str | None) -> None:
    problem = refused(client, 415, data=json.dumps(IRIS_ROW), content_type=content_type)
    assert "Content-Type: application/json" in problem["detail"]


def test_a_compressed_body_is_415(client: FlaskClient) -> None:
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    assert "send it plain" in refused(client, 415, data=b"{}", headers=headers)["detail"]


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "application/vnd.mine+json"])
def test_json_by_another_name_is_json(client: FlaskClient, content_type: str) -> None:
    assert client.post("/predict", data=json.dumps(IRIS_ROW), content_type=content_type).status_code == 200


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        (b"[]", "rows", "is empty"),
        (b'{"instances": []}', "instances", "is empty"),
        (b"3", "body", "single value"),
        (b"null", "body", "single value"),
        (b'"text"', "body", "single value"),
        (b"{}", "sepal_length", "is missing"),
        (b'{"instances": 5}', "instances", "is not a field"),
        (json.dumps({"instances": [IRIS_ROW], "params": {}}).encode(), "params", "not known beside instances"),
        (b"[1]", "rows[0]", "is a number; an object"),
        (b"[[1, 2, 3, 4]]", "rows[0]", "is a list; an object"),
        (json.dumps([IRIS_ROW, IRIS_ROW | {"petal_width": None}]).encode(), "rows[1].petal_width", "is null"),
        (json.dumps(IRIS_ROW | {"petal_width": "0.2"}).encode(), "petal_width", "is text"),
        (json.dumps(IRIS_ROW | {"petal_width": True}).encode(), "petal_width", "boolean"),
        (json.dumps(IRIS_ROW | {"petal_width": math.nan}).encode(), "petal_width", "is nan"),
        (json.dumps(IRIS_ROW | {"petal_width": -math.inf}).encode(), "petal_width", "is -inf"),
        (json.dumps(IRIS_ROW).replace("0.2", "1e999").encode(), "petal_width", "is inf"),
        (json.dumps(IRIS_ROW | {"petal_width": 10**400}).encode(), "petal_width", "finite number|too large"),
        (json.dumps(IRIS_ROW | {"petal_width": -1e300}).encode(), "petal_width", "too large"),
        (json.dumps(IRIS_ROW | {"colour": 1}).encode(), "colour", "is not a field"),
        (
            json.dumps({"petal_width": {"a": [[[]]]}} | IRIS_ROW | {"petal_width": {}}).encode(),
            "petal_width",
            "an object",
        ),
    ],
)
def test_a_body_that_breaks_the_contract_is_422_and_the_field_is_named(
    client: FlaskClient, body: bytes, field: str, message: str
) -> None:
    problem = refused(client, 422, data=body, content_type="application/json")
    [text] = [error["message"] for error in problem["errors"] if error["field"] == field]
    assert any(part in text for part in message.split("|"))


def test_all_errors_come_in_one_answer(client: FlaskClient) -> None:
    body = {"sepal_length": "long", "sepal_width": None, "colour": "blue", "petal_width": 1}
    problem = refused(client, 422, json=body)
    assert [error["field"] for error in problem["errors"]] == ["sepal_length", "sepal_width", "petal_length", "colour"]


def test_a_hundred_thousand_rows_are_413(client: FlaskClient) -> None:
    problem = refused(client, 413, json=[{"a": 1}] * 100_000)
    assert "100,000 rows; at most 10,000 (MAX_REQUEST_ROWS)" in problem["detail"]
    problem = refused(client, 413, json=[IRIS_ROW] * 100_000)
    assert "4,194,304 bytes (MAX_REQUEST_BYTES)" in problem["detail"]


def test_as_many_rows_as_the_limit_are_predicted(client: FlaskClient) -> None:
    assert len(client.post("/predict", json=[IRIS_ROW] * 10_000).json["predictions"]) == 10_000


@pytest.mark.parametrize(("sent", "kept"), [("a-1:b.C_2", True), ("x" * 128, True), ("x" * 129, False), ("a b", False)])
def test_a_sane_request_id_comes_back(client: FlaskClient, sent: str, kept: bool) -> None:
    answer = client.post("/predict", json=IRIS_ROW, headers={"X-Request-Id": sent})
    assert (answer.headers["X-Request-Id"] == sent) is kept
    assert answer.json["request_id"] == answer.headers["X-Request-Id"]


def test_without_a_production_version_the_command_to_run_is_named(lab: Lab, model: str) -> None:
    app = create_app(lab.settings(default_model_name=model))
    app.extensions["labstack"].follower.sync()
    for answer in (app.test_client().post("/predict", json=IRIS_ROW), app.test_client().get("/ready")):
        assert answer.status_code == 503
        assert "no production version" in json.loads(answer.data)["detail"]
        assert "./run_all.sh train" in json.loads(answer.data)["detail"]


def test_only_production_is_served(lab: Lab, app: Flask, model: str) -> None:
    moves.promote(lab.registry, lab.engine, model, 1, reason="first")
    moves.start_canary(lab.registry, lab.engine, model, 2, Rollout(0, "split"), reason="try")
    follower = app.extensions["labstack"].follower
    follower.sync()
    assert app.test_client().post(f"/models/{model}/predict", json=IRIS_ROW).json["model"]["version"] == 1
    lab.client.delete_registered_model_alias(model, "production")
    follower.sync()
    assert app.test_client().post(f"/models/{model}/predict", json=IRIS_ROW).status_code == 503


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*IRIS_ROW, "instances"]) | st.text(), inner, max_size=5)
    ),
    max_leaves=12,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(json_values)
def test_no_json_crashes_the_api(client: FlaskClient, value: Any) -> None:
    answer = client.post("/predict", data=json.dumps(value), content_type="application/json")
    assert answer.status_code in (200, 400, 413, 422), answer.text


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_no_bytes_crash_the_api(client: FlaskClient, body: bytes) -> None:
    answer = client.post("/predict", data=body, content_type="application/json")
    assert answer.status_code in (400, 422), answer.text


@pytest.mark.parametrize(
    ("estimator", "runtime"),
    [
        ("sklearn.ensemble.RandomForestClassifier", "onnx"),
        ("sklearn.svm.LinearSVC", "sklearn"),
    ],
)
def test_either_runtime_predicts_what_training_did(lab: Lab, tmp_path: Path, estimator: str, runtime: str) -> None:
    name = f"by_{runtime}"
    lab.train("iris", model=name, estimator=estimator, params={})
    app = create_app(lab.settings(api_cache_dir=tmp_path))
    follower = app.extensions["labstack"].follower
    follower.sync()
    served = follower.lineups[name].production.served
    try:
        assert served.predictor.runtime == runtime
        row = served.contract.sample.input
        answer = app.test_client().post(f"/models/{name}/predict", json=[row, row]).json
        assert [prediction["class"] for prediction in answer["predictions"]] == [served.contract.sample.output] * 2
        assert answer["model"]["runtime"] == runtime
    finally:
        lab.client.delete_registered_model(name)
