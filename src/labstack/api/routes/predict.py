"""Predictions in the API's own form, by the versions that have a role."""

from flask import Blueprint, Response, request

from labstack.api.http.operations import PREDICT, Operation
from labstack.api.http.request import call, json_body, service
from labstack.api.predicting import prediction
from labstack.api.predicting.fast_path import FAILED

blueprint = Blueprint("predict", __name__)


@blueprint.post("/predict")
@Operation(PREDICT, body="body", answer="answer")
def predict_default() -> Response:
    """Predict with the default model: one object, a list of objects, or {"instances": [...]}."""
    return _predict(service().settings.default_model_name)


@blueprint.post("/models/<model>/predict")
@Operation(PREDICT, body="body", answer="answer")
def predict_model(model: str) -> Response:
    """Predict with a model by its name, in the same forms as /predict."""
    return _predict(model)


def _predict(model: str) -> Response:
    if (error := request.environ.get(FAILED)) is not None:  # the prediction has failed in the fast path
        raise error
    lineup = service().lineup(model)
    answer = prediction.predict(service(), lineup, json_body(), call())
    return Response(answer, content_type="application/json")
