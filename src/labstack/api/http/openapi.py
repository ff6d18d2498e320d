"""The OpenAPI document: every endpoint as its route declares it, with the fields of the models that are served now."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from flask import Flask
from pydantic.json_schema import models_json_schema
from werkzeug.routing import Rule

import labstack
from labstack.api.http.bodies import may_be_empty
from labstack.api.http.model_schemas import model_schemas
from labstack.api.http.operations import JSON, OBJECT, Operation, Schema, described_rules
from labstack.api.serving.lineup import Lineup

PROBLEM = "application/problem+json"
REFERENCE = "#/components/schemas/{model}"
SECURITY: Schema = {"operator": {"type": "apiKey", "in": "header", "name": "X-Admin-Token"}}
PROBLEM_SCHEMA: Schema = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "request_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "request_id": {"type": ["string", "null"]},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "message"],
                "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}


def document(app: Flask, lineups: Mapping[str, Lineup], default: str, needs_token: bool) -> Schema:
    """Return the document for these lineups by model, a default model, and operators who need a token or none."""
    keys = {model: f"{number}.{re.sub(r'[^A-Za-z0-9._-]', '_', model)}" for number, model in enumerate(lineups, 1)}
    described = sorted(described_rules(app), key=lambda route: route[0].rule)
    schemas = _shared_schemas(operation for _, _, operation in described)
    for model, lineup in lineups.items():
        schemas |= model_schemas(keys[model], lineup.production.served.contract)
    paths: dict[str, Schema] = {}
    for rule, view, operation in described:
        for path, method, described_operation in _operations(rule, view, operation, keys, default):
            if needs_token and operation.group.for_operators:
                described_operation["security"] = [{"operator": []}]
            paths.setdefault(path, {})[method] = described_operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Labstack", "version": labstack.__version__, "description": "The API as it is served now."},
        "paths": paths,
        "components": {"schemas": schemas} | ({"securitySchemes": SECURITY} if needs_token else {}),
    }


def _shared_schemas(operations: Iterable[Operation]) -> dict[str, Schema]:
    """Return the schemas of the bodies that do not depend on a model, and of an error."""
    bodies = {operation.body for operation in operations if isinstance(operation.body, type)}
    _, shared = models_json_schema([(body, "validation") for body in bodies], ref_template=REFERENCE)
    schemas: dict[str, Schema] = shared["$defs"]
    return schemas | {"Problem": PROBLEM_SCHEMA}


def _operations(
    rule: Rule, view: Callable[..., Any], operation: Operation, keys: Mapping[str, str], default: str
) -> Iterator[tuple[str, str, Schema]]:
    """Yield path, method and description of a route: for each served model, where the bodies are the model's own.

    `keys` are the prefixes of each model's schemas.
    """
    template = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
    for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
        if "model" in rule.arguments and isinstance(operation.body, str):
            for model, key in keys.items():
                path = template.replace("{model}", quote(model))
                yield path, method.lower(), _operation(f"{view.__name__}.{key}", view, operation, [], key)
        else:
            ident = ".".join((view.__name__, *sorted(rule.arguments)))
            parameters = [_path_parameter(name, keys) for name in sorted(rule.arguments)]
            yield template, method.lower(), _operation(ident, view, operation, parameters, keys.get(default))


def _path_parameter(name: str, models: Iterable[str]) -> Schema:
    schema: Schema = {"type": "integer", "minimum": 1} if name == "version" else {"type": "string"}
    if name == "model" and (served := sorted(models)):
        schema["enum"] = served
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _operation(
    ident: str, view: Callable[..., Any], operation: Operation, parameters: list[Schema], key: str | None
) -> Schema:
    """Return the description of an operation; `key` is the prefix of its model's schemas, None without a model."""
    summary, _, description = (view.__doc__ or "").partition("\n\n")
    described: Schema = {
        "operationId": ident,
        "summary": " ".join(summary.split()),
        "tags": [operation.group.tag],
    }
    if description:
        described["description"] = " ".join(description.split())
    for name, schema in operation.query.items():
        parameters.append({"name": name, "in": "query", "required": False, "schema": schema})
    if operation.group.takes_canary_key:
        parameters.append({"name": "X-Canary-Key", "in": "header", "required": False, "schema": {"type": "string"}})
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = _request_body(operation, key)
    return described | {"responses": _responses(operation, key)}


def _request_body(operation: Operation, key: str | None) -> Schema:
    body, required = operation.body or OBJECT, True
    if isinstance(body, type):
        required = not may_be_empty(body)
        body = {"$ref": REFERENCE.format(model=body.__name__)}
    schema = _schema(body, key)
    if operation.or_list:
        schema = {"anyOf": [schema, {"type": "array", "items": schema, "minItems": 1}]}
    return {"required": required, "content": {JSON: {"schema": schema}}}


def _responses(operation: Operation, key: str | None) -> Schema:
    content = {media_type: _content(media_type, _schema(operation.answer, key)) for media_type in operation.media_types}
    responses = {"200": {"description": "Success.", "content": content}}
    for status in sorted({*operation.group.statuses, 405, 422}):
        problem = {PROBLEM: {"schema": {"$ref": REFERENCE.format(model="Problem")}}}
        responses[str(status)] = {
            "description": "See detail.",
            "content": {JSON: {"schema": OBJECT}} if status < 300 else problem,
        }
    return responses


def _schema(schema: Schema | str, key: str | None) -> Schema:
    """Return a schema, which a text names among a model's schemas; any object where no model is served."""
    if isinstance(schema, str):
        return {"$ref": REFERENCE.format(model=f"{key}.{schema}")} if key else OBJECT
    return schema


def _content(media_type: str, schema: Schema) -> Schema:
    if media_type == JSON:
        return {"schema": schema}
    return {"schema": {"type": "string"}} if media_type.startswith("text/") else {}
