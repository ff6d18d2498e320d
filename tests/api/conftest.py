"""What the tests of the API share: an application that runs."""

from collections.abc import Iterator

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
    service.control.remove()
