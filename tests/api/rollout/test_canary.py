"""A canary: the requests that it answers, its predictions in shadow, and the moves of its role."""

import json
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from scipy import stats

from labstack.api import metrics
from labstack.api.service import Service
from labstack.model.contract import Contract, Feature, Plan
from labstack.registry import moves
from labstack.registry.roles import Rollout, read_roles
from labstack.store.audit import role_moves
from tests.api.conftest import stored
from tests.conftest import IRIS_ROW, Lab, wait_until

ALL = Rollout(1, "split")


@pytest.fixture
def app(running: Flask) -> Flask:
    return running


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def answered(client: FlaskClient, key: str | None = None, row: dict[str, float] = IRIS_ROW) -> dict[str, Any]:
    headers = {} if key is None else {"X-Canary-Key": key}
    answer = client.post("/predict", json=row, headers=headers)
    assert answer.status_code == 200, answer.text
    answered_by: dict[str, Any] = answer.json["model"]
    return answered_by


def test_a_canary_starts_is_accepted_and_rolled_back(client: FlaskClient, lab: Lab, model: str) -> None:
    started = client.post("/update-model", json={"version": 2, "weight": 1, "reason": "it looks good"})
    assert started.status_code == 200, started.text
    assert (started.json["production"], started.json["canary"]) == (1, {"version": 2, "weight": 1, "mode": "split"})
    assert started.json["workers"][0]["models"][model] == {"production": 1, "canary": 2}
    assert (answered(client)["version"], answered(client)["role"]) == (2, "canary")
    accepted = client.post("/accept-next-model")
    assert (accepted.json["production"], accepted.json["canary"], accepted.json["previous"]) == (2, None, 1)
    assert (answered(client)["version"], answered(client)["role"]) == (2, "production")
    assert client.post("/rollback", json={"model": model}).json["production"] == 1
    assert answered(client)["version"] == 1
    rows = [(move.role, move.to_version, move.reason) for move in reversed(role_moves(lab.engine, model))]
    assert ("canary", 2, "it looks good") in rows
    assert rows[-2:] == [("production", 1, "rollback"), ("previous", 2, "rollback")]
    assert {move.actor for move in role_moves(lab.engine, model)[:-1]} == {"operator at 127.0.0.1"}


@pytest.mark.parametrize("path", ["/update-model", "/accept-next-model", "/reject-next-model", "/rollback"])
def test_a_model_without_a_name_is_not_the_default_one(client: FlaskClient, path: str) -> None:
    answer = client.post(path, json={"model": "", "version": 2} if path == "/update-model" else {"model": ""})
    assert (answer.status_code, answer.json["errors"][0]["field"]) == (422, "model")


def test_a_canary_is_reweighted_and_rejected(client: FlaskClient, model: str) -> None:
    assert client.post("/update-model", json={"version": 2}).json["canary"]["weight"] == 0.1
    assert client.post("/update-model", json={"version": 2, "weight": 0.5}).json["canary"]["weight"] == 0.5
    assert client.get("/canary-status").json["canary"]["weight"] == 0.5
    rejected = client.post("/reject-next-model")
    assert (rejected.json["production"], rejected.json["canary"]) == (1, None)
    assert client.get("/canary-status").json["canary"] is None


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"version": 2, "weight": 1.01}, 422, "weight"),
        ({"version": 2, "weight": -0.1}, 422, "weight"),
        ({"version": 2, "weight": "half"}, 422, "weight"),
        ({"version": 2, "mode": "both"}, 422, "mode"),
        ({"version": "2"}, 422, "version"),
        ({"version": 0}, 422, "version"),
        ({"version": 2, "more": 1}, 422, "more"),
        ({}, 422, "version"),
        ([], 422, "body"),
        ({"version": 1}, 409, "is production"),
        ({"version": 99}, 404, "no version 99"),
        ({"version": 2, "model": "nobody"}, 404, "nobody"),
    ],
)
def test_what_cannot_be_a_canary_is_refused(client: FlaskClient, body: Any, status: int, field: str) -> None:
    answer = client.post("/update-model", json=body)
    assert (answer.status_code, answer.content_type) == (status, "application/problem+json")
    problem = json.loads(answer.data)
    assert field in (problem["detail"] if status != 422 else problem["errors"][0]["field"])


def test_a_body_is_needed_and_must_be_json(client: FlaskClient) -> None:
    assert client.post("/update-model").status_code == 415
    assert client.post("/update-model", data="{", content_type="application/json").status_code == 400
    assert client.post("/rollback", data="x", content_type="text/plain").status_code == 415


@pytest.mark.parametrize("path", ["/accept-next-model", "/reject-next-model", "/rollback"])
def test_without_a_canary_or_a_previous_version_a_move_is_refused(client: FlaskClient, path: str) -> None:
    answer = client.post(path)
    assert (answer.status_code, json.loads(answer.data)["type"]) == (409, "urn:labstack:problem:refused")


