"""What is served, and how well: for people, load balancers and operators."""

from collections.abc import Sequence
from typing import Any

from flask import Blueprint, Response, redirect, request
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from werkzeug.wrappers import Response as AnyResponse

from labstack.api import health, metrics
from labstack.api.http.request import model_asked, service
from labstack.api.rollout import assessment
from labstack.api.serving.lineup import Canary, Lineup, Role
from labstack.settings import without_credentials
from labstack.store.database import DatabaseError

blueprint = Blueprint("info", __name__)


@blueprint.get("/")
def welcome() -> dict[str, Any] | AnyResponse:
    """The welcome, with where to go next; a browser is sent to the console."""
    if request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html":
        return redirect("/console")
    return {
        "message": "Welcome to the API service!",
        "models": service().follower.roles,
        "links": {
            "predict": "/predict",
            "predict_with": "/models/<model>/predict",
            "model_info": "/model-info",
            "canary_status": "/canary-status",
            "drift": "/drift",
            "audit": "/audit",
            "console": "/console",
            "data": "/data",
            "docs": "/docs",
            "openapi": "/openapi.json",
            "metrics": "/metrics",
            "health": "/health",
            "ready": "/ready",
            "mlflow": without_credentials(service().settings.mlflow_public_url),
        },
    }


@blueprint.get("/health")
def health_of_api() -> dict[str, Any]:
    """Alive, what is loaded, and everything that does not work."""
    follower = service().follower
    status, faults = health.look(service())
    return {
        "status": status,
        "models": follower.roles,
        "registry": {
            "url": without_credentials(service().settings.mlflow_tracking_uri),
            "reachable": health.registry_answers(service()),
            "last_contact": follower.following.last_contact,
        },
        "errors": faults,
    }


@blueprint.get("/ready")
def ready() -> dict[str, Any]:
    """200 when the default model, or ?model=, can be served, else 404 or 503 with the reason.

    Degraded is ready too, and says why.
    """
    model = model_asked()
    shown = {"status": "ready", "model": model, "version": service().lineup(model).production.served.version}
    faults = health.faults(service())
    return shown | {"status": "degraded", "errors": faults} if faults else shown


@blueprint.get("/model-info")
def model_info() -> dict[str, Any]:
    """What is served of the default model, or of the one named by ?model=: since when, from which run, how good."""
    role = service().lineup(model_asked()).production
    contract = role.served.contract
    return _shown(role) | {
        "task": contract.task,
        "target": contract.target,
        "features": [feature.model_dump(exclude={"reference"}) for feature in contract.features],
        "classes": contract.classes,
        "sample": contract.sample.model_dump(),
    }


@blueprint.get("/canary-status")
def canary_status() -> dict[str, Any]:
    """Production and canary of the default model, or of ?model=, what was counted of each, and the canary's verdict.

    The counts are of this API's workers since it started; the verdict is by this step of the canary's trial, of all
    that share our database. It is null where there is no canary.
    """
    model = model_asked()
    lineup = service().lineup(model)
    among = metrics.collect()  # once, as it reads every worker's files
    return {
        "verdict": _verdict(lineup),
        "model": model,
        "production": _shown(lineup.production) | _counted(lineup.production, among),
        "canary": _shown(lineup.canary) | _counted(lineup.canary, among) if lineup.canary else None,
        "error": service().follower.following.load_errors.get(model),
    }


@blueprint.get("/metrics")
def prometheus() -> Response:
    """What all workers counted, in Prometheus' text form; without drift and canaries where our database is away."""
    url = without_credentials(service().settings.mlflow_tracking_uri)
    registry = health.gauge(url, health.registry_answers(service()))
    return Response(metrics.text([registry, *service().gauges.latest()]), content_type=CONTENT_TYPE_LATEST)


def _verdict(lineup: Lineup) -> dict[str, Any] | None:
    if lineup.canary is None:
        return None
    try:
        found = assessment.step(service().engine, service().settings, lineup)
    except DatabaseError as error:
        return {"outcome": "inconclusive", "reason": str(error), "next_weight": None, "checks": []}
    return found and assessment.describe_step(found)


def _shown(role: Role) -> dict[str, Any]:
    served = role.served
    shown = {
        "model": served.model,
        "version": served.version,
        "role": role.name,
        "runtime": served.predictor.runtime,
        "since": role.since,
        "run_id": served.record.run_id,
        "metrics": served.metrics,
    }
    if isinstance(role, Canary):
        shown |= {"weight": role.rollout.weight, "mode": role.rollout.mode}
    return shown


def _counted(role: Role, among: Sequence[Metric]) -> dict[str, Any]:
    """What this API's workers counted of a version in its role since the API started."""
    labels = {"model": role.served.model, "version": str(role.served.version)}
    found = {
        name: int(sum(metrics.total(counter, among, **labels, role=role.name).values()))
        for name, counter in (
            ("requests", metrics.predictions),
            ("rows", metrics.rows),
            ("failures", metrics.failures),
            ("out_of_range", metrics.out_of_range),
        )
    }
    if not isinstance(role, Canary):
        return found
    outcomes = metrics.total(metrics.shadowed, among, **labels)
    return found | {"shadow": {name: int(outcomes.get((name,), 0)) for name in ("agreed", "differed", "failed")}}
