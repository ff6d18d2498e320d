"""The console: a page for people, on which operators also move roles; each move is confirmed on a page of its own."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlencode

from flask import Blueprint, redirect, request
from werkzeug.wrappers import Response as AnyResponse

from labstack.api.http import actions
from labstack.api.http.actions import NotFollowedProblem
from labstack.api.http.bodies import Move, Update, validate
from labstack.api.http.operators import refusal, require_signed_in, sign_in, sign_out
from labstack.api.http.request import query_model, query_number, service, whole_number
from labstack.api.problems import Problem
from labstack.api.web import console, pages
from labstack.errors import LabError
from labstack.registry.client import RegistryFailedError
from labstack.registry.roles import Roles, read_roles
from labstack.store.database import DatabaseError

TITLES = {
    "canary": "Start the canary",
    "accept": "Accept the canary",
    "reject": "Remove the canary",
    "rollback": "Roll back",
    "reload": "Reload",
}

DONE = {
    "canary": "The canary gets its share of the requests.",
    "accept": "The canary has become production.",
    "reject": "The canary has been removed.",
    "rollback": "The previous version is production again.",
    "reload": "Every worker follows the registry.",
}

NEWEST = 2**31  # greater than the number of any version

blueprint = Blueprint("console", __name__)
blueprint.after_request(pages.guard)


class Request(NamedTuple):
    """A move that an operator chose on the page: one of TITLES, of a model, to a version where it needs one."""

    move: str
    model: str
    version: int | None


@blueprint.get("/console")
def show() -> str:
    """The page of the default model, or of ?model=; of its versions without a role those below ?versions_before=."""
    done = DONE.get(request.args.get("done", ""), "")
    before = query_number("versions_before", NEWEST, 1, NEWEST)
    values = console.page(service(), query_model(), refusal(), before)
    return _render("console.html", **values, done=done, newest=before == NEWEST)


@blueprint.get("/console/confirm")
def confirm() -> str:
    """A page that says what a move will do, with the button that makes it."""
    require_signed_in()
    move, model, version = _read(request.args.get)
    roles = read_roles(service().client, model)
    settings = service().settings
    is_canary = version is not None and version == roles.canary
    rollout = roles.rollout if is_canary else None
    return _render(
        "confirm.html",
        move=move,
        title="Change the share" if move == "canary" and is_canary else TITLES[move],
        model=model,
        version=version,
        roles=roles,
        consequence=console.consequence(move, model, roles, version),
        weight=rollout.weight if rollout else settings.canary_probability,
        mode=rollout.mode if rollout else "split",
        steps=settings.canary_steps,
    )


@blueprint.post("/console/move")
def move() -> AnyResponse:
    """Make a move that was confirmed, if the roles are still those that were shown."""
    require_signed_in()
    chosen = _read(request.form.get)
    roles = read_roles(service().client, chosen.model)
    if request.form.get("roles") != _seen(roles):
        raise Problem(
            409, "roles-moved", f"The roles of {chosen.model!r} have moved since the page was loaded. Look again."
        )
    _make(chosen, roles)
    return redirect(f"/console?{urlencode({'model': chosen.model, 'done': chosen.move})}", 303)


@blueprint.post("/console/sign-in")
def enter() -> AnyResponse:
    """Take the operators' token, and answer with a cookie that proves that it was sent."""
    return sign_in(redirect(_back(), 303), request.form.get("token", ""))


@blueprint.post("/console/sign-out")
def leave() -> AnyResponse:
    """Delete the cookie."""
    return sign_out(redirect(_back(), 303))


@blueprint.errorhandler(LabError)
def _from_lab(error: LabError) -> tuple[str, int, dict[str, str]]:
    status = 503 if isinstance(error, RegistryFailedError | DatabaseError) else 409
    return _from_problem(Problem(status, "refused", str(error)))


@blueprint.errorhandler(Problem)
def _from_problem(problem: Problem) -> tuple[str, int, dict[str, str]]:
    """Return an error as a page with a link back."""
    moved = isinstance(problem, NotFollowedProblem)
    return _render("failed.html", problem=problem, moved=moved, back=_back()), problem.status, problem.headers


def _make(chosen: Request, roles: Roles) -> None:
    """Make a move from these roles. Raises Problem or LabError."""
    values: dict[str, Any] = {"model": chosen.model, "reason": request.form.get("reason") or None}
    if chosen.move == "reload":
        actions.reload()
    elif chosen.move == "canary":
        values |= {"version": chosen.version, "weight": _share(), "mode": request.form.get("mode")}
        actions.start_canary(validate(Update.model_validate, values, "form"), roles)
    else:
        action = {"accept": actions.accept, "reject": actions.reject, "rollback": actions.rollback}[chosen.move]
        action(validate(Move.model_validate, values, "form"), roles)


def _render(template: str, **values: Any) -> str:
    return pages.render(template, seen=_seen, pretty=partial(json.dumps, indent=1, ensure_ascii=False), **values)


def _read(get: Callable[[str], str | None]) -> Request:
    """Return the move that a query or a form names. Raises Problem."""
    move, text = get("move") or "", get("version") or ""
    version = whole_number(text)
    if move not in TITLES or (text and version is None):
        raise Problem(404, "unknown-move", f"There is no move {move[:20]!r} of version {text[:20]!r}.")
    if move == "canary" and version is None:
        raise Problem(422, "form", "A canary needs a version.")
    return Request(move, get("model") or service().settings.default_model_name, version)


def _share() -> float:
    """Return the canary's weight, which the form gives in percent. Raises Problem."""
    text = request.form.get("weight", "")
    try:
        return float(text) / 100
    except ValueError:
        raise Problem(422, "form", f"The share {text[:20]!r} is not a number; give it in percent.") from None


def _seen(roles: Roles) -> str:
    """Return the roles as text, which a form sends back to show which roles the operator saw."""
    return "/".join(map(str, (roles.production, roles.canary, roles.previous, roles.rollout)))


def _back() -> str:
    model = request.form.get("model") or request.args.get("model")
    return "/console" + (f"?{urlencode({'model': model})}" if model else "")
