"""What only operators may ask: every move of a role, and a reload; each answers when all workers have followed."""

from typing import Any, TypeVar

from flask import Blueprint
from pydantic import ValidationError

from labstack.api.http import actions
from labstack.api.http.actions import Move, Update
from labstack.api.http.operators import require_operator
from labstack.api.http.request import body, json_body
from labstack.api.problems import Problem, field_errors

blueprint = Blueprint("admin", __name__)
blueprint.before_request(require_operator)

Asked = TypeVar("Asked", bound=Move)


@blueprint.post("/admin/reload")
def reload() -> dict[str, Any]:
    """Have every worker look at the registry now; answers when all of them have.

    No request that begins after a 200 is answered by a version that is production no more. 503 when a worker could
    not reach the registry or load a version, or did not answer in time; what could not be followed is served as
    before.
    """
    return actions.reload()


@blueprint.post("/update-model")
def update_model() -> dict[str, Any]:
    """Make a version the canary beside production, or change the weight and the mode of the one that is."""
    return actions.update(_asked(Update))


@blueprint.post("/accept-next-model")
def accept_next_model() -> dict[str, Any]:
    """Make the canary production; the version it takes the place of becomes `previous`."""
    return actions.accept(_asked(Move))


@blueprint.post("/reject-next-model")
def reject_next_model() -> dict[str, Any]:
    """Take the canary out; production answers everything again."""
    return actions.reject(_asked(Move))


@blueprint.post("/rollback")
def rollback() -> dict[str, Any]:
    """Make the previous version production again."""
    return actions.rollback(_asked(Move))


def _asked(schema: type[Asked]) -> Asked:
    """The body, which may be none where nothing in it is required. Raises Problem that names every fault."""
    sent = json_body() if body() or "version" in schema.model_fields else {}
    try:
        return schema.model_validate(sent)
    except ValidationError as error:
        faults = field_errors(error)
        raise Problem(
            422, "body", "; ".join(f"{field}: {message}" for field, message in faults) + ".", faults
        ) from None
