"""Moves of roles: the only functions that write them, for training, the operators' commands and the API.

One move at a time holds a lock, from its first read of the aliases to its audit rows, so that two never interleave;
other writers of our database do not wait for it. The rows are written after the aliases; a move that fails, also
because the rows cannot be written, puts the aliases back. A move that the audit missed, made by a person in MLflow's
page or killed before its rows were written, is noted with the next move, so that each role's rows form a chain.
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

from sqlalchemy import Connection, Engine, select
from sqlalchemy.orm import Session

from labstack.registry.client import MlflowRest, RegistryError, RegistryFailedError
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
from labstack.store import audit
from labstack.store.audit import Entry
from labstack.store.database import moving, writing


class ProductionMovedError(RegistryError):
    """Production is another version than the one that the caller compared with."""


class RolesMovedError(RegistryError):
    """The roles are not the ones that the caller saw."""


class MoveNote(TypedDict, total=False):
    """The note of a move for the audit: the reason, who makes it, and the evidence for it.

    With `only_from`, the move is refused unless the roles are these.
    """

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
    **note: Unpack[MoveNote],
) -> None:
    """Make a version production; the production version before it becomes `previous`. A canary so promoted ends.

    `instead_of` is the production version, None for none, that the new one was compared with; raises
    ProductionMovedError when production is another one now. Without it, any may be.
    """

    def change(roles: Roles) -> Roles:
        if roles.production == number:
            raise RegistryError(f"Version {number} of {model!r} is production already.")
        outgoing = _outgoing(client, model, roles)
        if instead_of is not ... and outgoing != instead_of:
            raise ProductionMovedError(f"Production of {model!r} is version {outgoing} now, not {instead_of}.")
        _require_ready(client, model, number)
        return _without_double_canary(replace(roles, production=number, previous=outgoing))

    _move(client, engine, model, change, note)


def rollback(client: MlflowRest, engine: Engine, model: str, to: int | None = None, **note: Unpack[MoveNote]) -> Roles:
    """Make `previous`, or a version that was production before, production again; return the new roles.

    The current production version becomes `previous`.
    """

    def change(roles: Roles) -> Roles:
        target = roles.previous if to is None else to
        if target is None or target == roles.production:
            state = "has no previous version" if to is None else f"has version {to} in production already: nothing"
            raise RegistryError(f"The model {model!r} {state} to go back to.")
        if to not in (None, roles.previous) and to not in _once_production(engine, model):
            raise RegistryError(f"Version {to} of {model!r} never was production; promote it instead.")
        _require_ready(client, model, target)
        outgoing = _outgoing(client, model, roles)
        return _without_double_canary(replace(roles, production=target, previous=outgoing))

    return _move(client, engine, model, change, note)


def start_canary(
    client: MlflowRest, engine: Engine, model: str, number: int, rollout: Rollout, **note: Unpack[MoveNote]
) -> Roles:
    """Make a version the canary, or change the rollout of the current canary; return the new roles."""

    def change(roles: Roles) -> Roles:
        if roles.production is None:
            raise RegistryError(f"The model {model!r} has no production version to compare a canary with.")
        if number == roles.production:
            raise RegistryError(f"Version {number} of {model!r} is production; a canary is another version.")
        if roles.canary not in (None, number):
            raise RegistryError(
                f"Version {roles.canary} of {model!r} is the canary already; accept or reject it first."
            )
        if roles.canary is None:
            _require_ready(client, model, number)
        before = roles.rollout
        if before and (before.weight, before.mode) == (rollout.weight, rollout.mode):
            return roles
        return replace(roles, canary=number, rollout=replace(rollout, since=datetime.now(UTC).isoformat()))

    return _move(client, engine, model, change, note)


def accept_canary(client: MlflowRest, engine: Engine, model: str, tried: int | None, **note: Unpack[MoveNote]) -> Roles:
    """Make the canary production, if it is the version that was `tried`; return the new roles."""

    def change(roles: Roles) -> Roles:
        number = _require_canary(model, roles)
        if number != tried:
            raise RegistryError(f"Version {number} of {model!r} is the canary now, and was not tried.")
        _require_ready(client, model, number)
        return Roles(number, None, _outgoing(client, model, roles))

    return _move(client, engine, model, change, note)


def stop_canary(client: MlflowRest, engine: Engine, model: str, **note: Unpack[MoveNote]) -> Roles:
    """Take the canary's role from it; return the new roles."""

    def change(roles: Roles) -> Roles:
        _require_canary(model, roles)
        return replace(roles, canary=None, rollout=None)

    return _move(client, engine, model, change, note)


