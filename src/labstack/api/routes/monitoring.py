"""What became of predictions: outcomes that are fed back, drift, and the audit."""

from typing import Annotated, Any, Self

from flask import Blueprint, request
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from labstack.api.http.request import json_body, model_asked, number_asked, service
from labstack.api.problems import Problem, field_errors
from labstack.api.rollout import assessment
from labstack.store import audit, predictions

blueprint = Blueprint("monitoring", __name__)

PAGE_ENTRIES = 50
MAX_ENTRIES = 500
MAX_ID = 2**31 - 1

Value = str | bool | int | float


class Feedback(BaseModel):
    """What a request that was predicted turned out to be: `outcome` of its only row, or `outcomes`, one a row.

    Null stands for a row whose outcome is not known.
    """

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra={
            "oneOf": [
                {"required": [name], "properties": {name: {"not": {"type": "null"}}}}
                for name in ("outcome", "outcomes")
            ]
        },
    )

    request_id: str = Field(min_length=1, max_length=128)
    outcome: Value | None = None
    outcomes: list[Value | None] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.outcome is None) == (self.outcomes is None):
            raise ValueError("give outcome, or outcomes where the request had many rows")
        return self


FEEDBACK: TypeAdapter[list[Feedback]] = TypeAdapter(Annotated[list[Feedback], Field(min_length=1)])


@blueprint.post("/feedback")
def feedback() -> dict[str, Any]:
    """Say what earlier predictions turned out to be, by their request ids: one object, or a list of them.

    All or nothing is kept, but for requests that the prediction log does not hold, which are listed as `unknown`; a
    prediction is in the log within half a second. Feeding the same back again changes nothing, and another outcome
    takes the place of the one before.
    """
    if service().settings.prediction_log == "off":
        raise Problem(409, "prediction-log-off", "No prediction is kept to compare outcomes with: PREDICTION_LOG=off.")
    sent = json_body()
    try:
        found = FEEDBACK.validate_python(sent if isinstance(sent, list) else [sent])
    except ValidationError as error:
        faults = field_errors(error)
        raise Problem(422, "body", "; ".join(f"{at}: {what}" for at, what in faults[:3]) + ".", faults) from None
    limit = service().settings.max_request_rows
    rows = {one.request_id: [one.outcome] if one.outcomes is None else one.outcomes for one in found}
    if (total := sum(map(len, rows.values()))) > limit:
        raise Problem(413, "too-many-rows", f"The body holds {total:,} outcomes; at most {limit:,} (MAX_REQUEST_ROWS).")
    fed = predictions.feed_back(service().engine, rows)
    if rows and len(fed.unknown) == len(rows):
        named = ", ".join(fed.unknown[:3])
        raise Problem(404, "unknown-request", f"The prediction log holds no request {named}.")
    return {"recorded": fed.recorded, "replaced": fed.replaced, "known": fed.known, "unknown": fed.unknown}


@blueprint.get("/drift")
def drift() -> dict[str, Any]:
    """How far what the default model, or ?model=, sees and predicts is from its training: of each version in a role.

    It holds for all workers, and all replicas that share our database, over the last DRIFT_WINDOW_SECONDS; and for all
    rows that a version predicted then, also those in a role that it had before.
    """
    model, settings, engine = model_asked(), service().settings, service().engine
    lineup = service().lineup(model)
    found = assessment.drifts(settings, lineup, assessment.recent(engine, settings, model))
    versions = [
        assessment.describe_drift(one) | {"live": predictions.live(engine, model, one.role.served.version).summary}
        for one in found
    ]
    return {"model": model, "window_seconds": settings.drift_window_seconds, "versions": versions}


@blueprint.get("/audit")
def entries() -> dict[str, Any]:
    """Who moved which role, reloaded, or was refused, when, why, and by what evidence; newest first.

    Of all models, or of ?model=; ?limit= entries that are older than the one of the id ?before=.
    """
    limit = number_asked("limit", PAGE_ENTRIES, 1, MAX_ENTRIES)
    before = number_asked("before", MAX_ID, 1, MAX_ID)
    found = audit.history(service().engine, request.args.get("model"), limit=limit, before=before)
    return {"entries": [shown(entry) for entry in found], "next": found[-1].id if len(found) == limit else None}


def shown(entry: audit.Entry) -> dict[str, Any]:
    """An entry of the audit as answers show it."""
    names = ("id", "at", "action", "model", "role", "from_version", "to_version", "actor", "reason", "evidence")
    return {name: getattr(entry, name) for name in names}
