"""What only operators may ask: every move of a role, and a reload; each answers when all workers have followed."""

import hmac
import time
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from flask import Blueprint, request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from labstack import registry
from labstack.api import metrics
from labstack.api.problems import Problem, faults_of
from labstack.api.request import body, json_body, service
from labstack.api.serving.control import REGISTRY
from labstack.api.serving.follower import IncompatibleError, require_compatible
from labstack.mlflow_rest import RegistryError
from labstack.registry import Roles, Rollout
from labstack.settings import LOOPBACK

WRONG_TOKENS = 10  # from one address, that each worker hears within the time, before it hears no more from there
WRONG_TOKENS_SECONDS = 60.0

blueprint = Blueprint("admin", __name__)


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


class WrongTokens:
    """How many wrong tokens came from each address lately: each worker's own count, bounded in size."""

    def __init__(self) -> None:
        self._since = 0.0
        self._heard: dict[str, int] = {}

    def count(self, address: str, wrong: int = 0) -> int:
        """The wrong tokens from an address in this minute, with these."""
        now = time.monotonic()
        if now - self._since > WRONG_TOKENS_SECONDS or len(self._heard) > 10_000:
            self._since, self._heard = now, {}
        self._heard[address] = self._heard.get(address, 0) + wrong
        return self._heard[address]


wrong_tokens = WrongTokens()


@blueprint.before_request
def _require_operator() -> None:
    token = service().settings.api_admin_token
    if token is None:
        _require_own_page()
        return
    address = request.remote_addr or ""
    if wrong_tokens.count(address) >= WRONG_TOKENS:
        wait = f"Wait for {WRONG_TOKENS_SECONDS:g} seconds."
        raise Problem(429, "too-many-wrong-tokens", f"{WRONG_TOKENS} wrong tokens came from {address}. {wait}")
    sent = request.headers.get("X-Admin-Token", "").encode("latin-1")  # as WSGI hands headers over
    if not hmac.compare_digest(sent, token.get_secret_value().encode()):
        wrong_tokens.count(address, 1 if sent else 0)
        raise Problem(
            403, "not-an-operator", "Send the operators' token as X-Admin-Token; it is API_ADMIN_TOKEN in .env."
        )


def _require_own_page() -> None:
    """Without a token, refuse what a foreign page makes a browser of this machine send."""
    host = urlsplit(f"//{request.host}").hostname
    origin = request.headers.get("Origin")
    if host not in LOOPBACK or (origin is not None and urlsplit(origin).netloc != request.host):
        raise Problem(403, "not-an-operator", "Without API_ADMIN_TOKEN, only this machine's own calls are answered.")


@blueprint.post("/admin/reload")
def reload() -> dict[str, Any]:
    """Have every worker look at the registry now; answers when all of them have.

    No request that begins after a 200 is answered by a version that is production no more. 503 when a worker could
    not reach the registry or load a version, or did not answer in time; what could not be followed is served as
    before.
    """
    return _converge()


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
        raise Problem(
            409, "incompatible", f"Version {asked.version} of {model!r} cannot be a canary. {error}"
        ) from error
    except RegistryError:
        raise
    except Exception as error:
        text = f"Version {asked.version} of {model!r} could not be loaded: {error}"
        raise Problem(409, "load-failed", text) from error
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


def _moved(model: str, move: Any, asked: Move, reason: str, *arguments: Any) -> dict[str, Any]:
    """Make a move, and answer when all workers follow it."""
    who = f"operator at {request.remote_addr}"
    roles: Roles = move(service().client, service().engine, model, *arguments, reason=asked.reason or reason, who=who)
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
