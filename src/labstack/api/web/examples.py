"""Example requests for the page that describes the API, from the samples of the models that are served."""

import json
import shlex
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import quote

from flask import request

from labstack.api.http.operators import is_signed_in
from labstack.api.http.request import service
from labstack.api.serving.lineup import Lineup
from labstack.errors import LabError
from labstack.store import datasets


class Example(NamedTuple):
    """A request that an operation answers with success, where the model, rows and version are known."""

    method: str
    path: str
    body: str  # JSON, or empty
    needs_token: bool


def curl(example: Example) -> str:
    """Return an example as a line for a shell."""
    url = request.host_url.rstrip("/") + example.path
    parts = ["curl", "-s", *(["-X", "POST"] if example.method == "post" else []), url]
    parts += ["-H", "X-Admin-Token: …"] if example.needs_token else []
    parts += ["-H", "Content-Type: application/json", "-d", example.body] if example.body else []
    return shlex.join(parts)


def example(method: str, path: str, operation: dict[str, Any], lineups: dict[str, Lineup]) -> Example:
    """Return an example of an operation of the OpenAPI document, with a served model's sample."""
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
    """Return a dataset and its first row, for operators; invented ones for others, and where there is no dataset."""
    with suppress(LabError):
        engine = service().engine
        for known in datasets.summaries(engine) if is_signed_in() else ():
            return known.name, list(datasets.read(engine, known.name, 0, 1).dicts())
    return "mine", [{}]