def test_a_second_canary_is_refused(client: FlaskClient) -> None:
    assert client.post("/update-model", json={"version": 2}).status_code == 200
    answer = client.post("/update-model", json={"version": 3})
    assert (answer.status_code, "the canary already" in answer.text) == (409, True)


def test_a_version_that_breaks_the_contract_is_no_canary(client: FlaskClient, lab: Lab, app: Flask, model: str) -> None:
    """Neither through the API nor by an alias that is set in MLflow's page."""
    name = f"{model}_trained"
    lab.train("iris", model=name)
    version = lab.train("iris", model=name)
    folder = stored(lab, name, version)
    contract = Contract.read(folder)
    contract.model_copy(update={"features": (*contract.features, Feature(name="colour"))}).write(folder)
    service: Service = app.extensions["labstack"]
    service.follower.sync()
    answer = client.post("/update-model", json={"model": name, "version": version})
    assert answer.status_code == 409, answer.text
    assert "colour" in answer.text
    assert read_roles(lab.registry, name).canary is None
    lab.registry.set_alias(name, "canary", version)
    service.follower.sync()
    assert service.follower.roles[name] == {"production": 1}
    assert "colour" in service.follower.following.load_errors[name]
    lab.client.delete_registered_model(name)


def test_a_damaged_canary_is_refused_with_the_reason(client: FlaskClient, lab: Lab, app: Flask, model: str) -> None:
    name = f"{model}_damaged"
    lab.train("iris", model=name)
    version = lab.train("iris", model=name)
    (stored(lab, name, version) / "model.onnx").write_bytes(b"damaged")
    app.extensions["labstack"].follower.sync()
    answer = client.post("/update-model", json={"model": name, "version": version})
    assert answer.status_code == 409
    assert "not the file that training logged" in answer.text
    assert read_roles(lab.registry, name).canary is None
    lab.client.delete_registered_model(name)


def test_a_registry_that_is_away_makes_no_move(lab: Lab, client: FlaskClient, app: Flask, model: str) -> None:
    service: Service = app.extensions["labstack"]
    service.client.url = "http://localhost:1"
    for path, body in (("/update-model", {"version": 2}), ("/rollback", {})):
        answer = client.post(path, json=body)
        assert (answer.status_code, json.loads(answer.data)["type"]) == (503, "urn:labstack:problem:unavailable")
    assert answered(client)["version"] == 1


def test_the_share_of_a_canary_is_its_weight_and_each_key_stays_with_its_version(
    app: Flask, lab: Lab, model: str
) -> None:
    follower = app.extensions["labstack"].follower
    seen: dict[float, set[str]] = {}
    for weight in (0.0, 0.1, 0.5, 1.0):
        moves.start_canary(lab.registry, lab.engine, model, 2, Rollout(weight, "split"), reason="try")
        follower.sync()
        lineup = follower.lineups[model]
        keys = [f"user-{number}" for number in range(5000)]
        seen[weight] = {key for key in keys if lineup.pick(key.encode()).name == "canary"}
        assert seen[weight] == {key for key in keys if lineup.pick(key.encode()).name == "canary"}
        interval = stats.binom.interval(0.9999, len(keys), weight)
        assert interval[0] <= len(seen[weight]) <= interval[1]
    assert seen[0.0] < seen[0.1] < seen[0.5] < seen[1.0]  # who has the canary keeps it when its weight grows


def test_another_canary_gets_other_callers(app: Flask, lab: Lab, model: str) -> None:
    follower = app.extensions["labstack"].follower
    name = f"{model}_trained"
    keys = [f"user-{number}".encode() for number in range(1000)]
    for _ in range(3):
        lab.train("iris", model=name)
    chosen = []
    for version in (2, 3):
        moves.start_canary(lab.registry, lab.engine, name, version, Rollout(0.5, "split"), reason="try")
        follower.sync()
        chosen.append({key for key in keys if follower.lineups[name].pick(key).name == "canary"})
        moves.stop_canary(lab.registry, lab.engine, name, reason="enough")
    assert 150 < len(chosen[0] & chosen[1]) < 350
    lab.client.delete_registered_model(name)


def test_without_a_header_the_body_decides(app: Flask, client: FlaskClient, lab: Lab, model: str) -> None:
    moves.start_canary(lab.registry, lab.engine, model, 2, Rollout(0.5, "split"), reason="try")
    app.extensions["labstack"].follower.sync()
    rows = [IRIS_ROW | {"sepal_length": 5 + number / 100} for number in range(40)]
    first = [answered(client, row=row)["role"] for row in rows]
    assert first == [answered(client, row=row)["role"] for row in rows]
    assert set(first) == {"production", "canary"}
    assert len({answered(client, key="one", row=row)["role"] for row in rows}) == 1
    assert {answered(client, key=f"k{number}")["role"] for number in range(40)} == {"production", "canary"}


