"""Following the registry: swaps, failed loads, and what comes back after them."""

import http.server
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import skops.io
from sklearn.linear_model import LogisticRegression

from labstack.api.app import create_app
from labstack.api.service import Service
from labstack.api.serving.loader import Backoff
from labstack.model.contract import Contract, Plan
from labstack.registry import moves
from labstack.registry.client import RegistryError, RegistryUnreachableError, Version
from labstack.registry.roles import Rollout
from tests.api.conftest import stored
from tests.conftest import IRIS_ROW, Lab, free_port, wait_until


def test_a_promotion_is_followed(service: Service, lab: Lab, model: str) -> None:
    assert model not in service.follower.lineups
    moves.promote(lab.registry, lab.engine, model, 1, reason="first")
    service.follower.sync()
    before = service.follower.lineups[model]
    moves.promote(lab.registry, lab.engine, model, 2, reason="second")
    service.follower.sync()
    assert (before.production.served.version, service.follower.lineups[model].production.served.version) == (1, 2)


def test_an_unchanged_version_is_not_loaded_again(service: Service) -> None:
    before = service.follower.lineups["iris"]
    service.follower.sync()
    assert service.follower.lineups["iris"] is before


def test_a_model_made_anew_under_its_old_name_is_another_version(service: Service, lab: Lab) -> None:
    name = "made_anew"
    lab.train("iris", model=name)
    service.follower.sync()
    before = service.follower.lineups[name].production.served
    lab.client.delete_registered_model(name)
    lab.train("iris", model=name, params={"max_iter": 5000, "C": 0.01})
    service.follower.sync()
    after = service.follower.lineups[name].production.served
    assert (before.version, after.version) == (1, 1)
    assert before.record.source != after.record.source
    lab.client.delete_registered_model(name)


@pytest.mark.parametrize("file", ["contract.json", "model.onnx"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_version_that_cannot_be_loaded_changes_nothing_and_is_visible(
    service: Service, lab: Lab, trained: str, file: str, damage: str
) -> None:
    path = stored(lab, trained, 2) / file
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:50])
    moves.promote(lab.registry, lab.engine, trained, 2, reason="bad")
    service.follower.sync()
    assert service.follower.lineups[trained].production.served.version == 1
    assert f"Version 2 of '{trained}' could not be loaded" in service.follower.following.load_errors[trained]
    assert "iris" in service.follower.lineups
    [state] = service.control.states()
    assert any("Version 2" in error for error in state.errors.values())
    path.write_bytes(whole)
    service.follower.sync()
    assert service.follower.lineups[trained].production.served.version == 1  # not fetched at each look
    service.control.raise_desired()
    service.follower.sync()
    assert service.follower.lineups[trained].production.served.version == 2
    assert service.follower.following.errors == {}


def test_a_worker_that_starts_after_a_bad_promotion_serves_the_version_before(
    service: Service, lab: Lab, trained: str
) -> None:
    (stored(lab, trained, 2) / "model.onnx").write_bytes(b"damaged")
    moves.promote(lab.registry, lab.engine, trained, 2, reason="bad")
    for _ in range(2):
        started: Service = create_app(service.settings).extensions["labstack"]
        started.follower.sync()
        assert started.follower.lineups[trained].production.served.version == 1
        assert "Version 2" in started.follower.following.load_errors[trained]


