"""What the tests of the API share: an application that runs."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask

from labstack import registry
from labstack.api.app import create_app
from labstack.api.service import Service
from tests.conftest import Lab


@pytest.fixture
def running(lab: Lab, model: str) -> Iterator[Flask]:
    """An application that runs and follows, whose default model is one of the test's own, version 1 in production."""
    registry.promote(lab.registry, lab.engine, model, 1, reason="first")
    app = create_app(lab.settings(default_model_name=model, follow_interval_seconds=600))
    service: Service = app.extensions["labstack"]
    service.control.reset()
    service.start()
    yield app
    service.stop()


@pytest.fixture
def service(lab: Lab, tmp_path: Path) -> Service:
    """A service with a cache of its own that has looked at the registry once."""
    app: Flask = create_app(lab.settings(api_cache_dir=tmp_path / "cache"))
    service: Service = app.extensions["labstack"]
    service.follower.sync()
    return service


@pytest.fixture
def trained(lab: Lab, service: Service) -> Iterator[str]:
    """A model with two versions that have files of their own, version 1 in production and followed."""
    name = f"trained_{time.monotonic_ns()}"
    assert [lab.train("iris", model=name), lab.train("iris", model=name)] == [1, 2]
    service.follower.sync()
    assert service.follower.lineups[name].production.served.version == 1
    yield name
    lab.client.delete_registered_model(name)


def stored(lab: Lab, model: str, version: int) -> Path:
    """The folder of a version's files on the server's disk, for a test to damage."""
    source = str(lab.client.get_model_version(model, str(version)).source).removeprefix("models:/")
    [folder] = (lab.folder / "mlartifacts").rglob(f"{source}/artifacts")
    return folder
