"""Roles: which version of a model is production, canary or previous, and the moves between them.

A role is an alias of MLflow's registry, the only authority. Who writes: training and the operators' commands,
through the functions here. One move at a time holds a lock of its own from its first look at the aliases to its audit
rows, so that two never interleave; other writers of our database do not wait for it. The rows are written when the
aliases have moved; a move that fails, also because the rows cannot be written, puts the aliases back. A move that the
audit missed, made by a person in the MLflow page or killed before its rows were written, is noted with the next move,
so that each role's rows form a chain.

How a canary gets its requests stands in the registry too, in a tag of its model, so that every replica sees the same.
"""

import getpass
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from types import EllipsisType
from typing import Any, Literal, Required, TypedDict, Unpack

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from labstack.mlflow_rest import (
    MlflowRest,
    Model,
    NotThereError,
    RegistryError,
    RegistryFailedError,
    RegistryUnreachableError,
    Version,
)
from labstack.store.audit import Entry, moves, note
from labstack.store.database import moving, writing

PRODUCTION, CANARY, PREVIOUS = ROLES = ("production", "canary", "previous")
ROLLOUT_TAG = "labstack.canary"
MOVED_TAG = "labstack.moved"  # of a model: the version that a command of the lab made production last
SCHEMA_CHANGE_TAG = "labstack.schema_change"  # of a version that may break what callers of production send


class ProductionMovedError(RegistryError):
    """Production is another version than the caller judged by."""


class RolesMovedError(RegistryError):
    """The roles are others than the caller judged by."""


@dataclass(frozen=True)
class Rollout:
    """How a canary gets its requests: a share of them, from 0 to 1, that it answers, or predicts beside production.

    `since` is the moment, in ISO 8601, of the move that said so, which begins a step of the canary's trial.
    """

    weight: float
    mode: Literal["split", "shadow"]
    since: str = ""

    def __str__(self) -> str:
        return f"{self.mode} {self.weight:g}"


@dataclass(frozen=True)
class Roles:
    """The version of each role of one model; None where no version has it.

    `rollout` is None when there is no canary, and when its alias was set by other means than ours. `moved` is the
    version that a command of the lab made production last.
    """

    production: int | None = None
    canary: int | None = None
    previous: int | None = None
    rollout: Rollout | None = None
    moved: int | None = field(default=None, compare=False)


class Said(TypedDict, total=False):
    """What is said of a move: why, by whom, and by what evidence; and the roles that it is made from, or not at all."""

    reason: Required[str]
    who: str
    evidence: dict[str, Any]
    only_from: Roles


