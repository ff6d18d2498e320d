"""MLflow's scoring protocol, for clients that speak it: https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/.

Of a table every form is read: `dataframe_split`, `dataframe_records`, `instances`, `inputs`, and CSV.
"""

import csv
import io
from collections.abc import Sequence
from typing import Any

from flask import Blueprint, Response, request

import labstack
from labstack.api.http.operations import INFO, MODEL, PREDICT, READY, TEXT, Operation
from labstack.api.http.request import body, call, json_body, query_model, service
from labstack.api.predicting.prediction import dumps, run
from labstack.api.problems import Problem
from labstack.model.contract import Contract, ContractError, Feature, FieldMessages

FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")

blueprint = Blueprint("invocations", __name__)


@blueprint.get("/ping")
@Operation(READY, query=MODEL, media_types=(TEXT,))
def ping() -> Response:
    """200 when the default model, or ?model=, can be served, else 404 or 503 with the reason."""
    service().lineup(query_model())
    return Response("\n", content_type="text/plain")


@blueprint.get("/version")
@Operation(INFO, media_types=(TEXT,))
def version() -> Response:
    """The version of Labstack."""
    return Response(labstack.__version__, content_type="text/plain")


@blueprint.post("/invocations")
@Operation(PREDICT, query=MODEL, body="invocations")
def invocations() -> Response:
    """Predict with the default model, or with ?model=: a table in any of MLflow's forms, as JSON or CSV."""
    lineup = service().lineup(query_model())
    contract = lineup.production.served.contract
    warnings: FieldMessages = []
    if request.mimetype == "text/csv":
        rows, place = _from_csv(body(), contract), "csv"
    else:
        rows, place, warnings = _from_json(json_body(), contract)
    asked = call()
    role, predictions, found = run(service(), lineup, rows, place, asked)
    answer = {"predictions": predictions.outputs}
    return Response(dumps(service(), role, answer, warnings + found, asked), content_type="application/json")


def _from_json(sent: Any, contract: Contract) -> tuple[list[Any], str, FieldMessages]:
    """The rows, what they are called, and a warning when parameters came, of which models here take none."""
    forms = [form for form in FORMS if form in sent] if isinstance(sent, dict) else []
    if len(forms) != 1:
        raise ContractError([("body", f"must be an object with exactly one of {', '.join(FORMS)}")])
    [form] = forms
    unknown = [name for name in sent if name not in (form, "params")]
    if unknown:
        raise ContractError([(name, f"is not known beside {form}") for name in unknown])
    params = sent.get("params")
    if not isinstance(params, dict | None):
        raise ContractError([("params", "must be an object")])
    warnings = [("params", "is ignored: the model takes none")] if params else []
    return _rows(form, sent[form], contract), form, warnings


def _rows(form: str, table: Any, contract: Contract) -> list[Any]:
    names = [feature.name for feature in contract.features]
    if form == "dataframe_split":
        if not (isinstance(table, dict) and isinstance(table.get("data"), list)):
            raise ContractError([(form, "must be an object with columns and data")])
        columns = table.get("columns", names)
        if not (isinstance(columns, list) and all(isinstance(name, str) for name in columns)):
            raise ContractError([(f"{form}.columns", "must be a list of names")])
        if unknown := [name for name in table if name not in ("columns", "data", "index")]:
            raise ContractError([(f"{form}.{name}", "is not known") for name in unknown])
        return _named(f"{form}.data", columns, table["data"])
    if form == "inputs" and isinstance(table, dict):
        return _from_columns(form, table)
    if not isinstance(table, list):
        raise ContractError([(form, "must be a list of rows")])
    if form != "dataframe_records" and table and isinstance(table[0], list):
        return _named(form, names, table)
    return table


def _named(place: str, names: Sequence[str], rows: list[Any]) -> list[dict[str, Any]]:
    """Rows by position as rows by name."""
    if len(set(names)) < len(names):
        raise ContractError([(place, f"needs every column once; they are {', '.join(names)}")])
    faults = [
        (f"{place}[{number}]", f"must be a list of {len(names)} values, for {', '.join(names)}")
        for number, row in enumerate(rows)
        if not isinstance(row, list) or len(row) != len(names)
    ]
    if faults:
        raise ContractError(faults)
    return [dict(zip(names, row, strict=True)) for row in rows]


def _from_columns(place: str, columns: dict[str, Any]) -> list[dict[str, Any]]:
    """A table by columns as rows. A column of lists of one value, as MLflow's clients make of arrays, is one too."""
    flat: dict[str, list[Any]] = {}
    for name, column in columns.items():
        if not isinstance(column, list):
            raise ContractError([(f"{place}.{name}", "must be a list of values")])
        flat[name] = [cell[0] if isinstance(cell, list) and len(cell) == 1 else cell for cell in column]
    if len({len(column) for column in flat.values()}) > 1:
        raise ContractError([(place, "must have columns of one length")])
    return [dict(zip(flat, row, strict=True)) for row in zip(*flat.values(), strict=True)]


def _from_csv(text: bytes, contract: Contract) -> list[dict[str, Any]]:
    features = {feature.name: feature for feature in contract.features}
    try:
        reader = csv.reader(io.StringIO(text.decode("utf-8-sig"), newline=""), strict=True)
        header, *lines = [row for row in reader if row] or [[]]
    except (csv.Error, UnicodeDecodeError) as error:
        raise Problem(400, "csv", f"The body is not CSV in UTF-8: {error}.") from None
    rows = _named("csv", header, lines)
    return [{name: _cell(text, features.get(name)) for name, text in row.items()} for row in rows]


def _cell(text: str, feature: Feature | None) -> str | float | None:
    if not text:
        return None
    if feature is not None and feature.categories:
        return text
    try:
        return float(text)
    except ValueError:
        return text
