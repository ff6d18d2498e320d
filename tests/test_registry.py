"""Roles and their moves, on a real MLflow server."""

import threading

import pytest
from sqlalchemy import Engine, text

from labstack import registry
from labstack.registry import RegistryError, RegistryUnreachableError, Roles
from labstack.store.audit import history
from labstack.store.database import DatabaseError, connect
from tests.conftest import Lab, free_port


def moves(engine: Engine, model: str) -> list[tuple[str, int | None, int | None]]:
    """Role, from and to of each move, oldest first."""
    return [(move.role, move.from_version, move.to_version) for move in reversed(history(engine, model))]


def test_an_unknown_model_has_no_roles(lab: Lab) -> None:
    assert registry.roles(lab.client, "nobody") == Roles()


def test_promotion_moves_production_and_keeps_the_previous_one(lab: Lab, engine: Engine, model: str) -> None:
    registry.promote(lab.client, engine, model, 1, reason="first")
    assert registry.roles(lab.client, model) == Roles(production=1)
    registry.promote(lab.client, engine, model, 3, reason="better")
    assert registry.roles(lab.client, model) == Roles(production=3, previous=1)
    assert registry.all_roles(lab.client)[model] == Roles(production=3, previous=1)
    assert moves(engine, model) == [("production", None, 1), ("production", 1, 3)]


def test_the_audit_says_who_when_and_why(lab: Lab, engine: Engine, model: str) -> None:
    registry.promote(lab.client, engine, model, 1, reason="because")
    [move] = history(engine, model)
    assert (move.actor, move.reason) == (registry.actor(), "because")
    assert "@" in move.actor
    assert move.at is not None


@pytest.mark.parametrize("number", [1, 9])
def test_a_refused_promotion_changes_nothing_and_is_not_recorded(
    lab: Lab, engine: Engine, model: str, number: int
) -> None:
    registry.promote(lab.client, engine, model, 1, reason="first")
    with pytest.raises(RegistryError, match=rf"ersion {number}"):
        registry.promote(lab.client, engine, model, number, reason="again")
    assert registry.roles(lab.client, model) == Roles(production=1)
    assert len(history(engine, model)) == 1


def test_rollback_goes_to_previous_and_back(lab: Lab, engine: Engine, model: str) -> None:
    registry.promote(lab.client, engine, model, 1, reason="first")
    with pytest.raises(RegistryError, match="no previous version"):
        registry.rollback(lab.client, engine, model, reason="bad")
    registry.promote(lab.client, engine, model, 2, reason="second")
    assert registry.rollback(lab.client, engine, model, reason="bad") == 1
    assert registry.roles(lab.client, model) == Roles(production=1, previous=2)
    assert registry.rollback(lab.client, engine, model, reason="not so bad") == 2
    assert moves(engine, model)[-2:] == [("production", 2, 1), ("production", 1, 2)]


def test_a_canary_starts_and_stops(lab: Lab, engine: Engine, model: str) -> None:
    with pytest.raises(RegistryError, match="no production version"):
        registry.start_canary(lab.client, engine, model, 2, reason="try")
    registry.promote(lab.client, engine, model, 1, reason="first")
    with pytest.raises(RegistryError, match="is production"):
        registry.start_canary(lab.client, engine, model, 1, reason="try")
    registry.start_canary(lab.client, engine, model, 2, reason="try")
    with pytest.raises(RegistryError, match="the canary already"):
        registry.start_canary(lab.client, engine, model, 3, reason="try")
    assert registry.roles(lab.client, model) == Roles(production=1, canary=2)
    assert registry.stop_canary(lab.client, engine, model, reason="no good") == 2
    with pytest.raises(RegistryError, match="no canary"):
        registry.stop_canary(lab.client, engine, model, reason="no good")
    assert registry.roles(lab.client, model) == Roles(production=1)
    assert moves(engine, model)[1:] == [("canary", None, 2), ("canary", 2, None)]


def test_a_canary_that_is_promoted_is_a_canary_no_more(lab: Lab, engine: Engine, model: str) -> None:
    registry.promote(lab.client, engine, model, 1, reason="first")
    registry.start_canary(lab.client, engine, model, 2, reason="try")
    registry.promote(lab.client, engine, model, 2, reason="good")
    assert registry.roles(lab.client, model) == Roles(production=2, previous=1)


def test_no_role_moves_unrecorded(lab: Lab, engine: Engine, model: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE role_moves"))
    with pytest.raises(DatabaseError, match="role_moves"):
        registry.promote(lab.client, engine, model, 1, reason="first")
    assert registry.roles(lab.client, model) == Roles()


def test_moves_that_come_at_once_happen_one_after_the_other(lab: Lab, engine: Engine, model: str) -> None:
    def promote_each() -> None:
        own = connect(str(engine.url))
        for number in (1, 2, 3, 1, 2):
            try:
                registry.promote(lab.client, own, model, number, reason="race")
            except RegistryError as error:
                assert "is production already" in str(error)

    threads = [threading.Thread(target=promote_each) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorded = moves(engine, model)
    assert len(recorded) >= 5
    assert [source for _, source, _ in recorded] == [None, *(target for _, _, target in recorded[:-1])]
    assert registry.roles(lab.client, model) == Roles(production=recorded[-1][2], previous=recorded[-1][1])


def test_a_registry_that_does_not_answer_is_named(lab: Lab, engine: Engine) -> None:
    url = f"http://localhost:{free_port()}"
    try:
        client = registry.connect(url, timeout_seconds=1, retries=0)
        with pytest.raises(RegistryUnreachableError, match=url):
            registry.promote(client, engine, "iris", 1, reason="try")
    finally:
        registry.connect(lab.tracking_uri)
    assert history(engine) == []


def test_a_name_that_the_registry_refuses_is_an_error_for_people(lab: Lab, engine: Engine) -> None:
    with pytest.raises(RegistryError):
        registry.promote(lab.client, engine, "", 1, reason="try")
