"""The operators' endpoints: every move of a role, and a reload; each answers when all workers follow."""

from typing import Any, TypeVar

from flask import Blueprint

from labstack.api.http import actions
from labstack.api.http.bodies import Move, Update, may_be_empty, validate
from labstack.api.http.operations import OPERATORS, Operation
from labstack.api.http.operators import require_operator
from labstack.api.http.request import body, json_body

blueprint = Blueprint("admin", __name__)
blueprint.before_request(require_operator)

Body = TypeVar("Body", bound=Move)


@blueprint.post("/admin/reload")
@Operation(OPERATORS)
def reload() -> dict[str, Any]:
    """Have every worker read the roles from the registry now; the answer comes when all of them follow.

    A request that begins after a 200 is never answered by a former production version. 503 when a worker could not
    reach the registry or load a version, or did not answer in time; it then serves the same versions as before.
    """
    return actions.reload()


@blueprint.post("/update-model")
@Operation(OPERATORS, body=Update)
def update_model() -> dict[str, Any]:
    """Make a version the canary, or change the weight and the mode of the canary."""
    return actions.start_canary(_body(Update))


@blueprint.post("/accept-next-model")
@Operation(OPERATORS, body=Move)
def accept_next_model() -> dict[str, Any]:
    """Make the canary production; the version that it replaces becomes `previous`."""
    return actions.accept(_body(Move))


@blueprint.post("/reject-next-model")
@Operation(OPERATORS, body=Move)
def reject_next_model() -> dict[str, Any]:
    """Remove the canary; production answers every request again."""
    return actions.reject(_body(Move))


@blueprint.post("/rollback")
@Operation(OPERATORS, body=Move)
def rollback() -> dict[str, Any]:
    """Make the previous version production again."""
    return actions.rollback(_body(Move))


def _body(schema: type[Body]) -> Body:
    """Return the request's body, which may be missing where no field is required. Raises Problem."""
    return validate(schema.model_validate, {} if may_be_empty(schema) and not body() else json_body())
