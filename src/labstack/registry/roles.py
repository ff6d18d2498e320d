"""Roles: the versions of a model that are production, canary and previous, as the registry has them.

A role is an alias in MLflow's registry, the only authority. A canary's rollout is in the registry too, in a tag of its
model, so that every replica sees the same. `moves.py` writes both; everyone else reads them here.
"""

import json
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

from labstack.registry.client import MlflowRest, Model, NotThereError, RegistryUnreachableError, Version

PRODUCTION, CANARY, PREVIOUS = ROLES = ("production", "canary", "previous")
ROLLOUT_TAG = "labstack.canary"
MOVED_TAG = "labstack.moved"  # of a model: the version that a command of the lab made production last
GATES_TAG, GATE_TAG = "labstack.gates", "labstack.gate."  # of a version: all its gates, and each by its name
PASSED, FAILED = "passed", "failed"
SCHEMA_CHANGE_TAG = "labstack.schema_change"  # of a version that may break what callers of production send


@dataclass(frozen=True)
class Rollout:
    """The share of requests, from 0 to 1, that a canary answers (split), or predicts in shadow of production.

    `since` is the time, in ISO 8601, of the move that set it, which begins a step of the canary's trial.
    """

    weight: float
    mode: Literal["split", "shadow"]
    since: str = ""

    def __str__(self) -> str:
        return f"{self.mode} {self.weight:g}"


@dataclass(frozen=True)
class Roles:
    """The version of each role of one model; None where no version has it.

    `rollout` is None when there is no canary, and when its alias was set outside the lab. `moved` is the version that
    the lab itself made production last.
    """

    production: int | None = None
    canary: int | None = None
    previous: int | None = None
    rollout: Rollout | None = None
    moved: int | None = field(default=None, compare=False)


def wait(client: MlflowRest, seconds: float) -> None:
    """Wait until the registry answers. Raises RegistryUnreachableError when it does not within the seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            client.models()
            return
        except RegistryUnreachableError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.5)


def read_roles(client: MlflowRest, model: str) -> Roles:
    """The roles of one model; all None when the registry does not know it."""
    try:
        return _roles(client.model(model))
    except NotThereError:
        return Roles()


def read_all_roles(client: MlflowRest) -> dict[str, Roles]:
    """The roles of every registered model."""
    return {name: _roles(model) for name, model in client.models().items()}


def living(client: MlflowRest, model: str, number: int | None) -> Version | None:
    """The record of the version that a role names; None when it names none, or one that was deleted."""
    if number is not None:
        with suppress(NotThereError):
            return client.version(model, number)
    return None


def living_production(client: MlflowRest, model: str) -> Version | None:
    """The record of the production version; None when there is none, or it was deleted."""
    return living(client, model, read_roles(client, model).production)


def _roles(model: Model) -> Roles:
    roles = Roles(**{role: model.aliases[role] for role in ROLES if role in model.aliases})  # type: ignore[arg-type]
    moved = model.tags.get(MOVED_TAG, "")
    return replace(
        roles,
        rollout=_rollout(model.tags.get(ROLLOUT_TAG, ""), roles.canary),
        moved=int(moved) if moved.isascii() and moved.isdigit() and len(moved) < 10 else None,
    )


def _rollout(text: str, canary: int | None) -> Rollout | None:
    """Parse the tag of a model's rollout; None when it is of another version, or not valid."""
    try:
        fields = json.loads(text)
        weight, mode, since = float(fields["weight"]), fields["mode"], fields.get("since") or ""
        rollout = Rollout(weight, mode, since and _moment(since))
    except (ValueError, KeyError, TypeError):
        return None
    is_valid = 0 <= rollout.weight <= 1 and rollout.mode in ("split", "shadow")
    return rollout if is_valid and canary is not None and fields.get("version") == canary else None


def _moment(text: str) -> str:
    """Return a time in ISO 8601 with its zone, by default UTC. Raises ValueError or TypeError."""
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()
