"""The lock of moves: one move at a time over all processes; others do not wait, and killed moves leave roles whole."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine

from labstack.registry import moves
from labstack.registry.client import MlflowRest
from labstack.registry.roles import Roles, read_roles
from labstack.store import audit
from labstack.store.database import DatabaseError, moving, writing
from tests.conftest import Lab, Relay, environment, wait_until
from tests.registry.test_roles import noted_moves

HOLDER = """
import sys, time
from labstack.store.database import connect, moving
with moving(connect(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
MOVER = """
import sys
from labstack.registry import moves
from labstack.registry.client import MlflowRest
from labstack.store.database import connect
moves.promote(MlflowRest(sys.argv[2]), connect(sys.argv[1]), sys.argv[3], 2, reason="to be killed")
"""


@contextmanager
def process(code: str, engine: Engine, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that runs some code, and is killed at the end."""
    command = [sys.executable, "-c", code, engine.url.render_as_string(hide_password=False), *arguments]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def test_one_process_moves_at_a_time_and_gives_the_lock_up_when_it_is_killed(engine: Engine) -> None:
    with process(HOLDER, engine) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DatabaseError, match="Another move of a role"), moving(engine, seconds=0):
            pass
        with writing(engine):
            pass  # other writers do not wait for a move
        holder.kill()
        holder.wait()
    for _ in range(2):
        with moving(engine):
            pass


def test_other_writers_do_not_wait_for_a_move_that_waits_for_the_registry(lab: Lab, engine: Engine, model: str) -> None:
    moves.promote(lab.registry, engine, model, 1, reason="first")
    with Relay(lab.tracking_uri) as relay:
        relay.delay_seconds = 0.2
        slow = MlflowRest(relay.url)
        move = threading.Thread(target=moves.promote, args=(slow, engine, model, 2), kwargs={"reason": "slowly"})
        move.start()
        while read_roles(lab.registry, model).production == 1:
            audit.note(engine, "reload", actor="me", reason="meanwhile")
        audit.note(engine, "reload", actor="me", reason="meanwhile")
        assert move.is_alive(), "the aliases have begun to move, and what they come to is yet to be recorded"
        move.join()
    assert read_roles(lab.registry, model) == Roles(production=2, previous=1)
    assert [entry.action for entry in audit.history(engine)][:3] == ["move", "move", "reload"]


def test_a_move_that_is_killed_midway_leaves_an_audit_without_a_gap(lab: Lab, engine: Engine, model: str) -> None:
    moves.promote(lab.registry, engine, model, 1, reason="first")
    with Relay(lab.tracking_uri) as relay:
        relay.delay_seconds = 0.2
        with process(MOVER, engine, relay.url, model) as mover:
            wait_until(lambda: read_roles(lab.registry, model).production == 2, 60, "the first alias has moved")
            mover.kill()
            assert mover.wait() == -9
    assert len(noted_moves(engine, model)) == 1
    moves.promote(lab.registry, engine, model, 3, reason="third")
    now = read_roles(lab.registry, model)
    assert (now.production, now.previous) == (3, 2)
    for role in ("production", "previous"):
        chain = [(source, target) for name, source, target in noted_moves(engine, model) if name == role]
        assert [source for source, _ in chain] == [None, *(target for _, target in chain[:-1])]
        assert chain[-1][1] == getattr(now, role)
    assert ("production", 1, 2) in noted_moves(engine, model)