def wait(client: MlflowRest, seconds: float) -> None:
    """Return when the registry answers. Raises RegistryUnreachableError when it does not within the seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            client.models()
            return
        except RegistryUnreachableError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.5)


def roles(client: MlflowRest, model: str) -> Roles:
    """The roles of one model; all None when the registry does not know it."""
    try:
        return _roles(client.model(model))
    except NotThereError:
        return Roles()


def all_roles(client: MlflowRest) -> dict[str, Roles]:
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
    return living(client, model, roles(client, model).production)


def promote(
    client: MlflowRest,
    engine: Engine,
    model: str,
    number: int,
    *,
    instead_of: int | EllipsisType | None = ...,
    **said: Unpack[Said],
) -> None:
    """Make a version production; the one it takes the place of becomes `previous`. A canary that is promoted ends.

    `instead_of` is the production version, None for no version, that the new one was judged by; raises
    ProductionMovedError when production is another by now. Not said, any may be.
    """

    def change(now: Roles) -> Roles:
        if now.production == number:
            raise RegistryError(f"Version {number} of {model!r} is production already.")
        outgoing = now.production if living(client, model, now.production) else None
        if instead_of is not ... and outgoing != instead_of:
            raise ProductionMovedError(f"Production of {model!r} is version {outgoing} by now, not {instead_of}.")
        _require_ready(client, model, number)
        return _without_double_canary(replace(now, production=number, previous=outgoing))

    _move(client, engine, model, change, said)


def rollback(client: MlflowRest, engine: Engine, model: str, to: int | None = None, **said: Unpack[Said]) -> Roles:
    """Make `previous`, or a version that once was production, production again. The roles then.

    Today's production becomes `previous`.
    """

    def change(now: Roles) -> Roles:
        back = now.previous if to is None else to
        if back is None or back == now.production:
            what = "has no previous version" if to is None else f"has version {to} in production already: nothing"
            raise RegistryError(f"The model {model!r} {what} to go back to.")
        if to not in (None, now.previous) and to not in _once_production(engine, model):
            raise RegistryError(f"Version {to} of {model!r} never was production; promote it instead.")
        _require_ready(client, model, back)
        outgoing = now.production if living(client, model, now.production) else None
        return _without_double_canary(replace(now, production=back, previous=outgoing))

    return _move(client, engine, model, change, said)


def start_canary(
    client: MlflowRest, engine: Engine, model: str, number: int, rollout: Rollout, **said: Unpack[Said]
) -> Roles:
    """Make a version the canary beside production, or change the rollout of the one that is. The roles then."""

    def change(now: Roles) -> Roles:
        if now.production is None:
            raise RegistryError(f"The model {model!r} has no production version for a canary to stand beside.")
        if number == now.production:
            raise RegistryError(f"Version {number} of {model!r} is production; a canary is another version.")
        if now.canary not in (None, number):
            raise RegistryError(f"Version {now.canary} of {model!r} is the canary already; accept or reject it first.")
        if now.canary is None:
            _require_ready(client, model, number)
        before = now.rollout
        if before and (before.weight, before.mode) == (rollout.weight, rollout.mode):
            return now
        return replace(now, canary=number, rollout=replace(rollout, since=datetime.now(UTC).isoformat()))

    return _move(client, engine, model, change, said)


def accept_canary(client: MlflowRest, engine: Engine, model: str, tried: int | None, **said: Unpack[Said]) -> Roles:
    """Make the canary production, if it is the version that was `tried`. The roles then."""

    def change(now: Roles) -> Roles:
        number = _require_canary(model, now)
        if number != tried:
            raise RegistryError(f"Version {number} of {model!r} is the canary by now, and nobody tried it.")
        _require_ready(client, model, number)
        outgoing = now.production if living(client, model, now.production) else None
        return Roles(number, None, outgoing)

    return _move(client, engine, model, change, said)


def stop_canary(client: MlflowRest, engine: Engine, model: str, **said: Unpack[Said]) -> Roles:
    """Take the canary's role from it. The roles then."""

    def change(now: Roles) -> Roles:
        _require_canary(model, now)
        return replace(now, canary=None, rollout=None)

    return _move(client, engine, model, change, said)


def actor() -> str:
    """Who is acting: the user and the machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user id need not have a name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _move(client: MlflowRest, engine: Engine, model: str, change: Callable[[Roles], Roles], said: Said) -> Roles:
    """Move the roles to what `change` makes of them as they are; the roles then. `change` raises to refuse."""
    who, evidence = said.get("who") or actor(), said.get("evidence")
    try:
        with moving(engine) as connection:
            before = roles(client, model)
            if said.get("only_from", before) != before:
                raise RolesMovedError(f"The roles of {model!r} are others by now.")
            after = change(before)
            with writing(connection) as session:  # a database that cannot be written refuses the move here
                recorded = replace(_recorded(session, model), rollout=before.rollout)
                _record(session, model, recorded, before, "unknown", "found moved without a recorded move", None)
            try:
                for call in _calls(client, model, before, after):
                    call()
                with writing(connection) as session:
                    _record(session, model, before, after, who, said["reason"], evidence)
            except BaseException:
                _put_back(client, model, before, after)
                raise
    except RegistryError as error:
        if not isinstance(error, RegistryFailedError | RolesMovedError):
            note(engine, "refused", model=model, actor=who, reason=f"{said['reason']}: {error}", evidence=evidence)
        raise
    return after


def _put_back(client: MlflowRest, model: str, before: Roles, after: Roles) -> None:
    """Undo what was done of a move, as far as the registry lets us."""
    for call in _calls(client, model, after, before):
        with suppress(RegistryError):
            call()


def _calls(client: MlflowRest, model: str, before: Roles, after: Roles) -> Iterator[Callable[[], None]]:
    """The registry's calls that lead from one state of the roles to another."""
    if after.rollout is not None and after.rollout != before.rollout:  # said before anybody follows the canary
        said = json.dumps({"version": after.canary, **asdict(after.rollout)})
        yield partial(client.set_tag, model, ROLLOUT_TAG, said)
    if after.production not in (None, before.production):  # likewise
        yield partial(client.set_tag, model, MOVED_TAG, str(after.production))
    for role in ROLES:  # production, which is served, comes first
        number = getattr(after, role)
        if number is not None and number != getattr(before, role):
            yield partial(client.set_alias, model, role, number)
        elif number is None and getattr(before, role) is not None:
            yield partial(client.delete_alias, model, role)
    if after.rollout is None and before.rollout is not None:
        yield partial(client.delete_tag, model, ROLLOUT_TAG)


