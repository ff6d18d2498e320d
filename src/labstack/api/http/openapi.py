"""The API as it is served right now, as an OpenAPI document: every endpoint, and the live models' own fields."""

import re
from urllib.parse import quote

from flask import Flask
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import labstack
from labstack.api.http.bodies import Feedback, Move, Update
from labstack.api.http.queries import PAGES, QUERIES, Schema
from labstack.api.predicting.tensors import InferRequest
from labstack.api.serving.lineup import Lineup
from labstack.model.contract import LARGEST, Contract, Feature

JSON, PROBLEM, TEXT = "application/json", "application/problem+json", "text/plain"
NUMBER: Schema = {"type": "number", "minimum": -LARGEST, "maximum": LARGEST}
OBJECT: Schema = {"type": "object"}

# what an endpoint answers besides 200 and the errors that any may
ERRORS = {
    "predict": (400, 404, 413, 415, 422, 500, 503),
    "operators": (400, 403, 404, 409, 413, 415, 422, 429, 503),
    "model": (404, 503),
    "ready": (404, 503),
    "hook": (202, 403, 404),
    "data": (400, 403, 404, 413, 415, 422, 429, 503),
    "feedback": (400, 404, 409, 413, 415, 422, 503),
    "drift": (404, 503),
    "audit": (503,),
    "info": (),
}
KINDS = {
    "predict_default": "predict",
    "predict_model": "predict",
    "invocations": "predict",
    "infer": "predict",
    "ready": "ready",
    "server_ready": "ready",
    "ping": "ready",
    "metadata": "model",
    "model_ready": "model",
    "model_info": "model",
    "canary_status": "model",
    "mlflow_webhook": "hook",
    "feedback": "feedback",
    "drift": "drift",
    "entries": "audit",
    **dict.fromkeys(("list_data", "read_data", "append_data"), "data"),
    **dict.fromkeys(("reload", "update_model", "accept_next_model", "reject_next_model", "rollback"), "operators"),
}
BODIES: dict[str, type[BaseModel]] = {
    "update_model": Update,
    "accept_next_model": Move,
    "reject_next_model": Move,
    "rollback": Move,
    "infer": InferRequest,
    "feedback": Feedback,
}
ROWS: Schema = {"anyOf": [OBJECT, {"type": "array", "items": OBJECT, "minItems": 1}], "description": "Rows, whole."}
TEXTS = {"prometheus": TEXT, "ping": TEXT, "version": TEXT, "docs": "text/html"}


def document(app: Flask, lineups: dict[str, Lineup], default: str, needs_token: bool) -> Schema:
    """The document, for these lineups by model, and whether operators need a token."""
    _, shared = models_json_schema(
        [(one, "validation") for one in set(BODIES.values())], ref_template="#/components/schemas/{model}"
    )
    schemas: dict[str, Schema] = shared["$defs"] | {"Problem": PROBLEM_SCHEMA}
    keys = {model: f"{number}.{re.sub(r'[^A-Za-z0-9._-]', '_', model)}" for number, model in enumerate(lineups, 1)}
    for model, lineup in lineups.items():
        schemas |= _model_schemas(keys[model], lineup.production.served.contract)
    paths: dict[str, Schema] = {}
    rules = [rule for rule in app.url_map.iter_rules() if not rule.endpoint.startswith(PAGES)]
    for rule in sorted(rules, key=lambda rule: rule.rule):
        function = app.view_functions[rule.endpoint]
        name, text = function.__name__, function.__doc__ or ""
        template = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            if name == "predict_model":  # each model has its own fields, so each its own path
                for model, key in keys.items():
                    path = template.replace("{model}", quote(model))
                    paths[path] = {method.lower(): _operation(f"{name}.{key}", name, text, set(), key)}
            else:
                ident = ".".join((name, *sorted(rule.arguments)))
                operation = _operation(ident, name, text, rule.arguments, keys.get(default))
                if "model" in rule.arguments and lineups:
                    operation["parameters"][0]["schema"]["enum"] = sorted(lineups)
                paths.setdefault(template, {})[method.lower()] = operation
    if needs_token:
        for operations in paths.values():
            for operation in operations.values():
                if operation["tags"][0] in ("operators", "data"):
                    operation["security"] = [{"operator": []}]
    return {
        "openapi": "3.1.0",
        "info": {"title": "Labstack", "version": labstack.__version__, "description": "The API as it is served now."},
        "paths": paths,
        "components": {
            "schemas": schemas,
            **({"securitySchemes": SECURITY} if needs_token else {}),
        },
    }


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


def _operation(ident: str, name: str, text: str, arguments: set[str], key: str | None) -> Schema:
    """An operation by its view function's name and docstring; `key` names its model's schemas."""
    kind = KINDS.get(name, "info")
    summary, _, rest = text.partition("\n\n")
    operation: Schema = {"operationId": ident, "summary": " ".join(summary.split()), "tags": [kind]}
    if rest:
        operation["description"] = " ".join(rest.split())
    parameters = [
        {
            "name": argument,
            "in": "path",
            "required": True,
            "schema": {"type": "integer", "minimum": 1} if argument == "version" else {"type": "string"},
        }
        for argument in sorted(arguments)
    ]
    for argument, schema in QUERIES.get(name, {}).items():
        parameters.append({"name": argument, "in": "query", "required": False, "schema": schema})
    if kind == "predict":
        parameters.append({"name": "X-Canary-Key", "in": "header", "required": False, "schema": {"type": "string"}})
    if parameters:
        operation["parameters"] = parameters
    return operation | _contents(name, key)


