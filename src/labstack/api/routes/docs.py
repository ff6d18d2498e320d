"""What the API is, as it is served right now: for programs and for people."""

import json
import secrets
import shlex
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from flask import Blueprint, Response, current_app, render_template, request

from labstack.api import openapi
from labstack.api.request import service
from labstack.api.serving.lineup import Lineup
from labstack.store import datasets
from labstack.store.database import DatabaseError

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
            shown = {"method": method.upper(), "path": path, "curl": _curl(method, path, operation, lineups)}
            groups.setdefault(operation["tags"][0], []).append(operation | shown)
    nonce = secrets.token_urlsafe(16)
    page = render_template("docs.html", groups=groups, lineups=lineups, nonce=nonce, info=described["info"])
    policy = f"default-src 'none'; style-src 'nonce-{nonce}'; base-uri 'none'; frame-ancestors 'none'"
    return Response(page, content_type="text/html; charset=utf-8", headers={"Content-Security-Policy": policy})


def _curl(method: str, path: str, operation: dict[str, Any], lineups: dict[str, Lineup]) -> str:
    """A line for a shell that asks this operation something sensible."""
    default = service().settings.default_model_name
    model = next((name for name in lineups if path.startswith(f"/models/{quote(name)}/")), default)
    lineup = lineups.get(model) or next(iter(lineups.values()), None)
    version = str(lineup.production.served.version) if lineup else "1"
    path = path.replace("{model}", quote(model)).replace("{version}", version)
    dataset, rows = _some_rows() if "{dataset}" in path else ("", [])
    path = path.replace("{dataset}", quote(dataset))
    parts = ["curl", "-s", *(["-X", "POST"] if method == "post" else []), request.host_url.rstrip("/") + path]
    if operation.get("security"):
        parts += ["-H", "X-Admin-Token: …"]
    if operation["tags"] == ["data"] and method == "post":
        parts += ["-H", "Content-Type: application/json", "-d", json.dumps(rows, ensure_ascii=False)]
    elif path == "/feedback":
        parts += ["-H", "Content-Type: application/json", "-d", '{"request_id": "…", "outcome": "…"}']
    elif "requestBody" in operation and lineup:
        sample = lineup.production.served.contract.sample.input
        body: Any = sample
        if path.endswith("/infer"):
            tensor = {"shape": [1], "datatype": "FP64"}
            body = {"inputs": [{"name": name, **tensor, "data": [value]} for name, value in sample.items()]}
        elif path == "/invocations":
            body = {"dataframe_records": [sample]}
        elif path == "/update-model":
            body = {"version": int(version) + 1, "weight": 0.1, "mode": "split"}
        elif operation["tags"] == ["operators"]:
            body = {"reason": "…"}
        parts += ["-H", "Content-Type: application/json", "-d", json.dumps(body, ensure_ascii=False)]
    return shlex.join(parts)


def _some_rows() -> tuple[str, list[dict[str, Any]]]:
    """A dataset and its first row; made up where the database has none, or is away."""
    engine = service().engine
    with suppress(DatabaseError):
        for known in datasets.summaries(engine):
            return known.name, list(datasets.read(engine, known.name, 0, 1).dicts())
    return "mine", [{}]
