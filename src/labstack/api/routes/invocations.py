"""MLflow's scoring protocol, for clients that speak it: https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/.

Of a table every form is read: `dataframe_split`, `dataframe_records`, `instances`, `inputs`, and CSV.
"""

from flask import Blueprint, Response, request

import labstack
from labstack.api.http.operations import INFO, MODEL, PREDICT, READY, TEXT, Operation
from labstack.api.http.request import body, call, json_body, query_model, service
from labstack.api.predicting import tables
from labstack.api.predicting.prediction import dumps, run
from labstack.model.contract import FieldMessages

blueprint = Blueprint("invocations", __name__)


@blueprint.get("/ping")
@Operation(READY, query=MODEL, media_types=(TEXT,))
def ping() -> Response:
    """200 when the default model, or ?model=, can be served, else 404 or 503 with the reason."""
    service().lineup(query_model())
    return Response("\n", content_type="text/plain")


@blueprint.get("/version")
@Operation(INFO, media_types=(TEXT,))
def version() -> Response:
    """The version of Labstack."""
    return Response(labstack.__version__, content_type="text/plain")


@blueprint.post("/invocations")
@Operation(PREDICT, query=MODEL, body="invocations")
def invocations() -> Response:
    """Predict with the default model, or with ?model=: a table in any of MLflow's forms, as JSON or CSV."""
    lineup = service().lineup(query_model())
    contract = lineup.production.served.contract
    warnings: FieldMessages = []
    if request.mimetype == "text/csv":
        rows, place = tables.from_csv(body(), contract), "csv"
    else:
        rows, place, warnings = tables.from_json(json_body(), contract)
    asked = call()
    role, predictions, found = run(service(), lineup, rows, place, asked)
    answer = {"predictions": predictions.outputs}
    return Response(dumps(service(), role, answer, warnings + found, asked), content_type="application/json")
