"""What only operators may ask."""

import hmac
import time
from typing import Any

from flask import Blueprint, request

from labstack.api.problems import Problem
from labstack.api.service import service

blueprint = Blueprint("admin", __name__)


@blueprint.before_request
def _require_operator() -> None:
    token = service().settings.api_admin_token
    sent = request.headers.get("X-Admin-Token", "")
    if token is not None and not hmac.compare_digest(sent.encode(), token.get_secret_value().encode()):
        raise Problem(
            403, "not-an-operator", "Send the operators' token as X-Admin-Token; it is API_ADMIN_TOKEN in .env."
        )


@blueprint.post("/admin/reload")
def reload() -> dict[str, Any]:
    """Have every worker look at the registry now; answers when all of them have.

    After a 200 no request is answered by a version that is production no more. 503 when a worker could not reach
    the registry or load a version, or did not answer in time; what was served before still is.
    """
    control, timeout = service().control, service().settings.reload_timeout_seconds
    generation = control.raise_desired()
    deadline = time.monotonic() + timeout
    while True:
        states = control.states()
        lagging = [state.pid for state in states if state.generation < generation]
        if not lagging:
            break
        if time.monotonic() > deadline:
            pids = ", ".join(map(str, lagging))
            raise Problem(503, "reload-timeout", f"These workers did not answer within {timeout:g} seconds: {pids}.")
        time.sleep(0.01)
    errors = sorted({error for state in states for error in state.errors})
    if errors:
        raise Problem(503, "reload-failed", f"What was served before still is. {' '.join(errors)}")
    return {"generation": generation, "workers": [{"pid": state.pid, "models": state.versions} for state in states]}
