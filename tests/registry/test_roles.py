"""Roles and their moves, on a real MLflow server."""

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import Engine, text

from labstack.registry import moves
from labstack.registry.client import MlflowRest, RegistryError, RegistryUnreachableError
from labstack.registry.moves import ProductionMovedError, RolesMovedError
from labstack.registry.roles import ROLLOUT_TAG, Roles, Rollout, living_production, read_all_roles, read_roles
from labstack.store import audit
from labstack.store.database import DatabaseError, connect
from tests.conftest import Lab, free_port

TENTH = Rollout(0.1, "split")


def undated(roles: Roles) -> Roles:
    """Return roles without the start of their rollout."""
    return replace(roles, rollout=roles.rollout and replace(roles.rollout, since=""))


def noted_moves(engine: Engine, model: str) -> list[tuple[str | None, int | None, int | None]]:
    """Role, from and to of each move, oldest first."""
    return [(move.role, move.from_version, move.to_version) for move in reversed(audit.role_moves(engine, model))]


def test_an_unknown_model_has_no_roles(lab: Lab) -> None:
    assert read_roles(lab.registry, "nobody") == Roles()


class Failing:
    """A client, the nth call of one of whose methods fails: before it reached the server, or after."""

    def __init__(self, client: MlflowRest, method: str, nth: int = 1, *, applied: bool = False) -> None:
        self._client, self._method, self._left, self._applied = client, method, nth, applied

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._client, name)
        if name != self._method:
            return real

        def call(*arguments: Any, **keywords: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                if self._applied:
                    real(*arguments, **keywords)
                raise RegistryUnreachableError("http://registry.example")
            return real(*arguments, **keywords)

        return call


def test_promotion_moves_production_and_keeps_the_previous_one(lab: Lab, engine: Engine, model: str) -> None:
    moves.promote(lab.registry, engine, model, 1, reason="first")
    assert read_roles(lab.registry, model) == Roles(production=1)
    moves.promote(lab.registry, engine, model, 3, reason="better")
    assert read_roles(lab.registry, model) == Roles(production=3, previous=1)
    assert read_all_roles(lab.registry)[model] == Roles(production=3, previous=1)
    assert noted_moves(engine, model) == [("production", None, 1), ("production", 1, 3), ("previous", None, 1)]


def test_the_audit_says_who_when_and_why(lab: Lab, engine: Engine, model: str) -> None:
    moves.promote(lab.registry, engine, model, 1, reason="because")
    [move] = audit.role_moves(engine, model)
    assert (move.actor, move.reason) == (moves.actor(), "because")
    assert "@" in move.actor
    assert abs((datetime.now(UTC) - move.at).total_seconds()) < 60


@pytest.mark.parametrize("number", [1, 9])
def test_a_refused_promotion_changes_nothing_and_is_not_recorded(
    lab: Lab, engine: Engine, model: str, number: int
) -> None:
    moves.promote(lab.registry, engine, model, 1, reason="first")
    with pytest.raises(RegistryError, match=rf"ersion {number}"):
        moves.promote(lab.registry, engine, model, number, reason="again")
    assert read_roles(lab.registry, model) == Roles(production=1)
    assert len(audit.role_moves(engine, model)) == 1


def test_rollback_goes_to_previous_and_back(lab: Lab, engine: Engine, model: str) -> None:
    moves.promote(lab.registry, engine, model, 1, reason="first")
    with pytest.raises(RegistryError, match="no previous version"):
        moves.rollback(lab.registry, engine, model, reason="bad")
    moves.promote(lab.registry, engine, model, 2, reason="second")
    assert moves.rollback(lab.registry, engine, model, reason="bad").production == 1
    assert read_roles(lab.registry, model) == Roles(production=1, previous=2)
    assert moves.rollback(lab.registry, engine, model, reason="not so bad").production == 2
    assert [move for move in noted_moves(engine, model) if move[0] == "production"][-2:] == [
        ("production", 2, 1),
        ("production", 1, 2),
    ]


def test_a_canary_starts_and_stops(lab: Lab, engine: Engine, model: str) -> None:
    with pytest.raises(RegistryError, match="no production version"):
        moves.start_canary(lab.registry, engine, model, 2, TENTH, reason="try")
    moves.promote(lab.registry, engine, model, 1, reason="first")
    with pytest.raises(RegistryError, match="is production"):
        moves.start_canary(lab.registry, engine, model, 1, TENTH, reason="try")
    moves.start_canary(lab.registry, engine, model, 2, TENTH, reason="try")
    with pytest.raises(RegistryError, match="the canary already"):
        moves.start_canary(lab.registry, engine, model, 3, TENTH, reason="try")
    assert undated(read_roles(lab.registry, model)) == Roles(1, 2, None, TENTH)
    moves.stop_canary(lab.registry, engine, model, reason="no good")
    with pytest.raises(RegistryError, match="no canary"):
        moves.stop_canary(lab.registry, engine, model, reason="no good")
    assert read_roles(lab.registry, model) == Roles(production=1)
    assert noted_moves(engine, model)[1:] == [("canary", None, 2), ("canary", 2, None)]
    assert ROLLOUT_TAG not in lab.registry.model(model).tags


def test_the_rollout_of_a_canary_changes_and_is_recorded(lab: Lab, engine: Engine, model: str) -> None:
    moves.promote(lab.registry, engine, model, 1, reason="first")
    moves.start_canary(lab.registry, engine, model, 2, TENTH, reason="split 0.1")
    half = Rollout(0.5, "shadow")
    moves.start_canary(lab.registry, engine, model, 2, half, reason="shadow 0.5")
    changed = read_roles(lab.registry, model)
    moves.start_canary(lab.registry, engine, model, 2, half, reason="once more")
    assert read_roles(lab.registry, model) == changed, "the same again begins no new step"
    assert undated(changed) == Roles(1, 2, None, half)
    assert changed.rollout is not None
    assert datetime.now(UTC) - datetime.fromisoformat(changed.rollout.since) < timedelta(minutes=1)
    assert [move.reason for move in audit.role_moves(engine, model)] == ["shadow 0.5", "split 0.1", "first"]


def test_a_canary_is_accepted(lab: Lab, engine: Engine, model: str) -> None:
    moves.promote(lab.registry, engine, model, 1, reason="first")
    with pytest.raises(RegistryError, match="no canary"):
        moves.accept_canary(lab.registry, engine, model, None, reason="good")
    moves.start_canary(lab.registry, engine, model, 2, TENTH, reason="try")
    for tried in (None, 3):
        with pytest.raises(RegistryError, match="was not tried"):
            moves.accept_canary(lab.registry, engine, model, tried, reason="good")
    moves.accept_canary(lab.registry, engine, model, 2, reason="good", who="me")
    assert read_roles(lab.registry, model) == Roles(production=2, previous=1)
    assert {move.actor for move in audit.role_moves(engine, model)[:3]} == {"me"}


@pytest.mark.parametrize(
    "tag",
    [
        "",
        "[]",
        "7",
        '{"version": 3, "weight": 0.5, "mode": "split"}',
        '{"version": 2, "weight": 1.5, "mode": "split"}',
        '{"version": 2, "weight": 0.5, "mode": "maybe"}',
        '{"version": 2, "weight": NaN, "mode": "split"}',
        '{"version": 2, "mode": "split"}',
        '{"version": 2, "weight": 0.5, "mode": "split", "since": "yesterday"}',
        '{"version": 2, "weight": 0.5, "mode": "split", "since": 7}',
    ],
)
def test_a_tag_of_another_canary_is_ignored(lab: Lab, engine: Engine, model: str, tag: str) -> None:
    moves.promote(lab.registry, engine, model, 1, reason="first")
    lab.registry.set_alias(model, "canary", 2)
    lab.registry.set_tag(model, ROLLOUT_TAG, tag)
    assert read_roles(lab.registry, model) == Roles(1, 2)


def test_a_canary_that_is_promoted_loses_its_role(lab: Lab, engine: Engine, model: str) -> None:
    moves.promote(lab.registry, engine, model, 1, reason="first")
    moves.start_canary(lab.registry, engine, model, 2, TENTH, reason="try")
    moves.promote(lab.registry, engine, model, 2, reason="good")
    assert read_roles(lab.registry, model) == Roles(production=2, previous=1)


def test_a_refusal_is_recorded(lab: Lab, engine: Engine, model: str) -> None:
    moves.promote(lab.registry, engine, model, 1, reason="first")
    with pytest.raises(RegistryError):
        moves.stop_canary(lab.registry, engine, model, reason="no good", who="me", evidence={"errors": 3})
    newest, _ = audit.history(engine, model)
    assert (newest.action, newest.actor, newest.evidence) == ("refused", "me", {"errors": 3})
    assert newest.reason == f"no good: The model {model!r} has no canary."
    assert len(audit.role_moves(engine, model)) == 1


def test_a_move_is_made_only_from_the_roles_that_were_judged(lab: Lab, engine: Engine, model: str) -> None:
    moves.promote(lab.registry, engine, model, 1, reason="first")
    judged = moves.start_canary(lab.registry, engine, model, 2, TENTH, reason="try")
    moves.start_canary(lab.registry, engine, model, 2, Rollout(0.5, "split"), reason="by hand")
    before = audit.history(engine, model)
    for late in (moves.stop_canary, partial(moves.accept_canary, tried=2)):
        with pytest.raises(RolesMovedError):
            late(lab.registry, engine, model, reason="late", only_from=judged)
    assert len(audit.history(engine, model)) == len(before)
    now = read_roles(lab.registry, model)
    moves.stop_canary(lab.registry, engine, model, reason="in time", only_from=now, evidence={"why": [1, None]})
    assert audit.role_moves(engine, model)[0].evidence == {"why": [1, None]}


def test_no_role_moves_unrecorded(lab: Lab, engine: Engine, model: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE audit"))
    with pytest.raises(DatabaseError, match="audit"):
        moves.promote(lab.registry, engine, model, 1, reason="first")
    assert read_roles(lab.registry, model) == Roles()


def test_roles_go_back_when_the_database_is_lost_before_their_move_is_recorded(
    lab: Lab, engine: Engine, model: str, tmp_path: Path
) -> None:
    moves.promote(lab.registry, engine, model, 1, reason="first")
    file = tmp_path / "lab.db"

    class LosesDatabase(Failing):
        """A client with whose first alias the database is lost."""

        def __getattr__(self, name: str) -> Any:
            if name == self._method and file.exists():
                file.rename(f"{file}.away")
            return getattr(self._client, name)

    losing = cast(MlflowRest, LosesDatabase(lab.registry, "set_alias"))
    with pytest.raises(DatabaseError, match="moved, deleted or replaced"):
        moves.promote(losing, engine, model, 2, reason="lost")
    assert read_roles(lab.registry, model) == Roles(production=1)
    Path(f"{file}.away").rename(file)
    assert noted_moves(engine, model) == [("production", None, 1)]


@pytest.mark.parametrize("applied", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("move", "method", "nth"),
    [
        ("promote", "set_alias", 1),
        ("promote", "set_alias", 2),
        ("promote", "delete_alias", 1),
        ("promote", "delete_tag", 1),
        ("accept_canary", "set_alias", 1),
        ("accept_canary", "delete_alias", 1),
        ("stop_canary", "delete_tag", 1),
        ("rollback", "set_alias", 1),
        ("rollback", "set_alias", 2),
    ],
)
def test_a_move_that_fails_midway_is_undone(
    lab: Lab, engine: Engine, model: str, move: str, method: str, nth: int, applied: bool
) -> None:
    moves.promote(lab.registry, engine, model, 1, reason="first")
    moves.promote(lab.registry, engine, model, 2, reason="second")
    moves.start_canary(lab.registry, engine, model, 3, TENTH, reason="try")
    before, rows = read_roles(lab.registry, model), noted_moves(engine, model)
    failing = cast(MlflowRest, Failing(lab.registry, method, nth, applied=applied))
    with pytest.raises(RegistryUnreachableError):
        if move == "promote":
            moves.promote(failing, engine, model, 3, reason="cut")
        else:
            tried = (3,) if move == "accept_canary" else ()
            getattr(moves, move)(failing, engine, model, *tried, reason="cut")
    assert read_roles(lab.registry, model) == before
    assert noted_moves(engine, model) == rows


def test_a_move_that_the_audit_missed_is_noted_with_the_next(lab: Lab, engine: Engine, model: str) -> None:
    moves.promote(lab.registry, engine, model, 1, reason="first")
    lab.client.set_registered_model_alias(model, "production", "2")  # as a person does in MLflow's page
    moves.promote(lab.registry, engine, model, 3, reason="third")
    newest, _, oldest = [move for move in audit.role_moves(engine, model) if move.role == "production"]
    noted = [move for move in audit.role_moves(engine, model) if move.actor == "unknown"]
    assert [(move.from_version, move.to_version) for move in (oldest, *noted, newest)] == [(None, 1), (1, 2), (2, 3)]


def test_a_promotion_is_refused_when_production_has_changed(lab: Lab, engine: Engine, model: str) -> None:
    moves.promote(lab.registry, engine, model, 1, reason="first", instead_of=None)
    for judged_by in (None, 3):
        with pytest.raises(ProductionMovedError, match="is version 1 now"):
            moves.promote(lab.registry, engine, model, 2, reason="late", instead_of=judged_by)
    moves.promote(lab.registry, engine, model, 2, reason="better", instead_of=1)


def test_a_deleted_production_version_does_not_keep_others_from_the_role(lab: Lab, engine: Engine, model: str) -> None:
    moves.promote(lab.registry, engine, model, 1, reason="first")
    lab.client.delete_model_version(model, "1")
    assert living_production(lab.registry, model) is None
    moves.promote(lab.registry, engine, model, 2, reason="next", instead_of=None)
    assert read_roles(lab.registry, model) == Roles(production=2)


def test_a_rollback_to_the_canary_ends_it(lab: Lab, engine: Engine, model: str) -> None:
    moves.promote(lab.registry, engine, model, 1, reason="first")
    moves.promote(lab.registry, engine, model, 2, reason="second")
    moves.start_canary(lab.registry, engine, model, 1, TENTH, reason="try the old one")
    moves.rollback(lab.registry, engine, model, reason="it is better")
    assert read_roles(lab.registry, model) == Roles(production=1, previous=2)


def test_moves_that_come_at_once_happen_one_after_the_other(lab: Lab, engine: Engine, model: str) -> None:
    def promote_each() -> None:
        own = connect(str(engine.url))
        for number in (1, 2, 3, 1, 2):
            try:
                moves.promote(lab.registry, own, model, number, reason="race")
            except RegistryError as error:
                assert "is production already" in str(error)

    threads = [threading.Thread(target=promote_each) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorded = [move for move in noted_moves(engine, model) if move[0] == "production"]
    assert len(recorded) >= 5
    assert [source for _, source, _ in recorded] == [None, *(target for _, _, target in recorded[:-1])]
    assert read_roles(lab.registry, model) == Roles(production=recorded[-1][2], previous=recorded[-1][1])


def test_a_registry_that_does_not_answer_is_named(lab: Lab, engine: Engine) -> None:
    url = f"http://localhost:{free_port()}"
    with pytest.raises(RegistryUnreachableError, match=url):
        moves.promote(MlflowRest(url, timeout_seconds=1, retries=0), engine, "iris", 1, reason="try")
    assert audit.history(engine) == []


def test_a_name_that_the_registry_refuses_is_an_error_for_people(lab: Lab, engine: Engine) -> None:
    with pytest.raises(RegistryError):
        moves.promote(lab.registry, engine, "", 1, reason="try")
