"""Monitoring of predictions and roles: outcomes that are fed back, drift, and the audit."""

from typing import Any

from flask import Blueprint, request

from labstack.api.http.bodies import FEEDBACK, Feedback, validate
from labstack.api.http.operations import AUDIT, DRIFT, MODEL, OUTCOMES, Operation, Schema
from labstack.api.http.request import json_body, query_model, query_number, service
from labstack.api.problems import Problem
from labstack.api.rollout import assessment
from labstack.store import audit, predictions

blueprint = Blueprint("monitoring", __name__)

PAGE_ENTRIES = 50
MAX_ENTRIES = 500
MAX_ID = 2**31 - 1
PAGE: dict[str, Schema] = {
    **MODEL,
    "limit": {"type": "integer", "minimum": 1, "maximum": MAX_ENTRIES, "default": PAGE_ENTRIES},
    "before": {"type": "integer", "minimum": 1, "maximum": MAX_ID},
}


@blueprint.post("/feedback")
@Operation(OUTCOMES, body=Feedback, or_list=True)
def feedback() -> dict[str, Any]:
    """Record the true outcomes of earlier predictions, by their request ids: one object, or a list of them.

    All outcomes are recorded or, after an error, none. Requests that the prediction log does not hold are no error and
    are listed as `unknown`; a prediction is in the log within half a second. The same outcome again changes nothing,
    and another one replaces the first.
    """
    if service().settings.prediction_log == "off":
        raise Problem(
            409, "prediction-log-off", "No predictions are kept, so outcomes cannot be recorded: PREDICTION_LOG=off."
        )
    value = json_body()
    outcomes = validate(FEEDBACK.validate_python, value if isinstance(value, list) else [value], detailed=3)
    limit = service().settings.max_request_rows
    rows = {each.request_id: [each.outcome] if each.outcomes is None else each.outcomes for each in outcomes}
    if (total := sum(map(len, rows.values()))) > limit:
        raise Problem(413, "too-many-rows", f"The body holds {total:,} outcomes; at most {limit:,} (MAX_REQUEST_ROWS).")
    fed = predictions.feed_back(service().engine, rows)
    if rows and len(fed.unknown) == len(rows):
        names = ", ".join(fed.unknown[:3])
        raise Problem(404, "unknown-request", f"The prediction log holds no request {names}.")
    return {"recorded": fed.recorded, "replaced": fed.replaced, "known": fed.known, "unknown": fed.unknown}


@blueprint.get("/drift")
@Operation(DRIFT, query=MODEL)
def drift() -> dict[str, Any]:
    """Drift of the default model, or of ?model=: the distance of its features and predictions from those in training.

    Of each version that has a role, over all rows that it predicted in the last DRIFT_WINDOW_SECONDS, in any role, in
    all workers and all replicas that share the database.
    """
    model, settings, engine = query_model(), service().settings, service().engine
    lineup = service().lineup(model)
    drifts = assessment.drifts(settings, lineup, assessment.recent(engine, settings, model))
    versions = [
        assessment.describe_drift(drifted)
        | {"live": predictions.live(engine, model, drifted.role.served.version).summary}
        for drifted in drifts
    ]
    return {"model": model, "window_seconds": settings.drift_window_seconds, "versions": versions}


@blueprint.get("/audit")
@Operation(AUDIT, query=PAGE)
def entries() -> dict[str, Any]:
    """The audit: moves of roles, reloads and refusals, with time, actor, reason and evidence; newest first.

    Of all models, or of ?model=; at most ?limit= entries, older than the entry whose id is ?before=.
    """
    limit = query_number("limit", PAGE_ENTRIES, 1, MAX_ENTRIES)
    before = query_number("before", MAX_ID, 1, MAX_ID)
    page = audit.history(service().engine, request.args.get("model"), limit=limit, before=before)
    return {"entries": [_shown(entry) for entry in page], "next": page[-1].id if len(page) == limit else None}


def _shown(entry: audit.Entry) -> dict[str, Any]:
    names = ("id", "at", "action", "model", "role", "from_version", "to_version", "actor", "reason", "evidence")
    return {name: getattr(entry, name) for name in names}
