"""Authentication of operators, and a reload that answers when all workers follow."""

import json
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from labstack.api.app import create_app
from labstack.api.service import Service
from labstack.api.serving.control import STARTING, Control, WorkerState
from labstack.registry import moves
from labstack.registry.roles import Rollout, read_all_roles, read_roles
from tests.conftest import IRIS_ROW, Lab, ask, run_api

TOKEN = "ein langer, zufälliger Schlüssel"  # noqa: S105


def reload(lab: Lab, headers: dict[str, str], **settings: object) -> int:
    """Return the status of a reload by a worker that follows the registry."""
    app = create_app(lab.settings(follow_interval_seconds=600, **settings))
    service: Service = app.extensions["labstack"]
    service.start()
    try:
        return app.test_client().post("/admin/reload", headers=headers).status_code
    finally:
        service.stop()


@pytest.mark.parametrize("token", [None, "", "ein langer", TOKEN + " ", "x" * 10_000])
def test_without_the_token_reload_is_403(lab: Lab, token: str | None) -> None:
    headers = {} if token is None else {"X-Admin-Token": token.encode().decode("latin-1")}
    assert reload(lab, headers, api_admin_token=TOKEN) == 403


def test_with_the_token_reload_answers(lab: Lab) -> None:
    headers = {"X-Admin-Token": TOKEN.encode().decode("latin-1"), "Origin": "http://elsewhere.example"}
    assert reload(lab, headers, api_admin_token=TOKEN) == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "127.0.0.1:5002"}, 200),
        ({"Host": "localhost:5002", "Origin": "http://localhost:5002"}, 200),
        ({"Host": "localhost:5002", "Origin": "http://evil.example"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"X-Forwarded-For": "127.0.0.1"}, 403),
        ({"X-Forwarded-For": ""}, 403),
        ({"X-Real-IP": "127.0.0.1"}, 403),
        ({"Forwarded": "for=127.0.0.1"}, 403),
        ({"Via": "1.1 proxy"}, 403),
    ],
)
def test_without_a_token_only_this_machines_own_calls_are_answered(
    lab: Lab, headers: dict[str, str], status: int
) -> None:
    assert reload(lab, headers) == status


@pytest.mark.parametrize(
    ("peer", "status"),
    [
        ("127.0.0.1", 409),
        ("127.8.8.8", 409),
        ("::1", 409),
        ("::ffff:127.0.0.1", 409),
        ("172.17.0.1", 403),
        ("::ffff:172.17.0.1", 403),
        ("fe80::1%eth0", 403),
        ("", 403),  # a unix socket's
    ],
)
def test_without_a_token_the_peers_address_decides(lab: Lab, peer: str, status: int) -> None:
    client = create_app(lab.settings()).test_client()
    answer = client.post("/rollback", json={"model": "nobody"}, environ_base={"REMOTE_ADDR": peer})
    assert answer.status_code == status


@pytest.mark.parametrize("path", ["/rollback", "/accept-next-model", "/admin/reload", "/data", "/console/confirm"])
def test_where_the_api_listens_on_all_addresses_operators_need_a_token(lab: Lab, path: str) -> None:
    """In a container any machine may be the peer, and may look like this one."""
    client = create_app(lab.settings(api_host="0.0.0.0")).test_client()  # noqa: S104
    answer = client.open(path, method="GET" if path in ("/data", "/console/confirm") else "POST")
    assert answer.status_code == 403
    assert "API_ADMIN_TOKEN" in answer.text
    assert path == "/console/confirm" or json.loads(answer.data)["type"] == "urn:labstack:problem:operators-off"
    page = client.get("/console").text
    assert "endpoints are off" in page
    assert "API_ADMIN_TOKEN" in page
    assert "/console/confirm" not in page


def test_no_header_makes_a_request_local(lab: Lab, tmp_path: Path) -> None:
    """With gunicorn, whose peer is loopback here: a header can only take rights away."""
    with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri) as api:
        for name in ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via"):
            assert ask(f"{api.url}/data", headers={name: "203.0.113.7"}).status == 403
        assert ask(f"{api.url}/data").status == 200


@pytest.fixture
def service(lab: Lab, model: str) -> Service:
    """A worker that has read the registry once, serves version 1 of its model, and reads again only on sync()."""
    moves.promote(lab.registry, lab.engine, model, 1, reason="first")
    settings = lab.settings(default_model_name=model, reload_timeout_seconds=0.3)
    service: Service = create_app(settings).extensions["labstack"]
    service.follower.sync()
    return service


def test_a_worker_that_lags_is_named(lab: Lab, service: Service) -> None:
    app = create_app(service.settings)
    [state] = service.control.states()
    answer = app.test_client().post("/admin/reload")
    assert answer.status_code == 503
    assert str(state.pid) in json.loads(answer.data)["detail"]


def test_a_worker_that_has_not_looked_yet_is_waited_for(lab: Lab, service: Service) -> None:
    service.control.report(WorkerState(4242, STARTING, {}))
    app = create_app(service.settings)
    threading.Timer(0.05, service.follower.sync).start()
    assert "4242" in json.loads(app.test_client().post("/admin/reload").data)["detail"]


def test_without_any_worker_there_is_no_success(lab: Lab, service: Service) -> None:
    service.control.remove()
    assert create_app(service.settings).test_client().post("/admin/reload").status_code == 503


