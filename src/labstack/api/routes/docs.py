"""The API as it is served now, for programs and for people."""

from typing import Any

from flask import Blueprint, Response, current_app

from labstack.api.http import openapi
from labstack.api.http.operations import HTML, INFO, Operation
from labstack.api.http.request import service
from labstack.api.web import examples, pages

blueprint = Blueprint("docs", __name__)


@blueprint.get("/openapi.json")
@Operation(INFO)
def document() -> dict[str, Any]:
    """The OpenAPI document: every endpoint, and the fields of the models that are served."""
    settings = service().settings
    lineups = dict(service().follower.lineups)
    return openapi.document(current_app, lineups, settings.default_model_name, settings.api_admin_token is not None)


@blueprint.get("/docs")
@Operation(INFO, media_types=(HTML,))
def docs() -> Response:
    """The same for people, with curl commands to copy."""
    described = document()
    lineups = dict(sorted(service().follower.lineups.items()))
    groups: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(described["paths"], key=lambda path: path != "/predict"):  # the first of all
        for method, operation in described["paths"][path].items():
            example = examples.example(method, path, operation, lineups)
            shown = {"method": method.upper(), "path": path, "curl": examples.curl(example), "example": example}
            groups.setdefault(operation["tags"][0], []).append(operation | shown)
    return pages.guard(Response(pages.render("docs.html", groups=groups, lineups=lineups, info=described["info"])))
