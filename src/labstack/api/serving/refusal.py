"""The reasons why a model is not served, each with what to do about it."""

import sys

from labstack.api.problems import Problem
from labstack.api.serving.cache import Cache
from labstack.api.serving.follower import Follower
from labstack.registry.client import MlflowRest, RegistryError
from labstack.registry.roles import living_production, wait
from labstack.settings import Settings, without_credentials


def refusal(settings: Settings, follower: Follower, model: str) -> Problem:
    """Return the problem that says why a model without a lineup is not served."""
    following, url = follower.following, without_credentials(settings.mlflow_tracking_uri)
    waiting = follower.waiting_seconds
    if error := following.load_errors.get(model):
        return Problem(503, "load-failed", error)
    if waiting is not None:
        limit = settings.startup_timeout_seconds
        detail = f"Waiting for the MLflow server at {url}, for {waiting:.0f} of {limit:g} seconds so far."
        return Problem(503, "starting", detail)
    if following.last_contact is None:
        detail = f"The MLflow server at {url} could not be reached (MLFLOW_TRACKING_URI). Start it: ./run_all.sh up"
        return Problem(503, "registry-unreachable", detail)
    if model in following.without_production or model == settings.default_model_name:
        detail = f"The model {model!r} has no production version. Train one: ./run_all.sh train"
        return Problem(503, "no-production-model", detail)
    names = ", ".join(sorted(follower.lineups)) or "none"
    return Problem(404, "unknown-model", f"The registry has no model {model!r}; served models: {names}.")


def require_production_model(settings: Settings) -> None:
    """Exit unless the default model has a production version: in the registry, or in the cache when that is away."""
    model = settings.default_model_name
    client = MlflowRest(settings.mlflow_tracking_uri)  # not the workers': no connection may be open at the fork
    try:
        wait(client, settings.startup_timeout_seconds)
        has_production = living_production(client, model) is not None
        reason = f"The model {model!r} has no production version"
    except RegistryError as error:
        has_production = any(record.model == model for record, _ in Cache(settings, client).recall())
        reason = f"{error} And the cache holds no production version of the model {model!r}"
    if not has_production:
        sys.exit(f"{reason}, and REQUIRE_PRODUCTION_MODEL is set. Train one: ./run_all.sh train")
