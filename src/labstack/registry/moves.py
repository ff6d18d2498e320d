"""Moves of roles: the only functions that write them.

Training, the operators' commands and the API move roles through these functions. One move at a time holds a lock of
its own from its first read of the aliases to its audit rows, so that two never interleave; other writers of our
database do not wait for it. The rows are written when the aliases have moved; a move that fails, also because the rows
cannot be written, puts the aliases back. A move that the audit missed, made by a person in the MLflow page or killed
before its rows were written, is noted with the next move, so that each role's rows form a chain.
"""

import getpass
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from types import EllipsisType
from typing import Any, Required, TypedDict, Unpack

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from labstack.registry.client import (
    MlflowRest,
    RegistryError,
    RegistryFailedError,
)
from labstack.registry.roles import (
    CANARY,
    MOVED_TAG,
    PRODUCTION,
    ROLES,
    ROLLOUT_TAG,
    Roles,
    Rollout,
    living,
    read_roles,
)
from labstack.store.audit import Entry, note, role_moves
from labstack.store.database import moving, writing


class ProductionMovedError(RegistryError):
    """Production is another version than the caller judged by."""


class RolesMovedError(RegistryError):
    """The roles are others than the caller judged by."""


class MoveNote(TypedDict, total=False):
    """What is said of a move: why, by whom, and by what evidence; and the roles that it is made from, or not at all."""

    reason: Required[str]
    who: str
    evidence: dict[str, Any]
    only_from: Roles


def promote(
    client: MlflowRest,
    engine: Engine,
    model: str,
    number: int,
    *,
    instead_of: int | EllipsisType | None = ...,
    **said: Unpack[MoveNote],
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


def rollback(client: MlflowRest, engine: Engine, model: str, to: int | None = None, **said: Unpack[MoveNote]) -> Roles:
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
    client: MlflowRest, engine: Engine, model: str, number: int, rollout: Rollout, **said: Unpack[MoveNote]
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


def accept_canary(client: MlflowRest, engine: Engine, model: str, tried: int | None, **said: Unpack[MoveNote]) -> Roles:
    """Make the canary production, if it is the version that was `tried`. The roles then."""

    def change(now: Roles) -> Roles:
        number = _require_canary(model, now)
        if number != tried:
            raise RegistryError(f"Version {number} of {model!r} is the canary by now, and nobody tried it.")
        _require_ready(client, model, number)
        outgoing = now.production if living(client, model, now.production) else None
        return Roles(number, None, outgoing)

    return _move(client, engine, model, change, said)


def stop_canary(client: MlflowRest, engine: Engine, model: str, **said: Unpack[MoveNote]) -> Roles:
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


def _move(client: MlflowRest, engine: Engine, model: str, change: Callable[[Roles], Roles], said: MoveNote) -> Roles:
    """Move the roles to what `change` makes of them as they are; the roles then. `change` raises to refuse."""
    who, evidence = said.get("who") or actor(), said.get("evidence")
    try:
        with moving(engine) as connection:
            before = read_roles(client, model)
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


def _once_production(engine: Engine, model: str) -> set[int | None]:
    return {move.to_version for move in role_moves(engine, model) if move.role == PRODUCTION}


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