def _recorded(session: Session, model: str) -> Roles:
    """The roles as the audit's last rows left them."""
    query = select(Entry).where(Entry.model == model, Entry.action == "move").order_by(Entry.id)
    return Roles(**{str(move.role): move.to_version for move in session.scalars(query)})  # type: ignore[arg-type]


def _record(
    session: Session,
    model: str,
    before: Roles,
    after: Roles,
    who: str,
    reason: str,
    evidence: dict[str, Any] | None,
) -> None:
    """One audit row for each role that goes from one version to another, and for a canary whose rollout changes."""
    for role in ROLES:
        source, target = getattr(before, role), getattr(after, role)
        if source != target or (role == CANARY and target and after.rollout not in (None, before.rollout)):
            move = {"model": model, "role": role, "from_version": source, "to_version": target}
            session.add(Entry(**move, actor=who, reason=reason, evidence=evidence))


def _roles(model: Model) -> Roles:
    found = Roles(**{role: model.aliases[role] for role in ROLES if role in model.aliases})  # type: ignore[arg-type]
    moved = model.tags.get(MOVED_TAG, "")
    return replace(
        found,
        rollout=_rollout(model.tags.get(ROLLOUT_TAG, ""), found.canary),
        moved=int(moved) if moved.isascii() and moved.isdigit() and len(moved) < 10 else None,
    )


def _rollout(text: str, canary: int | None) -> Rollout | None:
    """What a model's tag says of its canary; None when it speaks of another version, or says nothing that can be."""
    try:
        said = json.loads(text)
        weight, mode, since = float(said["weight"]), said["mode"], said.get("since") or ""
        rollout = Rollout(weight, mode, since and _moment(since))
    except (ValueError, KeyError, TypeError):
        return None
    sound = 0 <= rollout.weight <= 1 and rollout.mode in ("split", "shadow")
    return rollout if sound and canary is not None and said.get("version") == canary else None


def _moment(text: str) -> str:
    """A moment in ISO 8601, of UTC unless it says another zone. Raises ValueError or TypeError."""
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()


def _once_production(engine: Engine, model: str) -> set[int | None]:
    return {move.to_version for move in moves(engine, model) if move.role == PRODUCTION}


def _without_double_canary(roles: Roles) -> Roles:
    """The roles, without a canary that is production by now."""
    return replace(roles, canary=None, rollout=None) if roles.canary == roles.production else roles


def _require_canary(model: str, now: Roles) -> int:
    if now.canary is None:
        raise RegistryError(f"The model {model!r} has no canary.")
    return now.canary


def _require_ready(client: MlflowRest, model: str, number: int) -> None:
    status = client.version(model, number).status
    if status != "READY":
        raise RegistryError(f"Version {number} of {model!r} is not ready: its status is {status}.")
