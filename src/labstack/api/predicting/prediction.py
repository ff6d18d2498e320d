"""A prediction, from rows to outputs: shared by the fast path and by all of Flask's routes."""

import time
from dataclasses import replace
from typing import Any, NamedTuple

import orjson
import structlog
from orjson import Fragment

from labstack.api.predicting.call import Call
from labstack.api.problems import Problem, message_objects
from labstack.api.recording.finished import FinishedPrediction
from labstack.api.recording.recorder import Recorder
from labstack.api.recording.shadows import SHADOWED_ROWS, Shadow
from labstack.api.service import Service
from labstack.api.serving.lineup import Lineup, Role
from labstack.model.contract import ContractError, FieldMessages
from labstack.model.predictor import Predictions

log = structlog.get_logger(__name__)


class PredictionFailedError(Exception):
    """A version in a role failed to predict rows that fit its contract."""

    def __init__(self, role: Role, trial: str) -> None:
        super().__init__(f"Version {role.served.version} of {role.served.model!r} failed to predict.")
        self.role, self.trial = role, trial

    def record(self, recorder: Recorder, cause: BaseException | None, request_id: str) -> None:
        """Count the failure, and log its cause."""
        recorder.fail(self.role, self.trial)
        log.error("prediction failed", exc_info=cause, role=self.role.name, request_id=request_id)


class RunResult(NamedTuple):
    """The predictions for the rows of a call, the role that made them, and warnings about the rows."""

    role: Role
    predictions: Predictions
    warnings: FieldMessages


def predict(service: Service, lineup: Lineup, body: Any, call: Call) -> bytes:
    """Predict the rows of a body in one of our own three forms, and return the answer's JSON. Raises as `run` does."""
    rows, prefix = _rows(body)
    role, predictions, warnings = run(service, lineup, rows, prefix, call)
    results = role.served.results(predictions)
    answer = {"predictions": Fragment(b"[%b]" % b",".join(results))} if prefix else {"prediction": Fragment(results[0])}
    return dumps(service, role, answer, warnings, call)


def run(
    service: Service, lineup: Lineup, rows: list[Any], prefix: str, call: Call, version: int | None = None
) -> RunResult:
    """Predict rows by the version that the call's key chooses, or by `version`, and hand the result to the recorder.

    `prefix` stands before a row's number in errors. Raises Problem, ContractError or PredictionFailedError.
    """
    if not rows:
        raise ContractError([(prefix, "is empty; at least one row is needed")])
    limit = service.settings.max_request_rows
    if len(rows) > limit:
        raise Problem(413, "too-many-rows", f"The body holds {len(rows):,} rows; at most {limit:,} (MAX_REQUEST_ROWS).")
    role = lineup.pick(call.key) if version is None else service.role(lineup, version)
    served = role.served
    matrix, warnings = served.plan.parse(rows, prefix)
    trial = lineup.trial if version is None else ""  # a caller's own choice is no evidence in a trial
    try:
        predictions = served.predictor.predict(matrix)
    except Exception as error:
        failed = PredictionFailedError(role, trial)
        if role is lineup.production or version is not None:
            raise failed from error
        result = run(service, replace(lineup, canary=None), rows, prefix, call)  # a canary's failure harms no caller
        failed.record(service.recorder, error, call.request_id)  # only where production can predict the rows
        return result
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
    if trial and (other := lineup.beside(role, call.key)):
        first_rows, first_outputs = rows[:SHADOWED_ROWS], predictions.outputs[:SHADOWED_ROWS]
        canary = lineup.canary
        service.recorder.shadow(Shadow(canary, trial, other, first_rows, first_outputs))  # type: ignore[arg-type]  # a trial has a canary
    return RunResult(role, predictions, warnings)


def dumps(service: Service, role: Role, answer: dict[str, Any], warnings: FieldMessages, call: Call) -> bytes:
    """Return an answer as JSON, with the members that every answer has: warnings, model and request id."""
    if warnings:
        answer["warnings"] = message_objects(warnings)
    if service.settings.include_model_info:
        answer["model"] = role.block
    answer["request_id"] = call.request_id
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def _rows(body: Any) -> tuple[list[Any], str]:
    """Return the rows of a body, and the prefix of a row's number in errors; the prefix of a single object is empty."""
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