def actor() -> str:
    """Return the user and the machine of this process, for the audit."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user id need not have a name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _move(client: MlflowRest, engine: Engine, model: str, change: Callable[[Roles], Roles], note: MoveNote) -> Roles:
    """Move the roles to the result of `change`, which raises to refuse; return them. Note a refusal in the audit."""
    note = {"who": actor()} | note
    try:
        with moving(engine) as connection:
            before = read_roles(client, model)
            if note.get("only_from", before) != before:
                raise RolesMovedError(f"The roles of {model!r} have changed meanwhile.")
            after = change(before)
            _record_unrecorded(connection, model, before)
            _apply(client, connection, model, before, after, note)
    except RegistryError as error:
        if not isinstance(error, RegistryFailedError | RolesMovedError):
            reason = f"{note['reason']}: {error}"
            audit.note(engine, "refused", model=model, actor=note["who"], reason=reason, evidence=note.get("evidence"))
        raise
    return after


def _record_unrecorded(connection: Connection, model: str, roles: Roles) -> None:
    """Record the moves that the audit missed; a database that cannot be written refuses the new move here."""
    with writing(connection) as session:
        recorded = replace(_recorded(session, model), rollout=roles.rollout)
        note = MoveNote(who="unknown", reason="found moved without a recorded move")
        _record(session, model, recorded, roles, note)


def _apply(client: MlflowRest, connection: Connection, model: str, before: Roles, after: Roles, note: MoveNote) -> None:
    """Write the aliases, then the audit's rows; put the aliases back when either fails."""
    try:
        for call in _calls(client, model, before, after):
            call()
        with writing(connection) as session:
            _record(session, model, before, after, note)
    except BaseException:
        _put_back(client, model, before, after)
        raise


def _put_back(client: MlflowRest, model: str, before: Roles, after: Roles) -> None:
    """Undo what was done of a move, as far as the registry answers."""
    for call in _calls(client, model, after, before):
        with suppress(RegistryError):
            call()


def _calls(client: MlflowRest, model: str, before: Roles, after: Roles) -> Iterator[Callable[[], None]]:
    """Yield the registry's calls that lead from one state of the roles to another."""
    if after.rollout is not None and after.rollout != before.rollout:  # known before any follower sees the canary
        rollout = json.dumps({"version": after.canary, **asdict(after.rollout)})
        yield partial(client.set_tag, model, ROLLOUT_TAG, rollout)
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
    """Return the roles as the audit's last rows left them."""
    query = select(Entry).where(Entry.model == model, Entry.action == "move").order_by(Entry.id)
    return Roles(**{str(move.role): move.to_version for move in session.scalars(query)})  # type: ignore[arg-type]


def _record(session: Session, model: str, before: Roles, after: Roles, note: MoveNote) -> None:
    """Add an audit row for each role that goes from one version to another, and for a canary's new rollout."""
    for role in ROLES:
        source, target = getattr(before, role), getattr(after, role)
        if source != target or (role == CANARY and target and after.rollout not in (None, before.rollout)):
            move = {"model": model, "role": role, "from_version": source, "to_version": target}
            session.add(Entry(**move, actor=note["who"], reason=note["reason"], evidence=note.get("evidence")))


def _once_production(engine: Engine, model: str) -> set[int | None]:
    return {move.to_version for move in audit.role_moves(engine, model) if move.role == PRODUCTION}


def _outgoing(client: MlflowRest, model: str, roles: Roles) -> int | None:
    """Return the production version that a new one replaces; None when there is none, or it was deleted."""
    return roles.production if living(client, model, roles.production) else None


def _without_double_canary(roles: Roles) -> Roles:
    """Return the roles, without a canary that is also production."""
    return replace(roles, canary=None, rollout=None) if roles.canary == roles.production else roles


def _require_canary(model: str, roles: Roles) -> int:
    """Return the canary's version. Raises RegistryError when there is none."""
    if roles.canary is None:
        raise RegistryError(f"The model {model!r} has no canary.")
    return roles.canary


def _require_ready(client: MlflowRest, model: str, number: int) -> None:
    status = client.version(model, number).status
    if status != "READY":
        raise RegistryError(f"Version {number} of {model!r} is not ready: its status is {status}.")
