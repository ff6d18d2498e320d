"""The console: one page for people, on which operators move roles too, each time after a word on what will happen."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, redirect, request
from pydantic import ValidationError
from werkzeug.wrappers import Response as AnyResponse

from labstack.api.http import actions
from labstack.api.http.actions import Move, Update
from labstack.api.http.operators import refusal, require_signed_in, sign_in, sign_out
from labstack.api.http.request import model_asked, number_asked, service, whole_number
from labstack.api.problems import Problem, field_errors
from labstack.api.web import console, pages
from labstack.errors import LabError
from labstack.registry.client import RegistryFailedError
from labstack.registry.roles import Roles, read_roles
from labstack.store.database import DatabaseError

MOVES: dict[str, str] = {
    "canary": "Start the canary",
    "accept": "Accept the canary",
    "reject": "Take the canary out",
    "rollback": "Roll back",
    "reload": "Reload",
}

DONE = {
    "canary": "The canary gets the requests that it was given.",
    "accept": "What was the canary is production.",
    "reject": "The canary is out.",
    "rollback": "What was production before is production again.",
    "reload": "Every worker has followed the registry.",
}

NEWEST = 2**31  # which no version's number reaches

blueprint = Blueprint("console", __name__)
blueprint.after_request(pages.guard)


@blueprint.get("/console")
def show() -> str:
    """The page of the default model, or of ?model=; of its versions without a role those below ?versions_before=."""
    done = DONE.get(request.args.get("done", ""), "")
    before = number_asked("versions_before", NEWEST, 1, NEWEST)
    shown = console.page(service(), model_asked(), refusal(), before)
    return _rendered("console.html", **shown, done=done, newest=before == NEWEST)


@blueprint.get("/console/confirm")
def confirm() -> str:
    """What a move will do, and the button that makes it."""
    require_signed_in()
    move, model, version = _asked(request.args.get)
    roles = read_roles(service().client, model)
    text = console.consequence(move, model, roles, version)
    return _rendered(
        "confirm.html",
        move=move,
        title="Change the share" if move == "canary" and version == roles.canary else MOVES[move],
        model=model,
        version=version,
        roles=roles,
        consequence=text,
        weight=roles.rollout.weight
        if roles.rollout and version == roles.canary
        else service().settings.canary_probability,
        mode=roles.rollout.mode if roles.rollout and version == roles.canary else "split",
        steps=service().settings.canary_steps,
    )


@blueprint.post("/console/move")
def move() -> AnyResponse:
    """Make a move that was confirmed, if the roles are still those that were shown."""
    require_signed_in()
    name, model, version = _asked(request.form.get)
    roles = read_roles(service().client, model)
    if request.form.get("roles") != _seen(roles):
        raise Problem(409, "roles-moved", f"The roles of {model!r} have moved since the page was made. Look again.")
    said = {"model": model, "reason": request.form.get("reason") or None}
    try:
        if name == "reload":
            actions.reload()
        elif name == "canary":
            more = {"version": version, "weight": _share(), "mode": request.form.get("mode")}
            actions.update(Update.model_validate(said | more), roles)
        else:
            make: dict[str, Callable[[Move, Roles], Any]] = {
                "accept": actions.accept,
                "reject": actions.reject,
                "rollback": actions.rollback,
            }
            make[name](Move.model_validate(said), roles)
    except ValidationError as error:
        faults = field_errors(error)
        raise Problem(422, "form", "; ".join(f"{field}: {text}" for field, text in faults) + ".", faults) from None
    return redirect(f"/console?{urlencode({'model': model, 'done': name})}", 303)


@blueprint.post("/console/sign-in")
def enter() -> AnyResponse:
    """Take the operators' token for a cookie that says that it was sent."""
    return sign_in(redirect(_back(), 303), request.form.get("token", ""))


@blueprint.post("/console/sign-out")
def leave() -> AnyResponse:
    """Forget the cookie."""
    return sign_out(redirect(_back(), 303))


@blueprint.errorhandler(LabError)
def _from_lab(error: LabError) -> tuple[str, int, dict[str, str]]:
    return _failed(
        Problem(503 if isinstance(error, RegistryFailedError | DatabaseError) else 409, "refused", str(error))
    )


@blueprint.errorhandler(Problem)
def _failed(problem: Problem) -> tuple[str, int, dict[str, str]]:
    """An error as a page, with the way back."""
    moved = problem.detail.startswith(actions.MOVED)
    return _rendered("failed.html", problem=problem, moved=moved, back=_back()), problem.status, problem.headers


def _rendered(template: str, **values: Any) -> str:
    return pages.render(template, seen=_seen, pretty=partial(json.dumps, indent=1, ensure_ascii=False), **values)


def _asked(get: Callable[[str], str | None]) -> tuple[str, str, int | None]:
    """Which move of which model and version. Raises Problem."""
    move, text = get("move") or "", get("version") or ""
    version = whole_number(text)
    if move not in MOVES or (text and version is None):
        raise Problem(404, "unknown-move", f"There is no move {move[:20]!r} of version {text[:20]!r}.")
    if move == "canary" and version is None:
        raise Problem(422, "form", "A canary needs a version.")
    return move, get("model") or service().settings.default_model_name, version


def _share() -> float:
    """The share that a form gives in percent. Raises Problem."""
    text = request.form.get("weight", "")
    try:
        return float(text) / 100
    except ValueError:
        raise Problem(422, "form", f"The share {text[:20]!r} is no number of percent.") from None


def _seen(roles: Roles) -> str:
    """The roles as a form brings them back."""
    return "/".join(map(str, (roles.production, roles.canary, roles.previous, roles.rollout)))


def _back() -> str:
    model = request.form.get("model") or request.args.get("model")
    return "/console" + (f"?{urlencode({'model': model})}" if model else "")