def test_a_shadow_predicts_too_and_is_counted(app: Flask, client: FlaskClient, lab: Lab, model: str) -> None:
    assert client.post("/update-model", json={"version": 2, "weight": 1, "mode": "shadow"}).status_code == 200
    for _ in range(5):
        assert answered(client)["role"] == "production"

    def shadow() -> dict[str, int]:
        counts: dict[str, int] = client.get("/canary-status").json["canary"]["shadow"]
        return counts

    wait_until(lambda: shadow()["agreed"] == 5, 10, "all five agreed")
    assert shadow() == {"agreed": 5, "differed": 0, "failed": 0}
    status = client.get("/canary-status").json
    assert (status["production"]["requests"], status["canary"]["requests"]) == (5, 0)


def test_a_shadow_with_its_columns_in_another_order_predicts_the_same_row(
    app: Flask, client: FlaskClient, lab: Lab, model: str
) -> None:
    name = f"{model}_turned"
    lab.train("iris", model=name)
    version = lab.train("iris", model=name)
    folder = stored(lab, name, version)
    contract = Contract.read(folder)
    app.extensions["labstack"].follower.sync()
    assert client.post("/update-model", json={"model": name, "version": version, "weight": 1, "mode": "shadow"}).json
    canary = app.extensions["labstack"].follower.lineups[name].canary.served
    seen: list[Any] = []
    plan = Plan(contract.model_copy(update={"features": contract.features[::-1]}))
    object.__setattr__(canary, "plan", plan)
    object.__setattr__(canary.predictor, "predict", lambda matrix: seen.append(matrix.tolist()))  # and answers nothing
    client.post(f"/models/{name}/predict", json=IRIS_ROW)
    client.post(f"/v2/models/{name}/versions/{version}/infer", json={"inputs": []})
    wait_until(lambda: seen, 10, "the canary predicted")
    assert seen == [[list(IRIS_ROW.values())[::-1]]]
    lab.client.delete_registered_model(name)


def test_a_version_that_was_not_tried_is_not_accepted(app: Flask, client: FlaskClient, lab: Lab, model: str) -> None:
    assert client.post("/update-model", json={"version": 2}).status_code == 200
    lab.client.set_registered_model_alias(model, "canary", "3")
    answer = client.post("/accept-next-model")
    assert (answer.status_code, "was not tried" in answer.text) == (409, True)


def test_a_move_is_not_held_up_by_what_is_wrong_with_another_model(
    client: FlaskClient, lab: Lab, app: Flask, model: str
) -> None:
    name = f"{model}_broken"
    lab.train("iris", model=name)
    (stored(lab, name, 1) / "model.onnx").write_bytes(b"damaged")
    try:
        assert client.post("/update-model", json={"version": 2}).status_code == 200
        assert client.post("/admin/reload").status_code == 503
    finally:
        lab.client.delete_registered_model(name)


def test_a_shadow_that_fails_or_differs_is_counted_and_harms_no_caller(
    app: Flask, client: FlaskClient, lab: Lab, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.post("/update-model", json={"version": 2, "weight": 1, "mode": "shadow"}).status_code == 200
    canary = app.extensions["labstack"].follower.lineups[model].canary.served
    outputs = iter([["virginica"], None])

    def predict(_: Any) -> Any:
        output = next(outputs)
        if output is None:
            raise ValueError("broken")
        return replace(type(canary.predictor).predict(canary.predictor, _), outputs=output)

    monkeypatch.setattr(canary.predictor, "predict", predict)
    for _ in range(2):
        assert answered(client)["role"] == "production"
    labels = {"model": model, "version": "2"}
    wait_until(lambda: metrics.total(metrics.shadowed, **labels).get(("failed",)) == 1, 10, "the failure is counted")
    assert metrics.total(metrics.shadowed, **labels)["differed",] == 1


def test_where_a_canary_fails_production_answers_and_the_failure_is_counted(
    app: Flask, client: FlaskClient, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.post("/update-model", json={"version": 2, "weight": 1}).status_code == 200
    lineup = app.extensions["labstack"].follower.lineups[model]
    monkeypatch.setattr(lineup.canary.served.predictor, "predict", lambda _: 1 / 0)
    assert answered(client)["role"] == "production"
    assert client.get("/canary-status").json["canary"]["failures"] == 1
    monkeypatch.setattr(lineup.production.served.predictor, "predict", lambda _: 1 / 0)
    answer = client.post("/predict", json=IRIS_ROW)
    assert (answer.status_code, json.loads(answer.data)["type"]) == (500, "urn:labstack:problem:prediction")
    assert client.get("/canary-status").json["production"]["failures"] == 1


def test_an_alias_set_by_hand_is_a_canary_of_the_usual_weight(app: Flask, lab: Lab, model: str) -> None:
    lab.client.set_registered_model_alias(model, "canary", "3")
    follower = app.extensions["labstack"].follower
    follower.sync()
    canary = follower.lineups[model].canary
    assert (canary.served.version, canary.rollout) == (3, Rollout(0.1, "split"))
    lab.client.set_registered_model_alias(model, "production", "3")
    follower.sync()
    assert follower.roles[model] == {"production": 3}