def test_files_that_cannot_be_fetched_harm_no_other_model(
    service: Service, lab: Lab, model: str, trained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves.promote(lab.registry, lab.engine, trained, 2, reason="slow")
    moves.promote(lab.registry, lab.engine, model, 1, reason="first")
    real = service.client.download

    def download(name: str, *arguments: Any) -> None:
        if name == trained:
            raise RegistryUnreachableError("http://registry.example")
        real(name, *arguments)

    monkeypatch.setattr(service.client, "download", download)
    shutil.rmtree(service.settings.api_cache_dir)
    service.follower.sync()
    assert service.follower.lineups[model].production.served.version == 1
    assert service.follower.lineups[trained].production.served.version == 1
    assert service.follower.following.registry_error is None


def test_a_canary_stays_while_the_registry_cannot_be_asked_about_it(
    service: Service, lab: Lab, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves.promote(lab.registry, lab.engine, model, 1, reason="first")
    moves.start_canary(lab.registry, lab.engine, model, 2, Rollout(1, "split"), reason="try")
    service.follower.sync()
    before = service.follower.lineups[model]
    real = service.client.version

    def version(name: str, number: int) -> Version:
        if number == 2:
            raise RegistryError("database is locked")
        return real(name, number)

    monkeypatch.setattr(service.client, "version", version)
    service.follower.sync()
    assert service.follower.lineups[model] is before
    lab.client.delete_model_version(model, "2")
    monkeypatch.undo()
    service.control.raise_desired()
    service.follower.sync()
    assert service.follower.lineups[model].canary is None


def test_a_deleted_production_version_is_not_served(service: Service, lab: Lab, trained: str) -> None:
    lab.client.delete_model_version(trained, "1")
    service.follower.sync()
    assert trained not in service.follower.lineups
    assert "has no version 1" in service.follower.following.load_errors[trained]


def test_a_version_that_does_not_predict_its_sample_is_refused(service: Service, lab: Lab, trained: str) -> None:
    folder = stored(lab, trained, 2)
    contract = Contract.read(folder)
    contract.model_copy(update={"sample": contract.sample.model_copy(update={"output": "setosa"})}).write(folder)
    moves.promote(lab.registry, lab.engine, trained, 2, reason="lying")
    service.follower.sync()
    assert service.follower.lineups[trained].production.served.version == 1
    assert "for its own sample, and predicted 'setosa'" in service.follower.following.load_errors[trained]


class Surprise(LogisticRegression):  # type: ignore[misc]
    """An estimator from outside scikit-learn."""


def test_a_version_with_foreign_types_is_refused(service: Service, lab: Lab, trained: str) -> None:
    folder = stored(lab, trained, 2)
    Contract.read(folder).model_copy(update={"onnx": None}).write(folder)
    skops.io.dump(Surprise(), folder / "model.skops")
    moves.promote(lab.registry, lab.engine, trained, 2, reason="foreign")
    service.follower.sync()
    assert service.follower.lineups[trained].production.served.version == 1
    assert "Surprise" in service.follower.following.load_errors[trained]


def test_a_deleted_version_harms_no_other_model(service: Service, lab: Lab, model: str, trained: str) -> None:
    lab.client.delete_model_version(trained, "1")  # its alias stays
    moves.promote(lab.registry, lab.engine, model, 1, reason="first")
    service.follower.sync()
    assert service.follower.lineups[model].production.served.version == 1
    assert service.follower.following.registry_error is None
    assert "has no version 1" in service.follower.following.load_errors[trained]


def test_a_damaged_cache_heals_itself(service: Service, lab: Lab, trained: str) -> None:
    for path in service.settings.api_cache_dir.glob("*/model.onnx"):
        path.write_bytes(b"damaged")
    restarted: Service = create_app(service.settings).extensions["labstack"]
    restarted.follower.sync()
    assert trained in restarted.follower.following.load_errors
    restarted.control.raise_desired()
    restarted.follower.sync()
    assert restarted.follower.following.errors == {}
    assert restarted.lineup(trained).production.served.version == 1


def test_an_answer_that_is_not_from_mlflow_does_not_end_the_thread(service: Service, lab: Lab) -> None:
    class Nonsense(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"registered_models": [{"name": 3, "aliases": "none"}], "x": {}}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nonsense) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        misled: Service = create_app(lab.settings(mlflow_tracking_uri=url)).extensions["labstack"]
        misled.follower.sync()
        server.shutdown()
    assert misled.follower.following.registry_error is not None
    assert misled.follower.first_look.is_set()


def test_a_follower_that_cannot_report_goes_on_and_says_so(lab: Lab) -> None:
    service: Service = create_app(lab.settings(follow_interval_seconds=0.1)).extensions["labstack"]
    service.follower.start()
    try:
        assert service.follower.first_look.wait(10)
        service.control.folder.rename(service.control.folder.with_name("elsewhere"))
        wait_until(service.control.folder.exists, 10)  # made again
        shutil.rmtree(service.control.folder)
        service.control.folder.write_text("a file where the folder was")
        wait_until(lambda: "cannot report" in (service.follower.following.registry_error or ""), 10)
        service.control.folder.unlink()
        wait_until(lambda: service.follower.following.errors == {}, 10)
    finally:
        service.follower.stop()


def test_a_model_that_was_not_made_by_the_lab_harms_no_other(service: Service, lab: Lab, model: str) -> None:
    source = str(lab.client.get_experiment("0").artifact_location)
    lab.client.create_model_version(model, source + "/nothing", await_creation_for=0)
    moves.promote(lab.registry, lab.engine, model, 4, reason="foreign")
    service.follower.sync()
    assert model not in service.follower.lineups
    assert model in service.follower.following.load_errors
    assert service.lineup("iris").production.served.version == 1


@pytest.mark.usefixtures("group_writable")
def test_the_cache_is_writable_for_the_group(lab: Lab, tmp_path: Path) -> None:
    create_app(lab.settings(api_cache_dir=tmp_path)).extensions["labstack"].follower.sync()
    modes = {path.is_dir(): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {True: 0o775, False: 0o664}


def test_a_vanished_cache_is_filled_again(service: Service, lab: Lab, model: str) -> None:
    shutil.rmtree(service.settings.api_cache_dir)
    moves.promote(lab.registry, lab.engine, model, 1, reason="first")
    service.follower.sync()
    assert service.follower.lineups[model].production.served.version == 1
    assert len(list(service.settings.api_cache_dir.glob("*/contract.json"))) == 1


def test_predictions_give_no_warnings(service: Service) -> None:
    """A scikit-learn model that was fitted on a frame warns at each array, unless warnings are off."""
    served = service.lineup("iris").production.served
    assert served.predictor.predict(Plan(served.contract).parse([IRIS_ROW])[0]).outputs == ["setosa"]


def test_without_a_registry_a_worker_serves_what_was_served_last(service: Service, lab: Lab) -> None:
    away = f"http://localhost:{free_port()}"
    settings = lab.settings(api_cache_dir=service.settings.api_cache_dir, mlflow_tracking_uri=away)
    cold = create_app(settings)
    follower = cold.extensions["labstack"].follower
    follower.sync()
    assert follower.roles == service.follower.roles
    answer = cold.test_client().post("/predict", json=IRIS_ROW).json
    assert (answer["prediction"]["class"], answer["model"]["version"]) == ("setosa", 1)
    health = cold.test_client().get("/health").json
    assert (health["status"], health["registry"]["reachable"]) == ("degraded", False)
    assert health["models"]["iris"] == {"production": 1}
    info = cold.test_client().get("/model-info").json
    assert info["metrics"] == service.lineup("iris").production.served.metrics


def test_a_version_that_lost_its_role_is_not_remembered(service: Service, lab: Lab, model: str) -> None:
    moves.promote(lab.registry, lab.engine, model, 1, reason="first")
    service.follower.sync()
    assert model in service.follower.roles
    lab.client.delete_registered_model_alias(model, "production")
    service.follower.sync()
    away = f"http://localhost:{free_port()}"
    cold = create_app(lab.settings(api_cache_dir=service.settings.api_cache_dir, mlflow_tracking_uri=away))
    cold.extensions["labstack"].follower.sync()
    assert model not in cold.extensions["labstack"].follower.roles
    assert "iris" in cold.extensions["labstack"].follower.roles


@pytest.mark.parametrize("text", ["", "{", "[]", '[{"record": {}}]', "[1]", '{"a": 1}'])
def test_a_damaged_list_of_served_versions_is_ignored(service: Service, lab: Lab, text: str) -> None:
    (service.settings.api_cache_dir / "served.json").write_text(text)
    away = f"http://localhost:{free_port()}"
    cold = create_app(lab.settings(api_cache_dir=service.settings.api_cache_dir, mlflow_tracking_uri=away))
    cold.extensions["labstack"].follower.sync()
    assert cold.extensions["labstack"].follower.roles == {}


def test_the_delay_before_a_retry_doubles_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("labstack.api.serving.loader.time.monotonic", lambda: now)
    backoff, delays = Backoff(), []
    for _ in range(10):
        assert backoff.is_over()
        backoff.fail("no", 3)
        assert not backoff.is_over()
        failed_at = now
        while not backoff.is_over():
            now += 1
        delays.append(now - failed_at)
    assert delays == [3, 6, 12, 24, 48, 96, 192, 300, 300, 300]