def _contents(name: str, key: str | None) -> Schema:
    """The body that an operation takes and the answers that it gives."""
    content: Schema = {TEXTS[name]: {"schema": {"type": "string"}}} if name in TEXTS else {JSON: {"schema": OBJECT}}
    found: Schema = {}
    if name.startswith("predict") and key:
        content = {JSON: {"schema": {"$ref": f"#/components/schemas/{key}.answer"}}}
        found["requestBody"] = _body({"$ref": f"#/components/schemas/{key}.body"})
    elif name == "feedback":
        one = {"$ref": "#/components/schemas/Feedback"}
        found["requestBody"] = _body({"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]})
    elif name in BODIES:
        found["requestBody"] = _body(
            {"$ref": f"#/components/schemas/{BODIES[name].__name__}"}, required=BODIES[name] is not Move
        )
    elif name == "invocations":
        found["requestBody"] = _body({"$ref": f"#/components/schemas/{key}.invocations"} if key else OBJECT)
    elif name == "append_data":
        found["requestBody"] = _body(ROWS)
    elif name == "read_data":
        content = content | {"text/csv": {"schema": {"type": "string"}}}
    answers = {"200": {"description": "Success.", "content": content}}
    if name == "infer":
        answers["200"]["content"] = content | {"application/octet-stream": {}}
    for status in sorted({*ERRORS[KINDS.get(name, "info")], 405, 422}):
        answers[str(status)] = {"description": "See detail.", "content": _problem(status)}
    return found | {"responses": answers}


def _problem(status: int) -> Schema:
    if status < 300:
        return {JSON: {"schema": OBJECT}}
    return {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}


def _body(schema: Schema, required: bool = True) -> Schema:
    return {"required": required, "content": {JSON: {"schema": schema}}}


def _model_schemas(key: str, contract: Contract) -> dict[str, Schema]:
    row = _closed({feature.name: _field(feature) for feature in contract.features})
    row["examples"] = [contract.sample.input]
    this = f"#/components/schemas/{key}."
    rows = {"type": "array", "items": {"$ref": f"{this}row"}, "minItems": 1}
    instances = _closed({"instances": rows})
    result: Schema = {"type": "object", "required": ["value"], "properties": {"value": {"type": ["number", "null"]}}}
    if contract.task == "classification":
        share = {"type": "number", "minimum": 0, "maximum": 1.000001}
        result = {
            "type": "object",
            "required": ["class"],
            "properties": {
                "class": {"enum": list(contract.classes)},
                "confidence": share,
                "probabilities": {"type": "object", "properties": dict.fromkeys(contract.classes, share)},
            },
        }
    answer = {
        "type": "object",
        "required": ["request_id"],
        "properties": {
            "prediction": {"$ref": f"{this}result"},
            "predictions": {"type": "array", "items": {"$ref": f"{this}result"}},
            "model": OBJECT,
            "warnings": {"type": "array", "items": OBJECT},
            "request_id": {"type": "string"},
        },
    }
    body = {"anyOf": [{"$ref": f"{this}row"}, rows, instances]}
    fields = [_field(feature) for feature in contract.features]
    width = {"minItems": len(fields), "maxItems": len(fields)}
    matrix = {
        "type": "array",
        "items": {"type": "array", "prefixItems": fields, "items": False, **width},
        "minItems": 1,
    }
    names = {"const": [feature.name for feature in contract.features]}
    split = _closed({"data": matrix}, columns=names) | {"description": "As of pandas' to_dict('split')."}
    tables = {
        "dataframe_split": split,
        "dataframe_records": rows,
        "instances": {"anyOf": [rows, matrix]},
        "inputs": {"anyOf": [rows, matrix], "description": "Or an object of columns, each a list of values."},
    }
    forms = [_closed({form: table}, params={"type": ["object", "null"]}) for form, table in tables.items()]
    made = {"row": row, "body": body, "invocations": {"anyOf": forms}, "result": result, "answer": answer}
    return {f"{key}.{name}": schema for name, schema in made.items()}


def _closed(properties: dict[str, Schema], **optional: Schema) -> Schema:
    """An object with all of these properties, some optional ones, and no others."""
    both = properties | optional
    return {"type": "object", "required": list(properties), "properties": both, "additionalProperties": False}


def _field(feature: Feature) -> Schema:
    if feature.categories:
        found: Schema = {"enum": [*feature.categories, *([None] if feature.missing else [])]}
    else:
        found = NUMBER | ({"type": ["number", "null"]} if feature.missing else {})
        found["description"] = f"{feature.minimum:g} to {feature.maximum:g} in training."
    return found
