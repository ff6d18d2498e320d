"""Operators and nobody else."""

import json

import pytest

from labstack.api.app import create_app
from labstack.api.service import Service
from tests.conftest import Lab

TOKEN = "a long and random token"  # noqa: S105


@pytest.mark.parametrize("token", [None, "", "a long and random toke", TOKEN + " ", "tökën"])
def test_without_the_token_reload_is_403(lab: Lab, token: str | None) -> None:
    client = create_app(lab.settings(api_admin_token=TOKEN)).test_client()
    headers = {} if token is None else {"X-Admin-Token": token}
    answer = client.post("/admin/reload", headers=headers)
    assert answer.status_code == 403
    assert TOKEN not in answer.text


def test_with_the_token_reload_answers(lab: Lab) -> None:
    client = create_app(lab.settings(api_admin_token=TOKEN)).test_client()
    assert client.post("/admin/reload", headers={"X-Admin-Token": TOKEN}).status_code == 200


def test_on_loopback_without_a_token_reload_is_open(lab: Lab) -> None:
    assert create_app(lab.settings()).test_client().post("/admin/reload").status_code == 200


def test_a_worker_that_lags_is_named(lab: Lab) -> None:
    app = create_app(lab.settings(reload_timeout_seconds=0.05))
    service: Service = app.extensions["labstack"]
    service.follower.sync()
    [state] = service.control.states()
    answer = app.test_client().post("/admin/reload")
    assert answer.status_code == 503
    assert str(state.pid) in json.loads(answer.data)["detail"]
