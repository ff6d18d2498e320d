"""What operators may do, by a request or on the console: move roles, and have every worker look at the registry."""

from typing import Any, Literal

import structlog
from flask import request
from pydantic import BaseModel, ConfigDict, Field

from labstack.api.http.request import service
from labstack.api.problems import Problem
from labstack.api.serving.look import IncompatibleError, require_compatible
from labstack.api.serving.reload import converge
from labstack.model.contract import Contract
from labstack.registry import moves
from labstack.registry.client import RegistryError
from labstack.registry.moves import MoveNote
from labstack.registry.roles import Roles, Rollout, read_roles
from labstack.store import audit
from labstack.store.database import DatabaseError

MOVED = "The registry has moved the role"

log = structlog.get_logger(__name__)


class Move(BaseModel):
    """Which model's role moves, by default the default model's, and why, for the audit."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, min_length=1)
    reason: str | None = Field(None, max_length=500)

    @property
    def of(self) -> str:
        """The model's name."""
        return self.model or service().settings.default_model_name


class Update(Move):
    """The version that is to be the canary, and how it gets its requests."""

    version: int = Field(ge=1, lt=2**31)
    weight: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    mode: Literal["split", "shadow"] = "split"

    @property
    def rollout(self) -> Rollout:
        """How it gets its requests."""
        weight = service().settings.canary_probability if self.weight is None else self.weight
        return Rollout(weight, self.mode)


def reload() -> dict[str, Any]:
    """Have every worker look at the registry now; what each serves then. Raises Problem, 503, when one cannot."""
    try:
        converged = converge(service().control, service().settings.reload_timeout_seconds)
    except Problem as problem:
        _note("reload", f"failed: {problem.detail}")
        raise
    _note("reload", f"followed by {len(converged['workers'])} workers")
    return converged


def update(asked: Update, only_from: Roles | None = None) -> dict[str, Any]:
    """Make a version the canary, or change its rollout; the roles, and what each worker serves then.

    As all that follow it is made only from the roles that the caller saw, if it says them. Raises Problem,
    RegistryError or DatabaseError.
    """
    production = service().lineup(asked.of).production.served
    try:
        require_compatible(production, _tried(asked, asked.version))
    except IncompatibleError as error:
        text = f"Version {asked.version} of {asked.of!r} cannot be a canary. {error}"
        raise _refused(asked, asked.version, "incompatible", text) from error
    arguments = asked.version, asked.rollout
    return _moved(moves.start_canary, asked, f"canary, {asked.rollout}", only_from, *arguments)


def accept(asked: Move, only_from: Roles | None = None) -> dict[str, Any]:
    """Make the canary production."""
    canary = service().lineup(asked.of).canary
    tried = canary.served.version if canary else None
    return _moved(moves.accept_canary, asked, "canary accepted", only_from, tried)


def reject(asked: Move, only_from: Roles | None = None) -> dict[str, Any]:
    """Take the canary out."""
    return _moved(moves.stop_canary, asked, "canary rejected", only_from)


def rollback(asked: Move, only_from: Roles | None = None) -> dict[str, Any]:
    """Make the previous version production again."""
    previous = read_roles(service().client, asked.of).previous
    if previous is not None:
        _tried(asked, previous)
    return _moved(moves.rollback, asked, "rollback", only_from)


def _operator() -> str:
    """Who asks, as the audit says it."""
    return f"operator at {request.remote_addr}"


def _tried(asked: Move, version: int) -> Contract:
    """The contract of a version that this API could serve. Raises Problem where it could not, or RegistryError."""
    record = service().client.version(asked.of, version)
    try:
        return service().follower.loader.fetch(record)
    except RegistryError:
        raise
    except Exception as error:  # a version's files may be at fault in any way
        text = f"Version {version} of {asked.of!r} could not be loaded: {error}"
        raise _refused(asked, version, "load-failed", text) from error


def _refused(asked: Move, version: int, kind: str, text: str) -> Problem:
    """The answer to a move to a version that cannot be served so, noted in the audit."""
    reason = asked.reason or ("canary" if isinstance(asked, Update) else "rollback")
    _note("refused", f"{reason}: {text}", model=asked.of, version=version)
    return Problem(409, kind, text)


def _note(action: audit.Action, reason: str, **of: Any) -> None:
    """Note what was no move in the audit; a database that is away keeps nobody from a reload."""
    try:
        audit.note(service().engine, action, actor=_operator(), reason=reason, **of)
    except DatabaseError as error:
        log.error("audit not written", action=action, reason=reason, error=str(error))


def _moved(move: Any, asked: Move, reason: str, only_from: Roles | None, *arguments: Any) -> dict[str, Any]:
    """Make a move, and answer when all workers follow it."""
    model = asked.of
    said = MoveNote(reason=asked.reason or reason, who=_operator())
    if only_from is not None:
        said["only_from"] = only_from
    roles: Roles = move(service().client, service().engine, model, *arguments, **said)
    try:
        converged = converge(service().control, service().settings.reload_timeout_seconds, model)
    except Problem as problem:
        problem.detail = f"{MOVED}, but not every worker follows yet. {problem.detail}"
        raise
    rollout = roles.rollout
    canary = None if rollout is None else {"version": roles.canary, "weight": rollout.weight, "mode": rollout.mode}
    moved = {"model": model, "production": roles.production, "canary": canary, "previous": roles.previous}
    return moved | converged
