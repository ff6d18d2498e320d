"""Checks of a version before it takes a role: that it passed its gates, can be served, and breaks no callers."""

import tempfile
from pathlib import Path

import structlog
from sqlalchemy import Engine

from labstack.errors import LabError
from labstack.model.contract import Contract
from labstack.registry import moves, trial
from labstack.registry.client import MlflowRest, RegistryError, RegistryUnreachableError
from labstack.registry.roles import FAILED, GATE_TAG, GATES_TAG, PASSED, SCHEMA_CHANGE_TAG, living_production
from labstack.settings import Settings
from labstack.store import audit

log = structlog.get_logger(__name__)


class NotEligibleError(LabError):
    """A version may not take a role; the text says why. No role was moved."""


def require_passed(client: MlflowRest, model: str, number: int) -> None:
    """Raise NotEligibleError when a version did not pass its gates, or was never judged."""
    tags = client.version(model, number).tags
    if tags.get(GATES_TAG) == PASSED:
        return
    failed = [
        f"{name.removeprefix(GATE_TAG)} {verdict}"
        for name, verdict in sorted(tags.items())
        if name.startswith(GATE_TAG) and verdict.startswith(FAILED)
    ]
    reason = "; ".join(failed) or "it was never judged"
    raise NotEligibleError(f"Version {number} of {model!r} has not passed its gates: {reason}. --force promotes it.")


def note_refusal(engine: Engine, model: str, number: int, reason: str) -> None:
    """Note in the audit that a version was refused a role."""
    audit.note(engine, "refused", model=model, version=number, actor=moves.actor(), reason=reason)


def require_promotable(client: MlflowRest, model: str, number: int, settings: Settings, *, force: bool) -> None:
    """Raise TrialError when a version cannot be served, and NotEligibleError when it breaks callers of production.

    With `force`, or where its gates allowed it, a version may break callers.
    """
    contract = require_servable(client, model, number, settings)
    if not force and SCHEMA_CHANGE_TAG not in client.version(model, number).tags:
        _require_compatible(client, model, number, contract, settings, "production")


def require_canary(client: MlflowRest, model: str, number: int, settings: Settings) -> None:
    """Raise TrialError when a version cannot be served, and NotEligibleError when it breaks callers of production."""
    _require_compatible(client, model, number, require_servable(client, model, number, settings), settings, "a canary")


def require_servable(client: MlflowRest, model: str, number: int, settings: Settings) -> Contract:
    """Fetch and try a version, and return its contract. Raises TrialError when it cannot be served."""
    return trial.require_servable(client, client.version(model, number), settings)


def _require_compatible(
    client: MlflowRest, model: str, number: int, contract: Contract, settings: Settings, role: str
) -> None:
    """Raise NotEligibleError when a contract breaks callers of production, if production's contract can be read."""
    production = living_production(client, model)
    if production is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            known = trial.fetch_contract(client, production, Path(folder), settings)
        except RegistryUnreachableError:
            raise
        except (RegistryError, OSError, ValueError) as error:  # no caller depends on a contract that cannot be read
            log.warning("production not compared", model=model, version=production.number, error=str(error))
            return
    if broken := contract.breaks_with(known):
        raise NotEligibleError(
            f"Version {number} of {model!r} cannot be {role}: {'; '.join(broken)}, unlike version "
            f"{production.number} in production."
        )
