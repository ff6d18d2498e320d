"""The actions of operators, by a request or on the console: move a role, or have every worker follow the registry."""

from typing import Any

import structlog
from flask import request

from labstack.api.http.bodies import Move, Update
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

log = structlog.get_logger(__name__)


class NotFollowedProblem(Problem):
    """A move that the registry has made, and that not every worker follows yet."""

    def __init__(self, cause: Problem) -> None:
        detail = f"The registry has moved the role, but not every worker follows yet. {cause.detail}"
        super().__init__(cause.status, cause.kind, detail)


def _model(move: Move) -> str:
    """Return the name of the model whose role moves."""
    return move.model or service().settings.default_model_name


def reload() -> dict[str, Any]:
    """Have every worker look at the registry now; return what each serves then. Raises Problem, 503, if one cannot."""
    try:
        converged = converge(service().control, service().settings.reload_timeout_seconds)
    except Problem as problem:
        _note("reload", f"failed: {problem.detail}")
        raise
    _note("reload", f"followed by {len(converged['workers'])} workers")
    return converged


def start_canary(update: Update, only_from: Roles | None = None) -> dict[str, Any]:
    """Make a version the canary, or change its rollout; return the roles, and what each worker serves then.

    This and the other moves are made only from the roles that the caller saw, where it names them. They raise Problem,
    RegistryError or DatabaseError.
    """
    model, version = _model(update), update.version
    production = service().lineup(model).production.served
    try:
        require_compatible(production, _loaded(update, version))
    except IncompatibleError as error:
        message = f"Version {version} of {model!r} cannot be a canary. {error}"
        raise _refused(update, version, "incompatible", message) from error
    weight = service().settings.canary_probability if update.weight is None else update.weight
    rollout = Rollout(weight, update.mode)
    note = _move_note(update, f"canary, {rollout}", only_from)
    return _followed(model, moves.start_canary(service().client, service().engine, model, version, rollout, **note))


def accept(move: Move, only_from: Roles | None = None) -> dict[str, Any]:
    """Make the canary production."""
    model, note = _model(move), _move_note(move, "canary accepted", only_from)
    canary = service().lineup(model).canary
    tried = canary.served.version if canary else None
    return _followed(model, moves.accept_canary(service().client, service().engine, model, tried, **note))


def reject(move: Move, only_from: Roles | None = None) -> dict[str, Any]:
    """Remove the canary."""
    model, note = _model(move), _move_note(move, "canary rejected", only_from)
    return _followed(model, moves.stop_canary(service().client, service().engine, model, **note))


def rollback(move: Move, only_from: Roles | None = None) -> dict[str, Any]:
    """Make the previous version production again."""
    model, note = _model(move), _move_note(move, "rollback", only_from)
    previous = read_roles(service().client, model).previous
    if previous is not None:
        _loaded(move, previous)
    return _followed(model, moves.rollback(service().client, service().engine, model, **note))


def _operator() -> str:
    """Return the name of the operator who sent the request, as the audit shows it."""
    return f"operator at {request.remote_addr}"


def _loaded(move: Move, version: int) -> Contract:
    """Return the contract of a version that this API can load. Raises Problem when it cannot, or RegistryError."""
    record = service().client.version(_model(move), version)
    try:
        return service().follower.loader.fetch(record)
    except RegistryError:
        raise
    except Exception as error:  # the files of a version may be broken in any way
        message = f"Version {version} of {_model(move)!r} could not be loaded: {error}"
        raise _refused(move, version, "load-failed", message) from error


def _refused(move: Move, version: int, kind: str, message: str) -> Problem:
    """Note in the audit that a version cannot be served so; return the answer."""
    reason = move.reason or ("canary" if isinstance(move, Update) else "rollback")
    _note("refused", f"{reason}: {message}", model=_model(move), version=version)
    return Problem(409, kind, message)


def _note(action: audit.Action, reason: str, **details: Any) -> None:
    """Note in the audit what is not a move; an unreachable database is logged, and stops nothing."""
    try:
        audit.note(service().engine, action, actor=_operator(), reason=reason, **details)
    except DatabaseError as error:
        log.error("audit not written", action=action, reason=reason, error=str(error))


def _move_note(move: Move, default_reason: str, only_from: Roles | None) -> MoveNote:
    """Return what the audit will hold of a move, and the roles that it may be made from."""
    note = MoveNote(reason=move.reason or default_reason, who=_operator())
    if only_from is not None:
        note["only_from"] = only_from
    return note


def _followed(model: str, roles: Roles) -> dict[str, Any]:
    """Return the roles after a move, when all workers serve them. Raises NotFollowedProblem when one does not."""
    try:
        converged = converge(service().control, service().settings.reload_timeout_seconds, model)
    except Problem as problem:
        raise NotFollowedProblem(problem) from problem
    rollout = roles.rollout
    canary = None if rollout is None else {"version": roles.canary, "weight": rollout.weight, "mode": rollout.mode}
    return {"model": model, "production": roles.production, "canary": canary, "previous": roles.previous} | converged
