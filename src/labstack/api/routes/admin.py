"""What only operators may ask."""

import hmac
import time
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, request

from labstack.api.problems import Problem
from labstack.api.service import service
from labstack.settings import LOOPBACK

blueprint = Blueprint("admin", __name__)


@blueprint.before_request
def _require_operator() -> None:
    token = service().settings.api_admin_token
    if token is None:
        _require_own_page()
        return
    sent = request.headers.get("X-Admin-Token", "").encode("latin-1")  # as WSGI hands headers over
    if not hmac.compare_digest(sent, token.get_secret_value().encode()):
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
            raise Problem(503, "reload-timeout", f"No word within {timeout:g} seconds from worker {pids}.")
        time.sleep(0.01)
    errors = sorted({error for state in states for error in state.errors})
    if errors:
        raise Problem(503, "reload-failed", f"What could not be followed is served as before. {' '.join(errors)}")
    return {"generation": generation, "workers": [{"pid": state.pid, "models": state.versions} for state in states]}
