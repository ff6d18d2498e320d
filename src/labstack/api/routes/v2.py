"""The endpoints of the Open Inference Protocol, version 2: https://github.com/kserve/open-inference-protocol."""

from typing import Any

from flask import Blueprint, Response, request

import labstack
from labstack.api.http.operations import BINARY, INFO, JSON, MODELS, PREDICT, READY, Operation
from labstack.api.http.request import body, call, parse_json, service
from labstack.api.predicting import tensors
from labstack.api.predicting.prediction import run
from labstack.api.predicting.tensors import InferRequest
from labstack.api.serving.lineup import Lineup, Role

blueprint = Blueprint("v2", __name__, url_prefix="/v2")

HEADER_LENGTH = "Inference-Header-Content-Length"


@blueprint.get("")
@Operation(INFO)
def server() -> dict[str, Any]:
    """The server's name, version and extensions."""
    return {"name": "labstack", "version": labstack.__version__, "extensions": ["binary_tensor_data"]}


@blueprint.get("/health/live")
@Operation(INFO)
def live() -> dict[str, Any]:
    """200 while the API answers."""
    return {"live": True}


@blueprint.get("/health/ready")
@Operation(READY)
def server_ready() -> dict[str, Any]:
    """200 when the default model can be served, else 503 with the reason."""
    service().lineup()
    return {"ready": True}


@blueprint.get("/models/<model>")
@blueprint.get("/models/<model>/versions/<int:version>")
@Operation(MODELS)
def metadata(model: str, version: int | None = None) -> dict[str, Any]:
    """The tensors of a model, and the versions that are served."""
    lineup = service().lineup(model)
    served = _role(lineup, version).served
    return {
        "name": model,
        "versions": [str(role.served.version) for role in lineup.roles],
        "platform": f"labstack_{served.predictor.runtime}",
        "inputs": tensors.inputs_of(served.contract),
        "outputs": tensors.outputs_of(served.contract),
    }


@blueprint.get("/models/<model>/ready")
@blueprint.get("/models/<model>/versions/<int:version>/ready")
@Operation(MODELS)
def model_ready(model: str, version: int | None = None) -> dict[str, Any]:
    """200 when the model, or this version of it, is served, else 404 or 503 with the reason."""
    return {"name": model, "version": str(_role(service().lineup(model), version).served.version), "ready": True}


@blueprint.post("/models/<model>/infer")
@blueprint.post("/models/<model>/versions/<int:version>/infer")
@Operation(PREDICT, body=InferRequest, media_types=(JSON, BINARY))
def infer(model: str, version: int | None = None) -> Response:
    """Predict rows that come as one tensor per feature, or as one of shape [rows, features]; in JSON or binary."""
    lineup = service().lineup(model)
    contract = _role(lineup, version).served.contract
    text, binary = tensors.split(body(), request.headers.get(HEADER_LENGTH))
    infer_request = tensors.read(parse_json(text), contract)
    rows = tensors.rows_of(infer_request, binary, contract)
    current = call()
    role, predictions, warnings = run(service(), lineup, rows, "inputs", current, version)
    parameters = {"role": role.name, "runtime": role.served.predictor.runtime, "request_id": current.request_id}
    if warnings:
        parameters["warnings"] = "; ".join(f"{field} {message}" for field, message in warnings)
    head = {"model_name": model, "model_version": str(role.served.version), "parameters": parameters}
    data, length = tensors.answer(head, infer_request, predictions, role.served.contract)
    if length == len(data):
        return Response(data, content_type="application/json")
    return Response(data, content_type="application/octet-stream", headers={HEADER_LENGTH: str(length)})


def _role(lineup: Lineup, version: int | None) -> Role:
    """Return the role of a version, or production when no version is named. Raises Problem."""
    return lineup.production if version is None else service().role(lineup, version)