def test_a_move_that_a_worker_does_not_follow_is_shown_as_done(lab: Lab, service: Service, model: str) -> None:
    moves.start_canary(lab.registry, lab.engine, model, 2, Rollout(0.5, "split"), reason="try")
    client = create_app(service.settings).test_client()
    page = client.get("/console/confirm", query_string={"move": "reject", "model": model}).text
    [roles] = re.findall(r'name="roles" value="([^"]*)"', page)
    answer = client.post("/console/move", data={"move": "reject", "model": model, "roles": roles})
    assert answer.status_code == 503
    assert "Done, but" in answer.text
    assert "The registry has moved the role, but not every worker follows yet" in answer.text
    after = read_roles(lab.registry, model)
    assert (after.production, after.canary) == (1, None)
    seen = "/".join(map(str, (after.production, after.canary, after.previous, after.rollout)))
    answer = client.post("/console/move", data={"move": "reload", "model": model, "roles": seen})
    assert answer.status_code == 503
    assert "Not done" in answer.text


def test_a_look_that_began_before_the_reload_does_not_count(
    lab: Lab, service: Service, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A promotion and its reload that come after the roles were read are not followed by that look."""
    real = read_all_roles

    def slowly(client: object) -> object:
        roles = real(lab.registry)
        if not raised:
            moves.promote(lab.registry, lab.engine, model, 2, reason="meanwhile")
            raised.append(service.control.raise_desired())
        return roles

    raised: list[int] = []
    monkeypatch.setattr("labstack.api.serving.follower.read_all_roles", slowly)
    service.follower.sync()
    [state] = service.control.states()
    assert state.generation < raised[0]
    service.follower.sync()
    [state] = service.control.states()
    assert (state.generation, state.roles[model]) == (raised[0], {"production": 2})


def test_a_start_is_in_the_control_folder_before_the_first_look(
    lab: Lab, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def look(_client: object) -> dict[str, object]:
        seen.extend(state.generation for state in starter.control.states())
        return {}

    monkeypatch.setattr("labstack.api.serving.follower.read_all_roles", look)
    starter: Service = create_app(lab.settings(api_port=4)).extensions["labstack"]
    starter.start()
    starter.stop()
    assert seen[0] == STARTING


def test_a_worker_serves_a_promoted_version_after_the_reload(lab: Lab, model: str) -> None:
    moves.promote(lab.registry, lab.engine, model, 1, reason="first")
    app = create_app(lab.settings(default_model_name=model, follow_interval_seconds=600))
    service: Service = app.extensions["labstack"]
    service.start()
    try:
        moves.promote(lab.registry, lab.engine, model, 2, reason="second")
        assert app.test_client().post("/admin/reload").json["workers"][0]["models"][model] == {"production": 2}
        assert app.test_client().post("/predict", json=IRIS_ROW).json["model"]["version"] == 2
    finally:
        service.stop()


def test_wrong_tokens_from_one_address_are_limited_and_right_ones_are_not(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = time.monotonic() + 1000
    monkeypatch.setattr("labstack.api.serving.control.time.monotonic", lambda: clock)
    client = create_app(lab.settings(api_admin_token="right")).test_client()  # noqa: S106

    def answered(token: str, address: str = "10.0.0.1") -> Any:
        headers = {"X-Admin-Token": token} if token else {}
        return client.post("/reject-next-model", headers=headers, environ_base={"REMOTE_ADDR": address})

    def status(token: str, address: str = "10.0.0.1") -> int:
        return int(answered(token, address).status_code)

    assert [status("") for _ in range(20)] == [403] * 20  # a request without a token is no guess
    assert [status("wrong") for _ in range(10)] == [403] * 10
    clock += 20
    refused = answered("wrong")
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "40")
    assert status("right") == 409
    assert status("wrong", "10.0.0.2") == 403
    clock += 41
    assert status("wrong") == 403
    assert [status("wrong", f"2001:db8:0:1::{number}") for number in range(11)] == [403] * 10 + [429]
    assert status("wrong", "2001:db8:0:2::1") == 403
    assert [status("wrong", "::ffff:10.9.9.9") for _ in range(10)] + [status("wrong", "10.9.9.9")] == [403] * 10 + [429]


def test_a_sign_in_is_limited_likewise(lab: Lab) -> None:
    client = create_app(lab.settings(api_admin_token="right")).test_client()  # noqa: S106
    answers = [client.post("/console/sign-in", data={"token": "wrong"}) for _ in range(11)]
    assert [answer.status_code for answer in answers] == [403] * 10 + [429]
    assert 0 < int(answers[-1].headers["Retry-After"]) <= 60
    assert client.post("/console/sign-in", data={"token": "right"}).status_code == 303


def test_wrong_tokens_from_many_addresses_take_bounded_space(tmp_path: Path) -> None:
    control = Control(tmp_path / "control")
    for number in range(20_000):
        control.count_wrong_token(number.to_bytes(4, "big"), 60)
    assert sum(path.stat().st_size for path in control.folder.iterdir()) < 100_000


def test_workers_count_wrong_tokens_together_and_let_the_right_one_in(lab: Lab, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"api_workers": 3, "api_admin_token": "right", "mlflow_tracking_uri": lab.tracking_uri}
    with run_api(tmp_path, **settings) as api, ThreadPoolExecutor(8) as attackers:
        guesses = [
            attackers.submit(ask, f"{api.url}/data", headers={"X-Admin-Token": "right" if right else f"wrong {number}"})
            for number in range(120)
            for right in ([False, True] if number % 20 == 19 else [False])
        ]
        statuses = Counter(guess.result().status for guess in guesses)
    assert statuses == {403: 10, 429: 110, 200: 6}
