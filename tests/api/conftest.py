"""Fixtures of the tests of the API: applications and services that run, and versions to serve."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask

from labstack.api.app import create_app
from labstack.api.service import Service
from labstack.api.serving.cache import Cache
from labstack.registry import moves
from labstack.training import config, tracking
from tests.conftest import Lab


@pytest.fixture
def running(lab: Lab, model: str) -> Iterator[Flask]:
    """An application that runs and follows, whose default model is one of the test's own, version 1 in production."""
    moves.promote(lab.registry, lab.engine, model, 1, reason="first")
    app = create_app(lab.settings(default_model_name=model, follow_interval_seconds=600))
    service: Service = app.extensions["labstack"]
    service.control.reset()
    service.start()
    yield app
    service.stop()
    service.control.remove()


@pytest.fixture(scope="session")
def cache(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds both bundled models, fetched and tried."""
    folder = tmp_path_factory.mktemp("cache")
    cache = Cache(lab.settings(api_cache_dir=folder), lab.registry)
    for name in config.names():
        cache.prepare(lab.registry.version(name, 1))
    return folder


@pytest.fixture
def service(lab: Lab, cache: Path, tmp_path: Path) -> Service:
    """A service with a cache of its own that has looked at the registry once."""
    shutil.copytree(cache, tmp_path / "cache")
    app: Flask = create_app(lab.settings(api_cache_dir=tmp_path / "cache"))
    service: Service = app.extensions["labstack"]
    service.follower.sync()
    return service


@pytest.fixture
def trained(lab: Lab, service: Service) -> Iterator[str]:
    """A model with two versions that have files of their own, version 1 in production and followed."""
    name = f"trained_{time.monotonic_ns()}"
    assert [copied(lab, name, stored(lab, "iris", 1)) for _ in range(2)] == [1, 2]
    moves.promote(lab.registry, lab.engine, name, 1, reason="first")
    service.follower.sync()
    assert service.follower.lineups[name].production.served.version == 1
    yield name
    lab.client.delete_registered_model(name)


@pytest.fixture(scope="session")
def narrow(lab: Lab) -> Path:
    """The files of a version that takes fewer features than iris version 1."""
    columns = {"dataset": "iris", "target": "species", "drop": ["petal_width"]}
    folder = stored(lab, "narrow", lab.train("iris", model="narrow", data=columns))
    lab.client.delete_registered_model("narrow")
    return folder


def copied(lab: Lab, model: str, folder: Path) -> int:
    """Make a version of a model of the files in a folder, and of the run of iris version 1; its number."""
    run_id = lab.client.get_model_version("iris", "1").run_id
    logged = lab.client.create_logged_model("0", source_run_id=run_id)
    lab.client.log_model_artifacts(logged.model_id, str(folder))
    lab.client.finalize_logged_model(logged.model_id, "READY")
    return tracking.register(lab.client, model, logged.model_id, str(run_id), {})


def stored(lab: Lab, model: str, version: int) -> Path:
    """The folder of a version's files on the server's disk, for a test to damage."""
    source = str(lab.client.get_model_version(model, str(version)).source).removeprefix("models:/")
    [folder] = (lab.folder / "mlartifacts").rglob(f"{source}/artifacts")
    return folder
