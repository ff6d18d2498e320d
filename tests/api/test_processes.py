"""The running API: gunicorn with two workers, a real registry, real signals."""

import http.client
import json
import os
import re
import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from labstack.registry import moves
from tests.conftest import IRIS_ROW, Lab, Process, Relay, ask, free_port, run_api, start, wait_until
from tests.docs.pages import page, section


def test_every_worker_serves_and_each_prediction_is_one_log_line(lab: Lab, tmp_path: Path) -> None:
    control = tmp_path / "cache" / "control"
    with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri) as api:
        assert len([path for path in control.iterdir() if path.is_dir()]) == 1
        answers = [ask(f"{api.url}/predict", IRIS_ROW, headers={"X-Request-Id": f"id-{n}"}) for n in range(20)]
        assert {answer.status for answer in answers} == {200}
        assert ask(f"{api.url}/predict", {"sepal_length": "long"}).status == 422
        assert api.stop() == 0
        assert [path.name for path in control.iterdir()] == ["lock"]
        lines = api.lines("prediction")
    assert sorted(line["request_id"] for line in lines) == sorted(f"id-{n}" for n in range(20))
    line = lines[0]
    assert list(line)[:3] == ["timestamp", "level", "message"]
    assert set(line) | {"out_of_range"} == documented_fields()
    assert (line["endpoint"], line["status"], line["rows"]) == ("/predict", 200, 1)
    assert (line["model"], line["version"], line["role"], line["runtime"]) == ("iris", 1, "production", "onnx")
    assert line["input"] == [IRIS_ROW]
    assert line["prediction"][0]["class"] == "setosa"
    assert 0 < line["latency_ms"] < 10_000
    assert len(api.lines("request failed")) == 1
    assert all(text.startswith("{") for text in api.log.read_text().splitlines())


def documented_fields() -> set[str]:
    """The fields of a prediction's log line, as the docs list them."""
    text = section(page("metrics-and-logs"), "The log line of a prediction")
    return set(re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE))


def test_tokens_and_inputs_stay_out_of_the_log_and_large_bodies_out_of_memory(lab: Lab, tmp_path: Path) -> None:
    token = "a-token-that-nobody-may-see"  # noqa: S105
    settings: dict[str, Any] = {"api_admin_token": token, "log_inputs": "false", "max_request_bytes": 1000}
    with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri, **settings) as api:
        assert ask(f"{api.url}/admin/reload", b"", "POST", {"X-Admin-Token": token}).status == 200
        assert ask(f"{api.url}/admin/reload", b"", "POST").status == 403
        assert ask(f"{api.url}/predict", [IRIS_ROW] * 100).status == 413
        assert chunked(api, json.dumps([IRIS_ROW] * 100).encode()) == 413
        assert chunked(api, json.dumps(IRIS_ROW | {"petal_width": 0.3}).encode()) == 200
        assert ask(f"{api.url}/predict", IRIS_ROW | {"petal_width": 0.123454321}).status == 200
        api.stop()
    assert token not in api.log.read_text()
    assert "0.123454321" not in api.log.read_text()
    assert ["input" in line for line in api.lines("prediction")] == [False, False]


def chunked(api: Process, body: bytes) -> int:
    """The status that a body without a stated length is answered with."""
    connection = http.client.HTTPConnection(api.url.removeprefix("http://"))
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/predict", iter([body]), headers, encode_chunked=True)
    status = connection.getresponse().status
    connection.close()
    return status


def test_after_a_reload_no_worker_answers_with_the_old_version(lab: Lab, tmp_path: Path, model: str) -> None:
    moves.promote(lab.registry, lab.engine, model, 1, reason="first")
    with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri, default_model_name=model) as api:
        for version in (2, 3, 1, 2):
            moves.promote(lab.registry, lab.engine, model, version, reason="next")
            reload = ask(f"{api.url}/admin/reload", b"", "POST")
            assert reload.status == 200, reload.text
            assert [worker["models"][model] for worker in reload.json["workers"]] == [{"production": version}] * 2
            answered = {ask(f"{api.url}/predict", IRIS_ROW).json["model"]["version"] for _ in range(20)}
            assert answered == {version}


def test_workers_follow_the_registry_by_themselves(lab: Lab, tmp_path: Path, model: str) -> None:
    of_lab = {"mlflow_tracking_uri": lab.tracking_uri, "default_model_name": model}
    with run_api(tmp_path, until="/health", **of_lab, follow_interval_seconds=0.2) as api:
        assert ask(f"{api.url}/ready").status == 503
        moves.promote(lab.registry, lab.engine, model, 1, reason="first")
        wait_until(lambda: ask(f"{api.url}/ready").status == 200, 10)


def test_no_request_fails_while_versions_change(lab: Lab, tmp_path: Path, model: str) -> None:
    moves.promote(lab.registry, lab.engine, model, 1, reason="first")
    statuses: list[int] = []
    done = threading.Event()
    with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri, default_model_name=model) as api:

        def predict() -> None:
            while not done.is_set():
                statuses.append(ask(f"{api.url}/predict", IRIS_ROW).status)

        threads = [threading.Thread(target=predict) for _ in range(4)]
        for thread in threads:
            thread.start()
        for version in (2, 3, 1, 2, 3):
            moves.promote(lab.registry, lab.engine, model, version, reason="next")
            assert ask(f"{api.url}/admin/reload", b"", "POST").status == 200
        done.set()
        for thread in threads:
            thread.join()
    assert len(statuses) > 20
    assert set(statuses) == {200}


