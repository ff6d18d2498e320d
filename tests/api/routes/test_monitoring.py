"""Feedback, drift and the audit over HTTP."""

from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient

from labstack.api.app import create_app
from labstack.store import predictions
from labstack.store.audit import history
from tests.conftest import IRIS_ROW, Lab, wait_until

ROWS = 400


@pytest.fixture
def client(running: Flask) -> FlaskClient:
    return running.test_client()


def flowers(**shifts: float) -> list[dict[str, float]]:
    """Return rows with the distribution of iris in training, with some columns shifted."""
    rng = np.random.default_rng(1)
    species = rng.integers(0, 3, ROWS)
    middles = {
        "sepal_length": (5.0, 5.9, 6.6),
        "sepal_width": (3.4, 2.8, 3.0),
        "petal_length": (1.5, 4.3, 5.5),
        "petal_width": (0.25, 1.3, 2.0),
    }
    columns = {
        name: np.array(middle)[species] + rng.normal(0, 0.3 if middle[0] > 0.5 else 0.15, ROWS) + shifts.get(name, 0)
        for name, middle in middles.items()
    }
    return [dict(zip(columns, map(float, row), strict=True)) for row in zip(*columns.values(), strict=True)]


def drift(client: FlaskClient) -> dict[str, Any]:
    """Return the drift of the version that is served, when all rows are counted."""

    def counted() -> Any:
        [version] = client.get("/drift").json["versions"]
        return version["rows"] == ROWS and version

    version: dict[str, Any] = wait_until(counted, 10, "all rows are counted")
    return version


@pytest.mark.parametrize("shifted", [{}, {"sepal_width": 1.5}, {"sepal_width": 2.0, "petal_length": 3.0}])
def test_exactly_what_callers_shift_has_drifted(client: FlaskClient, shifted: dict[str, float]) -> None:
    for part in np.array_split(np.array(flowers(**shifted)), 20):
        assert client.post("/predict", json=part.tolist()).status_code == 200
    version = drift(client)
    drifted = {feature["name"] for feature in version["features"] if feature["verdict"] == "drifted"}
    assert drifted == set(shifted)
    assert (version["verdict"] == "drifted") == bool(shifted)
    assert version["prediction"]["rows"] == ROWS


def test_drift_without_rows_and_of_unknown_models(client: FlaskClient) -> None:
    [version] = client.get("/drift").json["versions"]
    assert version["verdict"] == "too few rows"
    assert client.get("/drift?model=nothing").status_code == 404


def predicted(client: FlaskClient, number: int) -> list[str]:
    """Make predictions; return their request ids when the log holds them."""
    ids = [client.post("/predict", json=IRIS_ROW).json["request_id"] for _ in range(number)]
    engine = client.application.extensions["labstack"].engine

    def kept() -> bool:
        model = client.application.extensions["labstack"].settings.default_model_name
        return {row.request_id for row in predictions.recent(engine, model, 1000)} >= set(ids)

    wait_until(kept, 5, "predictions are kept")
    return ids


