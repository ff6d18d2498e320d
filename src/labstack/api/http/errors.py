"""The problem that each error of a request becomes, and its answer."""

import orjson
import structlog
from flask import Flask, Response, current_app, g, request
from werkzeug.exceptions import ClientDisconnected, HTTPException, RequestEntityTooLarge

from labstack.api.predicting.prediction import PredictionFailedError
from labstack.api.problems import Problem, message_objects, problem_details
from labstack.errors import LabError
from labstack.model.contract import ContractError
from labstack.registry.client import NotThereError, RegistryError, RegistryFailedError
from labstack.store.datasets import RowsError, UnknownDatasetError
from labstack.store.predictions import FeedbackError

log = structlog.get_logger(__name__)


def register(app: Flask) -> None:
    """Answer every error of the application by a problem."""
    app.register_error_handler(Problem, _answer)
    app.register_error_handler(ContractError, _from_contract)
    app.register_error_handler(PredictionFailedError, _from_prediction)
    app.register_error_handler(LabError, _from_lab)
    app.register_error_handler(HTTPException, _from_http)
    app.register_error_handler(Exception, _from_unexpected)


def _answer(problem: Problem) -> Response:
    body = problem_details(problem.status, problem.kind, problem.detail, g.get("request_id"))
    if request.path.startswith("/v2"):
        body["error"] = problem.detail  # where clients of the Open Inference Protocol look
    if problem.errors:
        body["errors"] = message_objects(problem.errors)
    level = log.error if problem.status >= 500 else log.warning
    level(
        "request failed",
        endpoint=request.path,
        status=problem.status,
        problem=problem.kind,
        request_id=g.get("request_id"),
    )
    return Response(orjson.dumps(body), problem.status, problem.headers, content_type="application/problem+json")


def _from_contract(error: ContractError) -> Response:
    shown = "" if len(error.errors) == error.count else f", of which {len(error.errors) - 1} are named"
    return _answer(Problem(422, "contract", f"{error}{shown}.", error.errors))


def _from_prediction(error: PredictionFailedError) -> Response:
    error.record(current_app.extensions["labstack"].recorder, error.__cause__, g.get("request_id"))
    return _answer(Problem(500, "prediction", f"{error} The log says why, under this request id."))


def _from_lab(error: LabError) -> Response:
    """Answer a request that the registry or our database could not fulfil."""
    if isinstance(error, RowsError):
        return _answer(Problem(422, "rows", str(error), error.faults))
    if isinstance(error, FeedbackError):
        return _answer(Problem(422, "feedback", str(error), error.faults))
    if isinstance(error, NotThereError | UnknownDatasetError):
        return _answer(Problem(404, "not-there", str(error)))
    if isinstance(error, RegistryError) and not isinstance(error, RegistryFailedError):
        return _answer(Problem(409, "refused", str(error)))
    return _answer(Problem(503, "unavailable", str(error)))


def _from_http(error: HTTPException) -> Response:
    if isinstance(error, RequestEntityTooLarge):
        limit = request.max_content_length
        return _answer(Problem(413, "too-large", f"The body holds more than {limit:,} bytes (MAX_REQUEST_BYTES)."))
    if isinstance(error, ClientDisconnected):
        return _answer(Problem(400, "incomplete", "The body was incomplete or arrived too slowly. Send it again."))
    response = _answer(Problem(error.code or 500, "http", error.description or ""))
    for name, value in error.get_headers():
        if name.lower() == "allow":
            response.headers[name] = value
    return response


def _from_unexpected(error: Exception) -> Response:
    log.error("unexpected error", exc_info=error, request_id=g.get("request_id"))
    return _answer(Problem(500, "internal", "The API failed to answer; its log says why, under this request id."))
