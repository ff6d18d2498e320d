"""Versions and registries that mislead: what is served goes on, and health says what is wrong."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from labstack.api.app import create_app
from labstack.api.service import Service
from labstack.api.serving.cache import Cache
from labstack.model.contract import Contract, Matrix
from labstack.model.predictor import Predictions
from labstack.registry import moves, trial
from labstack.registry.client import NotThereError, RegistryFailedError, Version
from labstack.registry.roles import SCHEMA_CHANGE_TAG, Roles, read_roles
from tests.api.conftest import copied, stored
from tests.conftest import IRIS_ROW, Lab, free_port, run_mlflow
from tests.hostile import ENDLESS_ABOVE, endless, put
from tests.registry.test_client import Script


def restarted(service: Service, **changes: Any) -> Service:
    """A worker that starts with the cache of another one, and has looked at the registry once."""
    started: Service = create_app(service.settings.model_copy(update=changes)).extensions["labstack"]
    started.follower.sync()
    return started


def health(service: Service) -> dict[str, Any]:
    app = create_app(service.settings)
    app.extensions["labstack"] = service
    with app.test_client() as client:
        return dict(client.get("/health").json or {})


@pytest.fixture
def nothing() -> Iterator[str]:
    """The address of a server that answers everything with an empty object and success."""
    script = type("Nothing", (Script,), {"answers": [(200, b"{}")] * 1_000, "requests": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), script) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_registry_that_answers_everything_with_nothing_does_not_stop_serving(
    service: Service, nothing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = (service.settings.api_cache_dir / "served.json").read_text()
    monkeypatch.setattr(service.client, "url", nothing)
    before = service.follower.lineups
    service.follower.sync()
    assert service.follower.lineups == before
    assert "is not MLflow" in (service.follower.following.registry_error or "")
    assert health(service)["registry"]["reachable"] is False
    started = restarted(service, mlflow_tracking_uri=nothing)
    assert started.follower.roles == service.follower.roles
    assert (service.settings.api_cache_dir / "served.json").read_text() == noted


def test_a_registry_that_was_emptied_does_not_stop_serving(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_mlflow(tmp_path, free_port()) as emptied:
        monkeypatch.setattr(service.client, "url", emptied.url)
        for worker in (service, restarted(service, mlflow_tracking_uri=emptied.url)):
            worker.follower.sync()
            assert worker.follower.roles["iris"] == {"production": 1}
            assert "as if it had been emptied" in worker.follower.following.load_errors["iris"]
            assert health(worker)["status"] == "degraded"
            assert "iris" in {record.model for record, _ in Cache(service.settings, service.client).recall()}


def test_an_emptied_registry_where_the_model_is_made_anew_without_production_does_not_stop_serving(
    service: Service, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_id: str) -> None:
        raise NotThereError("no such run")

    copied(lab, "begun_anew", stored(lab, "iris", 1))
    lab.registry.set_alias("begun_anew", "production", 1)
    service.follower.sync()
    lab.registry.delete_alias("begun_anew", "production")
    with monkeypatch.context() as patch:
        patch.setattr(service.client, "run", run)
        service.follower.sync()
        assert service.follower.roles["begun_anew"] == {"production": 1}
        assert "as if it had been emptied" in service.follower.following.load_errors["begun_anew"]
    service.follower.sync()
    assert "begun_anew" not in service.follower.roles, "it was taken out of production in the registry that it is from"
    lab.client.delete_registered_model("begun_anew")


def test_a_short_failure_of_the_registry_keeps_the_copy(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_of(_version: Version) -> None:
        raise RegistryFailedError("once")

    started: Service = create_app(service.settings).extensions["labstack"]
    monkeypatch.setattr(started.client, "run_of", run_of)
    started.follower.sync()
    assert started.follower.roles == service.follower.roles, "from the cache"
    assert "once" in started.follower.following.load_errors["iris"]


def test_a_deleted_model_is_not_served(service: Service, lab: Lab) -> None:
    copied(lab, "to_be_deleted", stored(lab, "iris", 1))
    lab.registry.set_alias("to_be_deleted", "production", 1)
    service.follower.sync()
    assert "to_be_deleted" in service.follower.roles
    lab.client.delete_registered_model("to_be_deleted")
    service.follower.sync()
    assert "to_be_deleted" not in service.follower.roles
    assert "to_be_deleted" not in service.follower.following.load_errors
    assert "to_be_deleted" not in (service.settings.api_cache_dir / "served.json").read_text()


def test_production_that_breaks_callers_is_not_followed_when_it_was_set_by_hand(
    service: Service, lab: Lab, trained: str, narrow: Path
) -> None:
    assert copied(lab, trained, narrow) == 3
    lab.registry.set_alias(trained, "production", 3)
    for worker in (service, restarted(service)):
        worker.follower.sync()
        assert worker.follower.lineups[trained].production.served.version == 1
        assert "it takes no field 'petal_width'" in worker.follower.following.load_errors[trained]
        assert any("petal_width" in error for error in health(worker)["errors"])
    lab.registry.set_version_tag(trained, 3, SCHEMA_CHANGE_TAG, "said by hand")
    service.control.raise_desired()
    service.follower.sync()
    assert service.follower.lineups[trained].production.served.version == 3


def test_a_change_of_the_schema_that_gates_allowed_is_followed_and_taken_back(
    service: Service, lab: Lab, trained: str, narrow: Path
) -> None:
    assert copied(lab, trained, narrow) == 3
    lab.registry.set_version_tag(trained, 3, SCHEMA_CHANGE_TAG, "allowed by its gates")
    lab.registry.set_alias(trained, "production", 3)
    lab.registry.set_alias(trained, "previous", 1)
    service.follower.sync()
    assert service.follower.lineups[trained].production.served.version == 3
    moves.rollback(lab.registry, lab.engine, trained, reason="wide again")
    service.follower.sync()
    assert service.follower.lineups[trained].production.served.version == 1
    assert service.follower.following.errors == {}


def test_a_worker_whose_memory_is_older_than_the_last_change_of_the_schema_follows(
    service: Service, lab: Lab, trained: str, narrow: Path
) -> None:
    copied(lab, trained, narrow)
    copied(lab, trained, narrow)
    for number in (3, 4):
        moves.promote(lab.registry, lab.engine, trained, number, reason="while the API was down")
    service.follower.sync()
    assert service.follower.lineups[trained].production.served.version == 4


def no_end(folder: Path) -> None:
    put(folder, endless(4, 3, always=True))


def one_class_more(folder: Path) -> None:
    contract = json.loads((folder / "contract.json").read_text())
    contract["reference"] = None
    contract["classes"].append("tulip")
    (folder / "contract.json").write_text(json.dumps(contract))


def many_features(folder: Path) -> None:
    contract = json.loads((folder / "contract.json").read_text())
    contract["features"] += [{"name": f"feature {number}"} for number in range(10_000)]
    (folder / "contract.json").write_text(json.dumps(contract))


def another_task(folder: Path) -> None:
    contract = json.loads((folder / "contract.json").read_text())
    sample = contract["sample"] | {"output": 1.0}
    changed = {"task": "regression", "classes": [], "reference": None, "sample": sample}
    (folder / "contract.json").write_text(json.dumps(contract | changed))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_end, "within 3 seconds"),
        (one_class_more, "is needed"),
        (many_features, "at most 10000 items"),
        (another_task, "is needed"),
    ],
)
def test_a_version_that_cannot_be_served_replaces_none(
    service: Service, lab: Lab, trained: str, damage: Callable[[Path], None], message: str
) -> None:
    damage(stored(lab, trained, 2))
    worker = restarted(service, model_load_seconds=3.0 if damage is no_end else 60.0)
    lab.registry.set_alias(trained, "production", 2)
    worker.follower.sync()
    assert worker.follower.lineups[trained].production.served.version == 1
    assert message in worker.follower.following.load_errors[trained]
    assert worker.follower.lineups["iris"].production.served.version == 1
    assert worker.follower.following.registry_error is None
    assert health(worker)["status"] == "degraded"


def test_an_endless_prediction_is_ended_and_counts_as_failed(
    service: Service, lab: Lab, trained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(stored(lab, trained, 2), endless(4, 3, always=False), sample={"input": IRIS_ROW, "output": "setosa"})
    lab.registry.set_alias(trained, "production", 2)
    app = create_app(service.settings.model_copy(update={"prediction_seconds": 0.5}))
    follower = app.extensions["labstack"].follower
    follower.sync()
    served = follower.lineups[trained].production.served
    assert (served.version, served.predictor.is_quick) == (2, True)
    url = f"/models/{trained}/predict"
    calls: list[int] = []
    real: Callable[[Matrix], Predictions] = served.predictor.predict

    def predict(matrix: Matrix) -> Predictions:
        calls.append(len(matrix))
        return real(matrix)

    monkeypatch.setattr(served.predictor, "predict", predict)
    failed = app.test_client().post(url, json=IRIS_ROW | {"sepal_length": 2 * ENDLESS_ABOVE})
    assert (failed.status_code, failed.json["type"]) == (500, "urn:labstack:problem:prediction")
    assert (calls, served.predictor.is_quick) == ([1], False), "it was not tried twice"
    assert app.test_client().post(url, json=IRIS_ROW).status_code == 200


def test_workers_that_start_together_fetch_and_try_a_version_once(
    service: Service, lab: Lab, trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Path] = []
    real = trial.run

    def run(folder: Path, settings: Any) -> None:
        tried.append(folder)
        real(folder, settings)

    monkeypatch.setattr(trial, "run", run)
    settings = lab.settings(api_cache_dir=tmp_path / "shared")
    record = lab.registry.version(trained, 1)
    caches = [Cache(settings, lab.registry) for _ in range(3)]
    threads = [threading.Thread(target=cache.prepare, args=(record,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tried) == 1
    assert Contract.read(caches[0].folder(record)).target == "species"


def test_the_cache_evicts_the_least_recently_used_version(service: Service, lab: Lab, trained: str) -> None:
    cache = Cache(service.settings.model_copy(update={"model_cache_bytes": 1}), lab.registry)
    first, second = (lab.registry.version(trained, number) for number in (1, 2))
    served = cache.folder(lab.registry.version("iris", 1))
    os.utime(cache.prepare(second), (0, 0))
    old = lab.registry.version("student_exam", 1)
    third = lab.registry.version(trained, copied(lab, trained, stored(lab, "iris", 1)))
    cache.prepare(third)
    assert not cache.folder(second).exists()
    assert [cache.folder(record).exists() for record in (first, old)] == [True, True], "these are served"
    assert served.exists()


def test_remains_of_killed_downloads_are_removed_at_the_start(service: Service, lab: Lab) -> None:
    folder = service.settings.api_cache_dir
    left, busy = folder / f"{'0' * 32}.new", folder / f"{'1' * 32}.new"
    for path in (left, busy):
        path.mkdir()
        (path / "model.onnx").write_bytes(b"half")
    cache = Cache(service.settings, lab.registry)
    with cache._lock(busy.with_suffix("")):
        cache.clean()
    assert [left.exists(), busy.exists()] == [False, True]


def test_a_follower_that_hangs_is_a_fault(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    assert health(service)["errors"] == []
    now = time.time()
    monkeypatch.setattr("labstack.api.health.time.time", lambda: now + 60)
    shown = health(service)
    assert (shown["status"], shown["registry"]["reachable"]) == ("degraded", False)
    assert "has not followed the registry" in shown["errors"][0]
    monkeypatch.undo()
    service.follower.loader.loading = ("version 7 of 'iris'", time.monotonic() - 60)
    assert health(service)["errors"] == [f"Worker {os.getpid()} has been loading version 7 of 'iris' for 60 seconds."]


def test_a_command_moves_no_role_to_a_version_that_cannot_be_loaded(lab: Lab, trained: str) -> None:
    put(stored(lab, trained, 2), endless(4, 3, always=True))
    for arguments in (("promote", trained, "2", "--force"), ("canary", "start", trained, "2")):
        refused = lab.run(*arguments, model_load_seconds=2)
        assert (refused.returncode, "was not loaded and tried within 2 seconds" in refused.stderr) == (1, True), refused
    assert read_roles(lab.registry, trained) == Roles(production=1)
    lab.registry.set_alias(trained, "previous", 2)
    refused = lab.run("rollback", trained, model_load_seconds=2)
    assert (refused.returncode, "within 2 seconds" in refused.stderr) == (1, True), refused
    assert read_roles(lab.registry, trained).production == 1


def test_promoting_by_hand_keeps_to_the_contract_unless_forced(lab: Lab, trained: str, narrow: Path) -> None:
    assert copied(lab, trained, narrow) == 3
    lab.registry.set_version_tag(trained, 3, "labstack.gates", "passed")
    refused = lab.run("promote", trained, "3")
    assert (refused.returncode, "cannot be production: it takes no field 'petal_width'" in refused.stderr) == (
        1,
        True,
    ), refused
    assert read_roles(lab.registry, trained).production == 1
    assert lab.run("promote", trained, "3", "--force").returncode == 0
    assert read_roles(lab.registry, trained) == Roles(production=3, previous=1)
