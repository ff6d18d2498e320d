"""Roles: which version of a model is production, canary or previous, and the moves between them.

A role is an alias of MLflow's registry, the only authority. Who writes: training and the operators' commands,
through the functions here. On SQLite one move at a time holds our database's write lock from its first look at the
aliases to its audit rows, so that two never interleave. The rows are written before the aliases are moved and
committed after; a move that fails puts the aliases back. Whatever moved a role behind the audit's back, a person in
the MLflow page or a move that was killed, is noted with the next move, so that each role's rows form a chain.
"""

import getpass
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from types import EllipsisType

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from labstack.mlflow_rest import MlflowRest, NotThereError, RegistryError, RegistryUnreachableError, Version
from labstack.store.audit import RoleMove
from labstack.store.database import writing

PRODUCTION, CANARY, PREVIOUS = ROLES = ("production", "canary", "previous")


class ProductionMovedError(RegistryError):
    """Production is another version than the caller judged by."""


@dataclass(frozen=True)
class Roles:
    """The version of each role of one model; None where no version has it."""

    production: int | None = None
    canary: int | None = None
    previous: int | None = None


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
        return _roles(client.aliases(model))
    except NotThereError:
        return Roles()


def all_roles(client: MlflowRest) -> dict[str, Roles]:
    """The roles of every registered model."""
    return {model: _roles(aliases) for model, aliases in client.models().items()}


def living_production(client: MlflowRest, model: str) -> Version | None:
    """The record of the production version; None when there is none, or it was deleted."""
    return _living(client, model, roles(client, model).production)


def promote(
    client: MlflowRest,
    engine: Engine,
    model: str,
    number: int,
    *,
    reason: str,
    instead_of: int | EllipsisType | None = ...,
) -> None:
    """Make a version production; the one it takes the place of becomes `previous`. A canary that is promoted ends.

    `instead_of` is the production version, None for no version, that the new one was judged by; raises
    ProductionMovedError when production is another by now. Not said, any may be.
    """

    def change(now: Roles) -> Roles:
        if now.production == number:
            raise RegistryError(f"Version {number} of {model!r} is production already.")
        outgoing = now.production if _living(client, model, now.production) else None
        if instead_of is not ... and outgoing != instead_of:
            raise ProductionMovedError(f"Production of {model!r} is version {outgoing} by now, not {instead_of}.")
        _require_ready(client, model, number)
        return Roles(number, None if now.canary == number else now.canary, outgoing)

    _move(client, engine, model, change, reason)


def rollback(client: MlflowRest, engine: Engine, model: str, *, reason: str) -> int:
    """Make `previous` production again, and today's production `previous`. The version now in production."""

    def change(now: Roles) -> Roles:
        if now.previous is None or now.previous == now.production:
            raise RegistryError(f"The model {model!r} has no previous version to go back to.")
        _require_ready(client, model, now.previous)
        canary = None if now.canary == now.previous else now.canary
        return Roles(now.previous, canary, now.production if _living(client, model, now.production) else None)

    return _move(client, engine, model, change, reason).production or 0


def start_canary(client: MlflowRest, engine: Engine, model: str, number: int, *, reason: str) -> None:
    """Make a version the canary beside production."""

    def change(now: Roles) -> Roles:
        if now.production is None:
            raise RegistryError(f"The model {model!r} has no production version for a canary to stand beside.")
        if number == now.production:
            raise RegistryError(f"Version {number} of {model!r} is production; a canary is another version.")
        if now.canary is not None:
            raise RegistryError(f"Version {now.canary} of {model!r} is the canary already; accept or reject it first.")
        _require_ready(client, model, number)
        return replace(now, canary=number)

    _move(client, engine, model, change, reason)


def stop_canary(client: MlflowRest, engine: Engine, model: str, *, reason: str) -> None:
    """Take the canary's role from it."""

    def change(now: Roles) -> Roles:
        if now.canary is None:
            raise RegistryError(f"The model {model!r} has no canary.")
        return replace(now, canary=None)

    _move(client, engine, model, change, reason)


def actor() -> str:
    """Who is acting: the user and the machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user id need not have a name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _move(client: MlflowRest, engine: Engine, model: str, change: Callable[[Roles], Roles], reason: str) -> Roles:
    """Move the roles to what `change` makes of them as they are; the roles then. `change` raises to refuse."""
    with writing(engine) as session:
        before = roles(client, model)
        after = change(before)
        _record(session, model, _recorded(session, model), before, "unknown", "found moved, by none of our moves")
        _record(session, model, before, after, actor(), reason)
        session.flush()
        changed = [role for role in ROLES if getattr(before, role) != getattr(after, role)]
        try:
            for role in changed:  # production, which is served, comes first
                _set_alias(client, model, role, getattr(after, role))
        except BaseException:
            for role in changed:
                with suppress(RegistryError):
                    _set_alias(client, model, role, getattr(before, role))
            raise
    return after


def _set_alias(client: MlflowRest, model: str, role: str, number: int | None) -> None:
    if number is None:
        client.delete_alias(model, role)
    else:
        client.set_alias(model, role, number)


def _recorded(session: Session, model: str) -> Roles:
    """The roles as the audit's last rows left them."""
    query = select(RoleMove).where(RoleMove.model == model).order_by(RoleMove.id)
    return Roles(**{move.role: move.to_version for move in session.scalars(query)})


def _record(session: Session, model: str, before: Roles, after: Roles, who: str, reason: str) -> None:
    """One audit row for each role that goes from one version to another."""
    for role in ROLES:
        source, target = getattr(before, role), getattr(after, role)
        if source != target:
            session.add(
                RoleMove(model=model, role=role, from_version=source, to_version=target, actor=who, reason=reason)
            )


def _roles(aliases: dict[str, int]) -> Roles:
    return Roles(**{role: aliases[role] for role in ROLES if role in aliases})


def _living(client: MlflowRest, model: str, number: int | None) -> Version | None:
    """The record of the version that a role names; None when it names none, or one that was deleted."""
    if number is not None:
        with suppress(NotThereError):
            return client.version(model, number)
    return None


def _require_ready(client: MlflowRest, model: str, number: int) -> None:
    status = client.version(model, number).status
    if status != "READY":
        raise RegistryError(f"Version {number} of {model!r} is not ready: its status is {status}.")
