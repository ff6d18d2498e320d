"""The parts that the routes of one worker share: its settings, its lineups, its recorder."""

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from sqlalchemy import Engine

from labstack.api.problems import Problem
from labstack.api.recording.recorder import Recorder
from labstack.api.rollout.controller import Controller
from labstack.api.rollout.gauges import Gauges, compute
from labstack.api.serving.control import Control
from labstack.api.serving.follower import Follower
from labstack.api.serving.lineup import Lineup, Role
from labstack.api.serving.refusal import refusal
from labstack.registry.client import MlflowRest
from labstack.settings import Settings
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
        """Start the worker's threads, and wait a moment for the first look at the registry before requests come in."""
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
        """The thread that judges canaries over all workers and replicas; it acts in one of them at a time."""
        return Controller(self.settings, self.control, self.client, self.follower, lambda: self.engine)

    def prepare(self) -> None:
        """Make the database's file if there is none yet; called in the arbiter, before the first fork.

        Workers never make it: a missing file means to them that the database was lost.
        """
        with suppress(DatabaseError):  # each worker reports it
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
        """Return the role that serves a version. Raises Problem, 404, when none does."""
        for role in lineup.roles:
            if role.served.version == version:
                return role
        model = lineup.production.served.model
        served = " and ".join(f"{role.served.version} ({role.name})" for role in lineup.roles)
        raise Problem(404, "not-served", f"Version {version} of {model!r} has no role that is served: {served} is.")

    def lineup(self, model: str | None = None) -> Lineup:
        """Return the lineup of a model, by default the default model.

        Raises Problem, 404 or 503, with what to do about it.
        """
        if model is None:
            model = self.settings.default_model_name
        lineup = self.follower.lineups.get(model)
        if lineup is None:
            raise refusal(self.settings, self.follower, model)
        return lineup
