"""The query parameters that each endpoint takes.

One that would be ignored is refused, as its sender expects something. Only what no endpoint knows may come with a GET,
to which probes and proxies add parameters of their own.
"""

from typing import Any
from urllib.parse import quote

from flask import request

from labstack.api.problems import Problem
from labstack.api.routes.data import MAX_OFFSET, MAX_PAGE, PAGE_ROWS
from labstack.api.routes.monitoring import MAX_ENTRIES, MAX_ID, PAGE_ENTRIES

Schema = dict[str, Any]

PAGES = ("console.", "assets.")  # the blueprints of pages, whose endpoints are not described either
MODEL: dict[str, Schema] = {"model": {"type": "string", "minLength": 1}}
QUERIES: dict[str, dict[str, Schema]] = {
    **dict.fromkeys(("model_info", "canary_status", "drift", "ready", "ping", "invocations"), MODEL),
    "read_data": {
        "offset": {"type": "integer", "minimum": 0, "maximum": MAX_OFFSET, "default": 0},
        "limit": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": PAGE_ROWS},
        "format": {"enum": ["json", "csv"]},
    },
    "entries": MODEL
    | {
        "limit": {"type": "integer", "minimum": 1, "maximum": MAX_ENTRIES, "default": PAGE_ENTRIES},
        "before": {"type": "integer", "minimum": 1, "maximum": MAX_ID},
    },
}
ANYWHERE = {name for queries in QUERIES.values() for name in queries}


def require_known() -> None:
    """Before a request: raise Problem, 422, for a parameter of ours that would be ignored, is empty or is repeated."""
    rule = request.url_rule
    if rule is None or rule.endpoint.startswith(PAGES):
        return
    known = QUERIES.get(rule.endpoint.rpartition(".")[2], {})
    for name, values in request.args.lists():
        if name not in ANYWHERE and request.method in ("GET", "HEAD"):
            continue
        if name not in known:
            instead = f"it takes {', '.join(known)}" if known else "it takes none"
            if name == "model" and rule.rule == "/predict":
                instead = f"POST to /models/{quote(values[0][:200], safe='')}/predict instead"
            text = f"{rule.rule} takes no query parameter {name[:50]!r}; {instead}."
        elif len(values) > 1:
            text = f"{name} is given {len(values)} times in the query; give it once."
        elif not values[0]:
            text = f"{name} is empty in the query; give it a value or leave it out."
        else:
            continue
        raise Problem(422, "query", text)
