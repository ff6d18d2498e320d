"""Reloads: every worker of this API looks at the registry again, and the caller learns what each serves then."""

import time
from collections.abc import Sequence
from typing import Any

from labstack.api import metrics
from labstack.api.problems import Problem
from labstack.api.serving.control import REGISTRY, Control, ControlError, WorkerState

POLL_SECONDS = 0.01


def converge(control: Control, timeout_seconds: float, model: str | None = None) -> dict[str, Any]:
    """Make every worker look at the registry, and return the generation with the versions that each worker serves.

    With a model, the errors of other models are ignored. Raises Problem, 503, when a worker cannot follow in time.
    """
    try:
        generation = control.raise_desired()
    except ControlError as error:
        metrics.reloads.labels("failed").inc()
        raise Problem(503, "reload-failed", str(error)) from error
    states = _wait_for(control, generation, timeout_seconds)
    if errors := _errors(states, model):
        metrics.reloads.labels("failed").inc()
        text = f"The workers keep serving what they could not replace. {' '.join(errors)}"
        raise Problem(503, "reload-failed", text)
    metrics.reloads.labels("ok").inc()
    return {"generation": generation, "workers": [{"pid": state.pid, "models": state.roles} for state in states]}


def _wait_for(control: Control, generation: int, timeout_seconds: float) -> list[WorkerState]:
    """Return the states of all workers once each has reached the generation. Raises Problem after the timeout."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        states = control.states()
        lagging = [state.pid for state in states if state.generation < generation]
        if states and not lagging:
            return states
        if time.monotonic() > deadline:
            pids = ", ".join(map(str, lagging)) or "any"
            metrics.reloads.labels("timeout").inc()
            raise Problem(503, "reload-timeout", f"No report within {timeout_seconds:g} seconds from worker {pids}.")
        time.sleep(POLL_SECONDS)


def _errors(states: Sequence[WorkerState], model: str | None) -> list[str]:
    """Return the distinct errors that the workers report, of all models or of one, and of the registry itself."""
    return sorted(
        {
            text
            for state in states
            for subject, text in state.errors.items()
            if model is None or subject in (REGISTRY, model)
        }
    )
