"""The rows that pipelines train on: read page by page or as CSV, and appended to; for operators."""

from dataclasses import asdict
from typing import Any

from flask import Blueprint, Response, request

from labstack.api.http.operations import CSV, DATA, JSON, OBJECT, Operation, Schema
from labstack.api.http.operators import require_operator
from labstack.api.http.request import json_body, query_number, service
from labstack.api.problems import Problem
from labstack.store import datasets
from labstack.store.datasets import Summary

PAGE_ROWS, MAX_PAGE = 100, 10_000
MAX_OFFSET = 2**53
PAGE: dict[str, Schema] = {
    "offset": {"type": "integer", "minimum": 0, "maximum": MAX_OFFSET, "default": 0},
    "limit": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": PAGE_ROWS},
    "format": {"enum": ["json", "csv"]},
}
ROWS: Schema = {"anyOf": [OBJECT, {"type": "array", "items": OBJECT, "minItems": 1}], "description": "Rows, whole."}

blueprint = Blueprint("data", __name__)
blueprint.before_request(require_operator)


@blueprint.get("/data")
@Operation(DATA)
def list_data() -> dict[str, Any]:
    """The datasets, with their columns and numbers of rows."""
    return {"datasets": [_shown(summary) for summary in datasets.summaries(service().engine)]}


@blueprint.get("/data/<dataset>")
@Operation(DATA, query=PAGE, media_types=(JSON, CSV))
def read_data(dataset: str) -> dict[str, Any] | Response:
    """A page of a dataset's rows, oldest first; or all of them, as CSV.

    CSV comes with ?format=csv, and to clients that accept text/csv alone; its first line is the header.
    """
    engine = service().engine
    if _wants_csv():
        lines = datasets.csv_lines(engine, dataset)
        file_name = {"Content-Disposition": f'attachment; filename="{dataset}.csv"'} if dataset.isidentifier() else {}
        return Response(lines, content_type="text/csv; charset=utf-8", headers=file_name)
    offset, limit = query_number("offset", 0, 0, MAX_OFFSET), query_number("limit", PAGE_ROWS, 1, MAX_PAGE)
    summary = datasets.summary(engine, dataset)
    return _shown(summary) | {"offset": offset, "data": list(datasets.read(engine, dataset, offset, limit).dicts())}


@blueprint.post("/data/<dataset>")
@Operation(DATA, body=ROWS)
def append_data(dataset: str) -> dict[str, Any]:
    """Append rows, an object or a list of them, each with every column; null stands for a missing value.

    All rows are appended or, when one has an error, none. The next training uses them too.
    """
    value = json_body()
    records = value if isinstance(value, list) else [value]
    errors = [
        (f"[{number}]", "is not an object") for number, record in enumerate(records) if not isinstance(record, dict)
    ]
    if errors or not records:
        raise Problem(422, "rows", "Send a row as an object, or a list of rows.", errors[: datasets.MAX_FAULTS])
    limit = service().settings.max_request_rows
    if len(records) > limit:
        raise Problem(413, "too-large", f"The body holds more than {limit:,} rows (MAX_REQUEST_ROWS).")
    rows = datasets.append(service().engine, dataset, records)
    return {"dataset": dataset, "appended": len(records), "rows": rows}


def _shown(summary: Summary) -> dict[str, Any]:
    fields = asdict(summary)
    return {"dataset": fields.pop("name")} | fields


def _wants_csv() -> bool:
    name = request.args.get("format", "")
    if name not in ("", "json", "csv"):
        raise Problem(422, "query", f"format is {name!r}; json or csv is needed.")
    preferred = request.accept_mimetypes.best_match([JSON, CSV])
    return name == "csv" or (not name and preferred == CSV)