def test_outcomes_are_fed_back_and_seen(client: FlaskClient) -> None:
    first, second, third = predicted(client, 3)
    answer = client.post("/feedback", json={"request_id": first, "outcome": "setosa"})
    assert (answer.status_code, answer.json) == (200, {"recorded": 1, "replaced": 0, "known": 0, "unknown": []})
    many = [{"request_id": second, "outcomes": ["virginica"]}, {"request_id": third, "outcome": "setosa"}]
    answer = client.post("/feedback", json=[*many, {"request_id": "nobody", "outcome": "setosa"}])
    assert answer.json == {"recorded": 2, "replaced": 0, "known": 0, "unknown": ["nobody"]}
    assert client.post("/feedback", json=many).json["known"] == 2
    [version] = client.get("/drift").json["versions"]
    assert version["live"]["accuracy"] == pytest.approx(2 / 3)
    assert 0 < version["live"]["calibration_error"] < 1


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"request_id": "nobody", "outcome": "x"}, 404, "holds no request nobody"),
        ({"request_id": "x"}, 422, "give outcome, or outcomes"),
        ({"request_id": "x", "outcome": "a", "outcomes": ["a"]}, 422, "give outcome, or outcomes"),
        ({"request_id": "x", "outcome": ["a"]}, 422, "outcome"),
        ({"outcome": "a"}, 422, "request_id: Field required"),
        ([], 422, "at least 1"),
        ([{"request_id": "x", "outcomes": ["a"] * 10_001}], 413, "MAX_REQUEST_ROWS"),
        ("x", 422, "valid dictionary"),
    ],
)
def test_wrong_feedback_is_refused(client: FlaskClient, body: Any, status: int, message: str) -> None:
    answer = client.post("/feedback", json=body)
    assert answer.status_code == status
    assert message in answer.json["detail"]


def test_no_outcome_is_recorded_when_one_has_the_wrong_number(client: FlaskClient, lab: Lab) -> None:
    (ident,) = predicted(client, 1)
    answer = client.post("/feedback", json=[{"request_id": ident, "outcomes": ["setosa", "setosa"]}])
    assert (answer.status_code, answer.json["errors"][0]["field"]) == (422, ident)
    assert client.get("/drift").json["versions"][0]["live"] == {"outcomes": 0}


def test_without_a_prediction_log_nothing_can_be_fed_back(lab: Lab) -> None:
    client = create_app(lab.settings(prediction_log="off")).test_client()
    answer = client.post("/feedback", json={"request_id": "x", "outcome": "y"})
    assert answer.status_code == 409
    assert "PREDICTION_LOG" in answer.json["detail"]


def test_the_audit_lists_moves_reloads_and_refusals(client: FlaskClient, lab: Lab, model: str) -> None:
    assert client.post("/admin/reload").status_code == 200
    assert client.post("/update-model", json={"version": 2, "weight": 0.5, "reason": "looks good"}).status_code == 200
    assert client.post("/rollback").status_code == 409
    assert client.post("/accept-next-model").status_code == 200
    entries = client.get(f"/audit?model={model}").json["entries"]
    moved = [(entry["action"], entry["role"], entry["to_version"]) for entry in entries]
    assert moved[:3] == [("move", "previous", 1), ("move", "canary", None), ("move", "production", 2)]
    assert moved[3:6] == [("refused", None, None), ("move", "canary", 2), ("reload", None, None)]
    [refused] = [entry for entry in entries if entry["action"] == "refused"]
    assert refused["actor"] == "operator at 127.0.0.1"
    assert "no previous version" in refused["reason"]
    page = client.get(f"/audit?model={model}&limit=2").json
    assert len(page["entries"]) == 2
    following = client.get(f"/audit?model={model}&limit=2&before={page['next']}").json["entries"]
    assert following[0]["id"] < page["entries"][1]["id"]
    assert client.get("/audit?limit=0").status_code == 422


def test_a_version_that_cannot_be_a_canary_is_in_the_audit(client: FlaskClient, lab: Lab, model: str) -> None:
    other = lab.client.get_model_version("student_exam", "1")
    made = lab.client.create_model_version(model, str(other.source), other.run_id, await_creation_for=0)
    assert client.post("/update-model", json={"version": int(made.version)}).status_code == 409
    newest = history(lab.engine, model)[0]
    assert (newest.action, newest.to_version) == ("refused", int(made.version))
    assert "does not keep to the contract" in newest.reason


def test_a_browser_gets_the_console_and_programs_the_welcome(client: FlaskClient) -> None:
    browser = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
    assert client.get("/", headers=browser).headers["Location"] == "/console"
    for accept in ("*/*", "application/json"):
        assert client.get("/", headers={"Accept": accept}).json["message"] == "Welcome to the API service!"
    assert client.get("/").json["links"]["console"] == "/console"
