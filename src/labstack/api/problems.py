"""The one shape of every answer that is an error: RFC 9457, `application/problem+json`.

Any room of the API may raise a Problem. Which problem each other error becomes, `http/errors.py` says.
"""

from collections.abc import Sequence
from http import HTTPStatus

from pydantic import ValidationError

from labstack.api import metrics
from labstack.model.contract import FieldMessages


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
        """The headers of its answer."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def field_errors(error: ValidationError) -> FieldMessages:
    """Return the fields of a body that pydantic rejects, and why."""
    return [(".".join(map(str, fault["loc"])) or "body", fault["msg"]) for fault in error.errors()]


def message_objects(messages: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Return errors or warnings as every answer shows them."""
    return [{"field": field, "message": message} for field, message in messages]


def problem_details(status: int, kind: str, detail: str, request_id: str | None) -> dict[str, object]:
    """Return the members that every problem has, and count the problem by its kind."""
    metrics.problems.labels(kind).inc()
    return {
        "type": f"urn:labstack:problem:{kind}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "request_id": request_id,
    }
