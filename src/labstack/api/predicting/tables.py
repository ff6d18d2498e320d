"""The tables of MLflow's scoring protocol as rows: JSON in four forms, and CSV.

https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/
"""

import csv
import io
from collections.abc import Sequence
from typing import Any

from labstack.api.problems import Problem
from labstack.model.contract import Contract, ContractError, Feature, FieldMessages

FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")


def from_json(body: Any, contract: Contract) -> tuple[list[Any], str, FieldMessages]:
    """Return the rows of a body, the name of its form, and a warning if it has parameters. Raises ContractError."""
    forms = [form for form in FORMS if form in body] if isinstance(body, dict) else []
    if len(forms) != 1:
        raise ContractError([("body", f"must be an object with exactly one of {', '.join(FORMS)}")])
    [form] = forms
    unknown = [name for name in body if name not in (form, "params")]
    if unknown:
        raise ContractError([(name, f"is not known beside {form}") for name in unknown])
    params = body.get("params")
    if not isinstance(params, dict | None):
        raise ContractError([("params", "must be an object")])
    warnings = [("params", "is ignored: the model takes none")] if params else []
    return _rows(form, body[form], contract), form, warnings


def from_csv(body: bytes, contract: Contract) -> list[dict[str, Any]]:
    """Return the rows of CSV with a header line. Raises Problem or ContractError."""
    features = {feature.name: feature for feature in contract.features}
    try:
        reader = csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True)
        header, *lines = [row for row in reader if row] or [[]]
    except (csv.Error, UnicodeDecodeError) as error:
        raise Problem(400, "csv", f"The body is not CSV in UTF-8: {error}.") from None
    rows = _with_names("csv", header, lines)
    return [{name: _cell(text, features.get(name)) for name, text in row.items()} for row in rows]


def _rows(form: str, table: Any, contract: Contract) -> list[Any]:
    """Return the rows of a table in one of the four forms of JSON. Raises ContractError."""
    names = [feature.name for feature in contract.features]
    if form == "dataframe_split":
        return _from_split(form, table, names)
    if form == "inputs" and isinstance(table, dict):
        return _from_columns(form, table)
    if not isinstance(table, list):
        raise ContractError([(form, "must be a list of rows")])
    if form != "dataframe_records" and table and isinstance(table[0], list):
        return _with_names(form, names, table)
    return table


def _from_split(form: str, table: Any, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of {"columns": [...], "data": [[...], ...]}, by default with the columns of these names."""
    if not (isinstance(table, dict) and isinstance(table.get("data"), list)):
        raise ContractError([(form, "must be an object with columns and data")])
    columns = table.get("columns", names)
    if not (isinstance(columns, list) and all(isinstance(name, str) for name in columns)):
        raise ContractError([(f"{form}.columns", "must be a list of names")])
    if unknown := [name for name in table if name not in ("columns", "data", "index")]:
        raise ContractError([(f"{form}.{name}", "is not known") for name in unknown])
    return _with_names(f"{form}.data", columns, table["data"])


def _with_names(prefix: str, names: Sequence[str], rows: list[Any]) -> list[dict[str, Any]]:
    """Return rows of values as rows by column name. Raises ContractError."""
    if len(set(names)) < len(names):
        raise ContractError([(prefix, f"needs every column once; they are {', '.join(names)}")])
    errors = [
        (f"{prefix}[{number}]", f"must be a list of {len(names)} values, for {', '.join(names)}")
        for number, row in enumerate(rows)
        if not isinstance(row, list) or len(row) != len(names)
    ]
    if errors:
        raise ContractError(errors)
    return [dict(zip(names, row, strict=True)) for row in rows]


def _from_columns(prefix: str, columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a table by columns as rows. MLflow's clients write an array as a column of lists of one value each."""
    flat: dict[str, list[Any]] = {}
    for name, column in columns.items():
        if not isinstance(column, list):
            raise ContractError([(f"{prefix}.{name}", "must be a list of values")])
        flat[name] = [cell[0] if isinstance(cell, list) and len(cell) == 1 else cell for cell in column]
    if len({len(column) for column in flat.values()}) > 1:
        raise ContractError([(prefix, "must have columns of one length")])
    return [dict(zip(flat, row, strict=True)) for row in zip(*flat.values(), strict=True)]


def _cell(text: str, feature: Feature | None) -> str | float | None:
    """Return a cell of CSV as a category, a number or None for a missing value; text where it is no number."""
    if not text:
        return None
    if feature is not None and feature.categories:
        return text
    try:
        return float(text)
    except ValueError:
        return text
