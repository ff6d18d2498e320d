"""Errors for people: one shape, RFC 9457 `application/problem+json`, for every answer that is not a success."""

from collections.abc import Sequence
from http import HTTPStatus

import orjson
import structlog
from flask import Flask, Response, current_app, g, request
from pydantic import ValidationError
from werkzeug.exceptions import ClientDisconnected, HTTPException, RequestEntityTooLarge

from labstack.api import metrics
from labstack.api.recording.recorder import Recorder
from labstack.api.serving.lineup import Role
from labstack.errors import LabError
from labstack.model.contract import ContractError, FieldMessages
from labstack.registry.client import NotThereError, RegistryError, RegistryFailedError
from labstack.store.datasets import RowsError, UnknownDatasetError
from labstack.store.predictions import FeedbackError

log = structlog.get_logger(__name__)


class Problem(Exception):  # noqa: N818  # the word of RFC 9457
    """An answer that is an error: `detail` says what is wrong and what to do.

    `retry_after` is the number of seconds after which the same request may succeed, where that is known.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        errors: Sequence[tuple[str, str]] = (),
        *,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.errors = errors
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """What its answer says besides its body."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


class PredictionFailedError(Exception):
    """A version in a role failed to predict rows that were in order."""

    def __init__(self, role: Role, trial: str) -> None:
        super().__init__(f"Version {role.served.version} of {role.served.model!r} failed to predict.")
        self.role, self.trial = role, trial

    def record(self, recorder: Recorder, cause: BaseException | None, request_id: str) -> None:
        """Count it, and log what was raised."""
        recorder.fail(self.role, self.trial)
        log.error("prediction failed", exc_info=cause, role=self.role.name, request_id=request_id)


def faults_of(error: ValidationError) -> FieldMessages:
    """What pydantic found wrong with a body, and where."""
    return [(".".join(map(str, fault["loc"])) or "body", fault["msg"]) for fault in error.errors()]


def listed(warnings: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Faults or warnings as every answer shows them."""
    return [{"field": field, "message": message} for field, message in warnings]


def register(app: Flask) -> None:
    """Give every error of the application the one shape."""
    app.register_error_handler(Problem, _answer)
    app.register_error_handler(ContractError, _from_contract)
    app.register_error_handler(PredictionFailedError, _from_prediction)
    app.register_error_handler(LabError, _from_lab)
    app.register_error_handler(HTTPException, _from_http)
    app.register_error_handler(Exception, _from_fault)


def document(status: int, kind: str, detail: str, request_id: str | None) -> dict[str, object]:
    """The members that every error has; counts it by its kind."""
    metrics.problems.labels(kind).inc()
    return {
        "type": f"urn:labstack:problem:{kind}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "request_id": request_id,
    }


def _answer(problem: Problem) -> Response:
    body = document(problem.status, problem.kind, problem.detail, g.get("request_id"))
    if request.path.startswith("/v2"):
        body["error"] = problem.detail  # where clients of that protocol look
    if problem.errors:
        body["errors"] = listed(problem.errors)
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
    """What an operator asked of the registry or of our database, and could not be done."""
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
        return _answer(Problem(400, "incomplete", "The body was incomplete or came too slowly. Send it again."))
    response = _answer(Problem(error.code or 500, "http", error.description or ""))
    for name, value in error.get_headers():
        if name.lower() == "allow":
            response.headers[name] = value
    return response


def _from_fault(error: Exception) -> Response:
    log.error("unexpected error", exc_info=error, request_id=g.get("request_id"))
    return _answer(Problem(500, "internal", "The API failed to answer; its log says why, under this request id."))