def test_a_killed_worker_is_replaced_and_reloads_go_on(lab: Lab, tmp_path: Path) -> None:
    with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri) as api:
        workers = ask(f"{api.url}/admin/reload", b"", "POST").json["workers"]
        os.kill(workers[0]["pid"], signal.SIGKILL)

        wait_until(lambda: replaced(api, workers[0]["pid"]), 30)
        assert ask(f"{api.url}/predict", IRIS_ROW).status == 200


def test_a_registry_that_goes_away_does_not_stop_serving_and_reload_says_so(lab: Lab, tmp_path: Path) -> None:
    with Relay(lab.tracking_uri) as relay, run_api(tmp_path, mlflow_tracking_uri=relay.url) as api:
        assert ask(f"{api.url}/admin/reload", b"", "POST").status == 200  # each worker has looked
        relay.close()
        reload = ask(f"{api.url}/admin/reload", b"", "POST")
        assert (reload.status, relay.url in reload.json["detail"]) == (503, True)
        assert ask(f"{api.url}/predict", IRIS_ROW).status == 200
        assert {ask(f"{api.url}/health").json["status"] for _ in range(4)} == {"degraded"}
        relay.open()
        assert ask(f"{api.url}/admin/reload", b"", "POST").status == 200
        assert {ask(f"{api.url}/health").json["status"] for _ in range(4)} == {"ok"}


def test_without_a_registry_the_api_is_up_and_names_what_it_cannot_reach(tmp_path: Path) -> None:
    url = f"http://localhost:{free_port()}"
    with run_api(tmp_path, until="/health", mlflow_tracking_uri=url, startup_timeout_seconds=1) as api:
        wait_until(lambda: len(api.lines("registry unreachable")) == 2, 30, "each worker's word")
        errors = api.lines("registry unreachable")
        assert url in errors[0]["error"]
        assert url in ask(f"{api.url}/predict", IRIS_ROW).json["detail"]
        assert ask(f"{api.url}/admin/reload", b"", "POST").status == 503
        assert api.lines("registry unreachable") == errors  # logged once


def test_a_required_production_model_stops_the_start_where_there_is_none(lab: Lab, tmp_path: Path, model: str) -> None:
    command = ["-m", "gunicorn", "-c", "python:labstack.api.server.config", "labstack.api.server.wsgi:app"]
    settings = {"require_production_model": "true", "startup_timeout_seconds": 1, "default_model_name": model}
    own = {"api_port": free_port(), "api_cache_dir": tmp_path / "cache"}
    for number, uri in enumerate((lab.tracking_uri, f"http://localhost:{free_port()}")):
        process = start(tmp_path, f"api-{number}", command, "", mlflow_tracking_uri=uri, **settings, **own)
        assert process.popen.wait(60) == 1
        output = process.log.read_text()
        assert (
            f"production version of the model '{model}'" in output or f"{model!r} has no production version" in output
        )
        assert "Traceback" not in output


def test_a_required_production_model_may_come_from_the_registry_or_the_cache(lab: Lab, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"require_production_model": "true", "startup_timeout_seconds": 1}
    with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri, **settings):
        pass
    away = f"http://localhost:{free_port()}"
    with run_api(tmp_path, mlflow_tracking_uri=away, **settings) as api:
        assert ask(f"{api.url}/predict", IRIS_ROW).status == 200


def test_what_workers_count_adds_up_and_never_goes_back(lab: Lab, tmp_path: Path) -> None:
    with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri) as api:

        def counted(name: str) -> float:
            lines = ask(f"{api.url}/metrics").text.splitlines()
            return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

        for _ in range(20):
            ask(f"{api.url}/predict", IRIS_ROW)
        ask(f"{api.url}/predict", {})
        predictions = 'labstack_predictions_total{model="iris"'
        wait_until(lambda: counted(predictions) == 20, 10, "all predictions are counted")
        assert counted("labstack_prediction_seconds_count") == 20
        assert counted('labstack_problems_total{kind="contract"}') == 1
        assert counted('labstack_requests_total{endpoint="/predict",status="200"}') == 20
        assert counted('labstack_requests_total{endpoint="/predict",status="422"}') == 1
        wait_until(lambda: counted('labstack_serving_workers{model="iris"') == 2, 10, "both workers serve")
        assert counted("labstack_registry_reachable") == 1
        for _ in range(3):
            pids = [worker["pid"] for worker in ask(f"{api.url}/admin/reload", b"", "POST").json["workers"]]
            os.kill(pids[0], signal.SIGKILL)
            wait_until(partial(replaced, api, pids[0]), 30, "another worker serves")
            wait_until(lambda: counted('labstack_serving_workers{model="iris"') == 2, 10, "and says so")
            assert counted(predictions) == 20
        slots = {path.stem.rpartition("_")[2] for path in tmp_path.glob("cache/control/*/metrics/*.db")}
        assert 2 <= len(slots) <= 3  # files are those of workers at once, however many there were


def replaced(api: Process, pid: int) -> bool:
    """Return whether there are two workers, without the one that ended."""
    pids = {worker["pid"] for worker in ask(f"{api.url}/admin/reload", b"", "POST").json.get("workers", [])}
    return len(pids) == 2 and pid not in pids


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"api_bind": "0.0.0.0"}, "set API_ADMIN_TOKEN"),  # noqa: S104
        ({"api_workers": "many"}, "API_WORKERS"),
        ({"api_port": "0"}, "API_PORT"),
    ],
)
def test_a_wrong_setting_stops_the_start_with_one_line(tmp_path: Path, settings: dict[str, str], fault: str) -> None:
    command = ["-m", "gunicorn", "-c", "python:labstack.api.server.config", "labstack.api.server.wsgi:app"]
    process = start(tmp_path, "api", command, "", **settings)
    assert process.popen.wait(60) == 1
    output = process.log.read_text()
    assert fault in output
    assert "Traceback" not in output
