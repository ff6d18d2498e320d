"""What the routes of one worker work with: its settings, its lineups, its recorder."""

import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from sqlalchemy import Engine

from labstack.api.problems import Problem
from labstack.api.recording.recorder import Recorder
from labstack.api.rollout.controller import Controller
from labstack.api.rollout.gauges import Gauges, compute
from labstack.api.serving.cache import Cache
from labstack.api.serving.control import Control
from labstack.api.serving.follower import Follower
from labstack.api.serving.lineup import Lineup, Role
from labstack.registry.client import MlflowRest, RegistryError
from labstack.registry.roles import living_production, wait
from labstack.settings import Settings, without_credentials
from labstack.store.database import DatabaseError, connect, migrate

FIRST_LOOK_SECONDS = 10.0


@dataclass(frozen=True)
class Service:
    settings: Settings
    control: Control
    client: MlflowRest
    follower: Follower
    recorder: Recorder

    def start(self) -> None:
        """Start the worker's threads, and give the first look at the registry a moment before requests come in."""
        self.recorder.start()
        self.follower.start()
        self.controller.start()
        self.follower.first_look.wait(FIRST_LOOK_SECONDS)

    def stop(self) -> None:
        self.controller.stop()
        self.follower.stop()
        self.recorder.stop()

    @cached_property
    def controller(self) -> Controller:
        """What acts on what all workers and replicas did, in one of them."""
        return Controller(self.settings, self.control, self.client, self.follower, lambda: self.engine)

    def prepare(self) -> None:
        """In the arbiter, before the first fork: make the database's file if there is none yet.

        No worker makes it: one that finds none has lost it.
        """
        with suppress(DatabaseError):  # each worker tells
            self.recorder.prepare()
            self._connected  # noqa: B018  # kept for all workers

    @cached_property
    def engine(self) -> Engine:
        """Our database. Raises DatabaseError."""
        migrate(self._connected)
        return self._connected

    @cached_property
    def _connected(self) -> Engine:
        return connect(self.settings.lab_database_url)

    @cached_property
    def gauges(self) -> Gauges:
        """The gauges of drift and canaries for `/metrics`."""
        return Gauges(lambda: compute(self.engine, self.settings, self.follower.lineups))

    def role(self, lineup: Lineup, version: int) -> Role:
        """The role that serves a version by its number. Raises Problem when none does."""
        for role in lineup.roles:
            if role.served.version == version:
                return role
        model = lineup.production.served.model
        served = " and ".join(f"{role.served.version} ({role.name})" for role in lineup.roles)
        raise Problem(404, "not-served", f"Version {version} of {model!r} has no role that is served: {served} is.")

    def lineup(self, model: str | None = None) -> Lineup:
        """The lineup of a model, by default the default model. Raises Problem, 404 or 503, with what to do about it."""
        if model is None:
            model = self.settings.default_model_name
        lineup = self.follower.lineups.get(model)
        if lineup is None:
            raise self.refusal(model)
        return lineup

    def refusal(self, model: str) -> Problem:
        """Why a model without a lineup is not served."""
        following, url = self.follower.following, without_credentials(self.settings.mlflow_tracking_uri)
        waiting = self.follower.waiting_seconds
        if error := following.load_errors.get(model):
            return Problem(503, "load-failed", error)
        if waiting is not None:
            limit = self.settings.startup_timeout_seconds
            detail = f"Waiting for the MLflow server at {url}, for {waiting:.0f} of {limit:g} seconds so far."
            return Problem(503, "starting", detail)
        if following.last_contact is None:
            detail = f"The MLflow server at {url} could not be reached (MLFLOW_TRACKING_URI). Start it: ./run_all.sh up"
            return Problem(503, "registry-unreachable", detail)
        if model in following.without_production or model == self.settings.default_model_name:
            detail = f"The model {model!r} has no production version. Train one: ./run_all.sh train"
            return Problem(503, "no-production-model", detail)
        names = ", ".join(sorted(self.follower.lineups)) or "none"
        return Problem(404, "unknown-model", f"The registry knows no model {model!r}; served are: {names}.")


def require_production_model(settings: Settings) -> None:
    """Exit unless the default model has a production version: in the registry, or in the cache while that is away."""
    model = settings.default_model_name
    client = MlflowRest(settings.mlflow_tracking_uri)  # not the workers': connections must not be there at the fork
    try:
        wait(client, settings.startup_timeout_seconds)
        there = living_production(client, model) is not None
        why = f"The model {model!r} has no production version"
    except RegistryError as error:
        there = any(record.model == model for record, _ in Cache(settings, client).recall())
        why = f"{error} And the cache holds no production version of the model {model!r}"
    if not there:
        sys.exit(f"{why}, and REQUIRE_PRODUCTION_MODEL is set. Train one: ./run_all.sh train")
