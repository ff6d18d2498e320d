"""A prediction, from rows to outputs: what the hot lane and all of Flask's routes share."""

import time
from dataclasses import replace
from typing import Any, NamedTuple

import orjson
from orjson import Fragment

from labstack.api.problems import PredictionFailedError, Problem, listed
from labstack.api.recording.finished import FinishedPrediction
from labstack.api.recording.recorder import SHADOWED_ROWS, Shadow
from labstack.api.service import Service
from labstack.api.serving.lineup import Lineup, Role
from labstack.model.contract import ContractError, FieldMessages
from labstack.model.predictor import Predictions


class Call(NamedTuple):
    """The request that a prediction is for."""

    endpoint: str  # the pattern of its path
    path: str
    request_id: str
    key: bytes  # what decides between production and canary
    started: float  # the moment of `time.perf_counter` at which it came


class Predicted(NamedTuple):
    """What a version predicted for a call's rows, and its warnings about them."""

    role: Role
    predictions: Predictions
    warnings: FieldMessages


def predict(service: Service, lineup: Lineup, body: Any, call: Call) -> bytes:
    """Predict the rows of a body in one of our own three forms; the answer's JSON. Raises as `run` does."""
    rows, place = _rows(body)
    role, predictions, warnings = run(service, lineup, rows, place, call)
    results = role.served.results(predictions)
    answer = {"predictions": Fragment(b"[%b]" % b",".join(results))} if place else {"prediction": Fragment(results[0])}
    return dumps(service, role, answer, warnings, call)


def run(
    service: Service, lineup: Lineup, rows: list[Any], place: str, call: Call, version: int | None = None
) -> Predicted:
    """Predict rows by the version that the call's key, or its own word, decides on, and hand it to the recorder.

    `place` is what stands before a row's number in faults. Raises Problem, ContractError or PredictionFailedError.
    """
    if not rows:
        raise ContractError([(place, "is empty; at least one row is needed")])
    limit = service.settings.max_request_rows
    if len(rows) > limit:
        raise Problem(413, "too-many-rows", f"The body holds {len(rows):,} rows; at most {limit:,} (MAX_REQUEST_ROWS).")
    role = lineup.pick(call.key) if version is None else service.role(lineup, version)
    served = role.served
    matrix, warnings = served.plan.parse(rows, place)
    trial = lineup.trial if version is None else ""  # a caller who chose the version says nothing of both
    try:
        predictions = served.predictor.predict(matrix)
    except Exception as error:
        failed = PredictionFailedError(role, trial)
        if role is lineup.production or version is not None:
            raise failed from error
        answered = run(service, replace(lineup, canary=None), rows, place, call)  # no caller pays for a trial
        failed.record(service.recorder, error, call.request_id)  # not of a request that production fails too
        return answered
    latency_ms = (time.perf_counter() - call.started) * 1000
    service.recorder.put(
        FinishedPrediction(
            call.endpoint,
            call.path,
            call.request_id,
            time.time(),
            latency_ms,
            role,
            trial,
            matrix,
            warnings,
            predictions,
        )
    )
    if trial and (other := lineup.shadow_of(role, call.key)):
        few = rows[:SHADOWED_ROWS], predictions.outputs[:SHADOWED_ROWS]
        service.recorder.shadow(Shadow(lineup.canary, trial, other, *few))  # type: ignore[arg-type]  # trial: there is one
    return Predicted(role, predictions, warnings)


def dumps(service: Service, role: Role, answer: dict[str, Any], warnings: FieldMessages, call: Call) -> bytes:
    """An answer as JSON, with what every answer says beside its predictions."""
    if warnings:
        answer["warnings"] = listed(warnings)
    if service.settings.include_model_info:
        answer["model"] = role.block
    answer["request_id"] = call.request_id
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def _rows(body: Any) -> tuple[list[Any], str]:
    """The rows of a body, and what stands before a row's number in errors; nothing for one object alone."""
    if isinstance(body, dict) and isinstance(body.get("instances"), list):
        if len(body) > 1:
            unknown = [name for name in body if name != "instances"]
            raise ContractError([(name, "is not known beside instances") for name in unknown])
        return body["instances"], "instances"
    if isinstance(body, list):
        return body, "rows"
    if isinstance(body, dict):
        return [body], ""
    raise ContractError([("body", 'is a single value; an object, a list of objects or {"instances": [...]} is needed')])
