"""The welcome, health, readiness, model information, and the one shape of every error."""

import json
from pathlib import Path

import pytest
from flask import Flask

from labstack.api.app import create_app
from tests.conftest import Lab, free_port


def test_the_welcome_links_to_the_endpoints(app: Flask) -> None:
    answer = app.test_client().get("/").json
    assert answer["message"] == "Welcome to the API service!"
    assert answer["models"]["iris"] == {"production": 1}
    for path in ("predict", "model_info", "health", "ready"):
        assert app.test_client().open(answer["links"][path], method="OPTIONS").status_code == 200


def test_health_says_what_is_loaded(app: Flask, lab: Lab) -> None:
    health = app.test_client().get("/health").json
    assert (health["status"], health["errors"]) == ("ok", [])
    assert health["models"]["student_exam"] == {"production": 1}
    assert health["registry"]["url"] == lab.tracking_uri
    assert health["registry"]["reachable"] is True


def test_ready_names_the_version(app: Flask) -> None:
    assert app.test_client().get("/ready").json == {"status": "ready", "model": "iris", "version": 1}


def test_model_info_is_the_registrys(app: Flask, lab: Lab) -> None:
    info = app.test_client().get("/model-info").json
    version = lab.client.get_model_version("iris", "1")
    assert (info["model"], info["version"], info["role"], info["runtime"]) == ("iris", 1, "production", "onnx")
    assert info["run_id"] == version.run_id
    assert info["metrics"] == lab.client.get_run(str(version.run_id)).data.metrics
    assert info["classes"] == ["setosa", "versicolor", "virginica"]
    assert app.test_client().get("/model-info?model=student_exam").json["target"] == "exam_score"
    assert app.test_client().get("/model-info?model=irish").status_code == 404


def test_credentials_of_the_registry_are_not_shown(lab: Lab) -> None:
    app = create_app(lab.settings(mlflow_tracking_uri=lab.tracking_uri.replace("http://", "http://me:secret@")))
    for path in ("/", "/health", "/ready", "/model-info"):
        assert "secret" not in app.test_client().get(path).text


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/predict", 405)])
def test_every_error_has_the_one_shape(app: Flask, method: str, path: str, status: int) -> None:
    answer = app.test_client().open(path, method=method)
    assert (answer.status_code, answer.content_type) == (status, "application/problem+json")
    problem = json.loads(answer.data)
    assert problem.keys() == {"type", "title", "status", "detail", "request_id"}
    assert problem["request_id"] == answer.headers["X-Request-Id"]


def test_a_wrong_method_is_answered_with_the_right_one(app: Flask) -> None:
    assert "POST" in app.test_client().get("/predict").headers["Allow"]


def test_an_unexpected_error_shows_no_details(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_model: str) -> None:
        raise RuntimeError("the inside")

    monkeypatch.setattr("labstack.api.service.Service.lineup", lambda _self, model: fail(model))
    answer = app.test_client().get("/ready")
    assert (answer.status_code, answer.content_type) == (500, "application/problem+json")
    assert "the inside" not in answer.text


def test_a_registry_that_does_not_answer_yet_is_waited_for_and_then_named(lab: Lab, tmp_path: Path) -> None:
    url = f"http://localhost:{free_port()}"
    changes = {"mlflow_tracking_uri": url, "api_cache_dir": tmp_path}
    app = create_app(lab.settings(**changes, startup_timeout_seconds=3600))
    app.extensions["labstack"].follower.sync()
    waiting = json.loads(app.test_client().get("/ready").data)
    assert (waiting["status"], waiting["type"]) == (503, "urn:labstack:problem:starting")
    assert f"{url}, for 0 of 3600 seconds" in waiting["detail"]
    assert app.test_client().get("/health").json["status"] == "starting"

    app = create_app(lab.settings(**changes, startup_timeout_seconds=0.001))
    app.extensions["labstack"].follower.sync()
    late = json.loads(app.test_client().get("/ready").data)
    assert (late["status"], late["type"]) == (503, "urn:labstack:problem:registry-unreachable")
    assert url in late["detail"]
    assert app.test_client().get("/health").json["status"] == "degraded"
