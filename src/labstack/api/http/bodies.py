"""The JSON bodies that routes take, and their validation; tensors have their own, in predicting/tensors.py."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from labstack.api.problems import Problem, field_errors

Value = str | bool | int | float
T = TypeVar("T")


class Move(BaseModel):
    """The model whose role moves, by default the default model, and the reason, for the audit."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, min_length=1)
    reason: str | None = Field(None, max_length=500)


class Update(Move):
    """The version that becomes the canary, its share of the requests, and its mode."""

    version: int = Field(ge=1, lt=2**31)
    weight: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    mode: Literal["split", "shadow"] = "split"


class Feedback(BaseModel):
    """The true outcome of a prediction: `outcome` of its only row, or `outcomes`, one for each row.

    Null means that the outcome of a row is not known.
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


def validate(validator: Callable[[Any], T], value: Any, kind: str = "body", detailed: int | None = None) -> T:
    """Return what pydantic's validator makes of a value. Raises Problem, 422 of this kind, that names every error.

    Its detail names the first `detailed` of them, or all.
    """
    try:
        return validator(value)
    except ValidationError as error:
        faults = field_errors(error)
        detail = "; ".join(f"{field}: {message}" for field, message in faults[:detailed])
        raise Problem(422, kind, f"{detail}.", faults) from None


def may_be_empty(schema: type[BaseModel]) -> bool:
    """Return True when no field of a body is required, so that a request needs none."""
    return not any(field.is_required() for field in schema.model_fields.values())
