"""What the API is, as it is served right now: for programs and for people."""

import json
import shlex
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import quote

from flask import Blueprint, Response, current_app, request

from labstack.api.http import openapi
from labstack.api.http.operators import is_signed_in
from labstack.api.http.request import service
from labstack.api.serving.lineup import Lineup
from labstack.api.web import pages
from labstack.errors import LabError
from labstack.store import datasets

blueprint = Blueprint("docs", __name__)


@blueprint.get("/openapi.json")
def document() -> dict[str, Any]:
    """The OpenAPI document: every endpoint, and the fields of the models that are served."""
    settings = service().settings
    lineups = dict(service().follower.lineups)
    return openapi.document(current_app, lineups, settings.default_model_name, settings.api_admin_token is not None)


@blueprint.get("/docs")
def docs() -> Response:
    """The same for people, with curl lines to copy."""
    described = document()
    lineups = dict(sorted(service().follower.lineups.items()))
    groups: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(described["paths"], key=lambda path: path != "/predict"):  # which comes first
        for method, operation in described["paths"][path].items():
            asked = _example(method, path, operation, lineups)
            shown = {"method": method.upper(), "path": path, "curl": _curl(asked), "example": asked}
            groups.setdefault(operation["tags"][0], []).append(operation | shown)
    return pages.guard(Response(pages.render("docs.html", groups=groups, lineups=lineups, info=described["info"])))


class Example(NamedTuple):
    """A request that asks an operation something sensible."""

    method: str
    path: str
    body: str  # JSON, or empty
    needs_token: bool


def _curl(example: Example) -> str:
    """The same as a line for a shell."""
    url = request.host_url.rstrip("/") + example.path
    parts = ["curl", "-s", *(["-X", "POST"] if example.method == "post" else []), url]
    parts += ["-H", "X-Admin-Token: …"] if example.needs_token else []
    parts += ["-H", "Content-Type: application/json", "-d", example.body] if example.body else []
    return shlex.join(parts)


def _example(method: str, path: str, operation: dict[str, Any], lineups: dict[str, Lineup]) -> Example:
    default = service().settings.default_model_name
    model = next((name for name in lineups if path.startswith(f"/models/{quote(name)}/")), default)
    lineup = lineups.get(model) or next(iter(lineups.values()), None)
    version = str(lineup.production.served.version) if lineup else "1"
    path = path.replace("{model}", quote(model)).replace("{version}", version)
    dataset, rows = _some_rows() if "{dataset}" in path else ("", [])
    path = path.replace("{dataset}", quote(dataset))
    body: Any = None
    if operation["tags"] == ["data"] and method == "post":
        body = rows
    elif path == "/feedback":
        body = {"request_id": "…", "outcome": "…"}
    elif "requestBody" in operation and lineup:
        sample = lineup.production.served.contract.sample.input
        body = sample
        if path.endswith("/infer"):
            tensor = {"shape": [1], "datatype": "FP64"}
            body = {"inputs": [{"name": name, **tensor, "data": [value]} for name, value in sample.items()]}
        elif path == "/invocations":
            body = {"dataframe_records": [sample]}
        elif path == "/update-model":
            body = {"version": int(version) + 1, "weight": 0.1, "mode": "split"}
        elif operation["tags"] == ["operators"]:
            body = {"reason": "…"}
    text = "" if body is None else json.dumps(body, ensure_ascii=False)
    return Example(method, path, text, "security" in operation)


def _some_rows() -> tuple[str, list[dict[str, Any]]]:
    """A dataset and its first row, for whom may see it; made up for others, and where there is none."""
    with suppress(LabError):
        engine = service().engine
        for known in datasets.summaries(engine) if is_signed_in() else ():
            return known.name, list(datasets.read(engine, known.name, 0, 1).dicts())
    return "mine", [{}]
