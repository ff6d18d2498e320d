"""What is served, and how well: for people, load balancers and operators."""

from typing import Any

from flask import Blueprint, request

from labstack import registry
from labstack.api.service import service
from labstack.settings import without_credentials

blueprint = Blueprint("info", __name__)


@blueprint.get("/")
def welcome() -> dict[str, Any]:
    """The welcome, with where to go next."""
    return {
        "message": "Welcome to the API service!",
        "models": service().follower.versions,
        "links": {
            "predict": "/predict",
            "predict_with": "/models/<model>/predict",
            "model_info": "/model-info",
            "health": "/health",
            "ready": "/ready",
            "mlflow": without_credentials(service().settings.mlflow_public_url),
        },
    }


@blueprint.get("/health")
def health() -> dict[str, Any]:
    """Alive, what is loaded, and what keeps this worker from following the registry, if anything does."""
    follower = service().follower
    following = follower.following
    starting = follower.waiting_seconds is not None and not follower.lineups
    return {
        "status": "starting" if starting else "degraded" if following.errors else "ok",
        "models": {model: {registry.PRODUCTION: version} for model, version in follower.versions.items()},
        "registry": {
            "url": without_credentials(service().settings.mlflow_tracking_uri),
            "reachable": following.registry_error is None,
            "last_contact": following.last_contact,
        },
        "errors": following.errors,
    }


@blueprint.get("/ready")
def ready() -> dict[str, Any]:
    """200 when the default model can be served, else 503 with the reason."""
    model = service().settings.default_model_name
    return {"status": "ready", "model": model, "version": service().lineup(model).production.served.version}


@blueprint.get("/model-info")
def model_info() -> dict[str, Any]:
    """What is served of the default model, or of the one named by ?model=: since when, from which run, how good."""
    served = service().lineup(request.args.get("model") or service().settings.default_model_name).production.served
    contract = served.contract
    return {
        "model": served.model,
        "version": served.version,
        "role": registry.PRODUCTION,
        "runtime": served.predictor.runtime,
        "since": served.since,
        "run_id": served.record.run_id,
        "metrics": served.metrics,
        "task": contract.task,
        "target": contract.target,
        "features": [feature.model_dump() for feature in contract.features],
        "classes": contract.classes,
        "sample": contract.sample.model_dump(),
    }
