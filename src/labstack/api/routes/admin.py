"""What only operators may ask: every move of a role, and a reload; each answers when all workers have followed."""

import time
from typing import Any, Literal, TypeVar

import structlog
from flask import Blueprint, request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from labstack import registry
from labstack.api import metrics
from labstack.api.operators import require_operator
from labstack.api.problems import Problem, faults_of
from labstack.api.request import body, json_body, service
from labstack.api.serving.control import REGISTRY
from labstack.api.serving.follower import IncompatibleError, require_compatible
from labstack.mlflow_rest import RegistryError
from labstack.registry import Roles, Rollout
from labstack.store import audit
from labstack.store.database import DatabaseError

log = structlog.get_logger(__name__)

blueprint = Blueprint("admin", __name__)
blueprint.before_request(require_operator)


class Move(BaseModel):
    """Which model's role moves, by default the default model's, and why, for the audit."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    reason: str | None = Field(None, max_length=500)


class Update(Move):
    """The version that is to be the canary, and how it gets its requests."""

    version: int = Field(ge=1, lt=2**31)
    weight: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    mode: Literal["split", "shadow"] = "split"


Asked = TypeVar("Asked", bound=Move)


@blueprint.post("/admin/reload")
def reload() -> dict[str, Any]:
    """Have every worker look at the registry now; answers when all of them have.

    No request that begins after a 200 is answered by a version that is production no more. 503 when a worker could
    not reach the registry or load a version, or did not answer in time; what could not be followed is served as
    before.
    """
    try:
        converged = _converge()
    except Problem as problem:
        _note("reload", f"failed: {problem.detail}")
        raise
    _note("reload", f"followed by {len(converged['workers'])} workers")
    return converged


@blueprint.post("/update-model")
def update_model() -> dict[str, Any]:
    """Make a version the canary beside production, or change the weight and the mode of the one that is."""
    asked = _asked(Update)
    model = _model(asked)
    production = service().lineup(model).production.served
    record = service().client.version(model, asked.version)
    try:
        require_compatible(service().follower.open(record), production)
    except IncompatibleError as error:
        raise _refused(
            asked, "incompatible", f"Version {asked.version} of {model!r} cannot be a canary. {error}"
        ) from error
    except RegistryError:
        raise
    except Exception as error:
        text = f"Version {asked.version} of {model!r} could not be loaded: {error}"
        raise _refused(asked, "load-failed", text) from error
    weight = service().settings.canary_probability if asked.weight is None else asked.weight
    rollout = Rollout(weight, asked.mode)
    return _moved(model, registry.start_canary, asked, f"canary, {rollout}", asked.version, rollout)


@blueprint.post("/accept-next-model")
def accept_next_model() -> dict[str, Any]:
    """Make the canary production; the version it takes the place of becomes `previous`."""
    asked = _asked(Move)
    canary = service().lineup(_model(asked)).canary
    tried = canary.served.version if canary else None
    return _moved(_model(asked), registry.accept_canary, asked, "canary accepted", tried)


@blueprint.post("/reject-next-model")
def reject_next_model() -> dict[str, Any]:
    """Take the canary out; production answers everything again."""
    asked = _asked(Move)
    return _moved(_model(asked), registry.stop_canary, asked, "canary rejected")


@blueprint.post("/rollback")
def rollback() -> dict[str, Any]:
    """Make the previous version production again."""
    asked = _asked(Move)
    return _moved(_model(asked), registry.rollback, asked, "rollback")


def _asked(schema: type[Asked]) -> Asked:
    """The body, which may be none where nothing in it is required. Raises Problem that names every fault."""
    sent = json_body() if body() or "version" in schema.model_fields else {}
    try:
        return schema.model_validate(sent)
    except ValidationError as error:
        faults = faults_of(error)
        raise Problem(
            422, "body", "; ".join(f"{field}: {message}" for field, message in faults) + ".", faults
        ) from None


def _model(asked: Move) -> str:
    return asked.model or service().settings.default_model_name


def operator() -> str:
    """Who asks, as the audit says it."""
    return f"operator at {request.remote_addr}"


def _refused(asked: Update, kind: str, text: str) -> Problem:
    """What a version answers that cannot be a canary, noted in the audit."""
    _note("refused", f"{asked.reason or 'canary'}: {text}", model=_model(asked), version=asked.version)
    return Problem(409, kind, text)


def _note(action: audit.Action, reason: str, **of: Any) -> None:
    """Note what was no move in the audit; a database that is away keeps nobody from a reload."""
    try:
        audit.note(service().engine, action, actor=operator(), reason=reason, **of)
    except DatabaseError as error:
        log.error("audit not written", action=action, reason=reason, error=str(error))


def _moved(model: str, move: Any, asked: Move, reason: str, *arguments: Any) -> dict[str, Any]:
    """Make a move, and answer when all workers follow it."""
    roles: Roles = move(
        service().client, service().engine, model, *arguments, reason=asked.reason or reason, who=operator()
    )
    try:
        converged = _converge(model)
    except Problem as problem:
        problem.detail = f"The registry has moved the role, but not every worker follows yet. {problem.detail}"
        raise
    rollout = roles.rollout
    canary = None if rollout is None else {"version": roles.canary, "weight": rollout.weight, "mode": rollout.mode}
    moved = {"model": model, "production": roles.production, "canary": canary, "previous": roles.previous}
    return moved | converged


def _converge(model: str | None = None) -> dict[str, Any]:
    """Have every worker look at the registry; what each serves then. Raises Problem, 503, when one cannot.

    Asked about one model, what is wrong with others is not looked at.
    """
    control, timeout = service().control, service().settings.reload_timeout_seconds
    generation = control.raise_desired()
    deadline = time.monotonic() + timeout
    while True:
        states = control.states()
        lagging = [state.pid for state in states if state.generation < generation]
        if states and not lagging:
            break
        if time.monotonic() > deadline:
            pids = ", ".join(map(str, lagging)) or "any"
            metrics.reloads.labels("timeout").inc()
            raise Problem(503, "reload-timeout", f"No word within {timeout:g} seconds from worker {pids}.")
        time.sleep(0.01)
    of_interest = None if model is None else (REGISTRY, model)
    errors = sorted(
        {error for state in states for of, error in state.errors.items() if of_interest is None or of in of_interest}
    )
    if errors:
        metrics.reloads.labels("failed").inc()
        raise Problem(503, "reload-failed", f"What could not be followed is served as before. {' '.join(errors)}")
    metrics.reloads.labels("ok").inc()
    return {"generation": generation, "workers": [{"pid": state.pid, "models": state.roles} for state in states]}
