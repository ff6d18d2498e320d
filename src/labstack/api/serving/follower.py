"""The thread in each worker that keeps its lineups equal to the registry's roles.

It writes `lineups` and `following`, by reference; request threads read them without a lock. Nothing holds it for ever:
each look at the registry has a deadline, and each version is fetched and tried within another before it is loaded.
"""

import os
import random
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import structlog

from labstack.api import metrics
from labstack.api.serving.control import REGISTRY, STARTING, Control, ControlError, WorkerState
from labstack.api.serving.lineup import Lineup
from labstack.api.serving.loader import Loader
from labstack.api.serving.look import Look
from labstack.registry.client import MlflowRest, RegistryError
from labstack.registry.roles import read_all_roles
from labstack.settings import Settings

log = structlog.get_logger(__name__)

RETRY_SECONDS = 1.0  # after a look whose result could not be reported
LOOK_SECONDS = 10.0  # of one look at the registry, without the loads meanwhile
ROLE_SECONDS = 5.0  # more for each role, whose version is asked for: as much as one call may take
STARTUP_POLL_SECONDS = 0.5  # between two looks until the registry has answered once
GENERATION_POLL_SECONDS = 0.05  # between two reads of the desired generation, a small file


@dataclass(frozen=True)
class Following:
    """The result of the last look at the registry; replaced whole, like the lineups."""

    registry_error: str | None = "The registry has not been asked yet."
    last_contact: datetime | None = None
    load_errors: Mapping[str, str] = field(default_factory=dict)  # by model
    without_production: frozenset[str] = frozenset()  # registered models that have no production version

    @property
    def errors(self) -> dict[str, str]:
        """Everything that keeps the lineups from being what the registry says, by model or REGISTRY."""
        return ({REGISTRY: self.registry_error} if self.registry_error else {}) | dict(self.load_errors)


class Follower:
    def __init__(self, settings: Settings, control: Control, client: MlflowRest) -> None:
        self._settings = settings
        self._control = control
        self._client = client
        self._generation = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._started = time.monotonic()
        self._logged_unreachable = False
        self._counted: set[tuple[str, str, str]] = set()
        self.loader = Loader(settings, client)
        self.lineups: Mapping[str, Lineup] = {}
        self.following = Following()
        self.first_look = threading.Event()  # set when the registry has been asked once, whether it answered or not

    def start(self) -> None:
        """Start the thread. The worker is in the control folder before it reads a role, so that no reload misses it."""
        self._started = time.monotonic()
        self.loader.cache.clean()
        with suppress(ControlError):  # the thread reports it
            self._report(STARTING)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a version that is being loaded is left to the process's end."""
        self._stop.set()
        self._thread.join(timeout=1)

    @property
    def roles(self) -> dict[str, dict[str, int]]:
        """The versions that are served of each model, by role."""
        return {
            model: {role.name: role.served.version for role in lineup.roles} for model, lineup in self.lineups.items()
        }

    @property
    def waiting_seconds(self) -> float | None:
        """Seconds since the start while the registry was never reached and may still be coming up, else None."""
        waited = time.monotonic() - self._started
        is_new = self.following.last_contact is None
        return waited if is_new and waited < self._settings.startup_timeout_seconds else None

    def sync(self) -> int:
        """Look at the registry once, make the lineups equal to its roles, and return the generation they are true for.

        Errors are put into `following`. Raises ControlError or OSError only when the control folder cannot be used.
        """
        generation = self._control.desired()  # before the roles: a reload that comes later needs another look
        error = None
        try:
            self._look(generation)
        except RegistryError as refusal:
            error = str(refusal)
        except Exception as fault:  # an answer that is not from MLflow must not end the thread
            error = f"The registry's answer cannot be used: {type(fault).__name__}: {fault}"
        if error is not None:
            if not self.first_look.is_set():
                self._serve_last()
            self.following = replace(self.following, registry_error=error)
        self._log_reachability(error)
        self._report(generation)
        self.first_look.set()
        return generation

    def _look(self, generation: int) -> None:
        """Read all roles, and swap in the lineups for them. Raises RegistryError, or any error of a wrong answer."""
        recalled = [] if self.first_look.is_set() else self.loader.cache.recall()
        last_served = {record.model: record for record, _ in recalled}
        self.loader.begin_look(LOOK_SECONDS)
        with self.loader.asking():
            registered = read_all_roles(self._client)
        contact = datetime.now(UTC)
        count = sum(bool(roles.production) + bool(roles.canary) for roles in registered.values())
        self.loader.extend_look(ROLE_SECONDS * count)
        retry = generation != self._generation
        look = Look(self.loader, self.lineups, last_served, self._settings.canary_probability, retry)
        decision = look.decide(registered)
        self.lineups = decision.lineups
        self._generation = generation
        served = (lineup.production.served for lineup in decision.lineups.values())
        self.loader.cache.remember(served, decision.gone)
        without_production = frozenset(model for model, roles in registered.items() if not roles.production)
        self.following = Following(None, contact, decision.errors, without_production)

    def _serve_last(self) -> None:
        """Serve the versions that were served last, as the registry does not answer."""
        models = [record.model for record, _ in self.loader.cache.recall()]
        self.lineups = {model: Lineup(role) for model in models if (role := self.loader.recall(model))}

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._wait(self.sync())
            except (ControlError, OSError) as fault:  # the control folder's disk is full, or its owner changed
                text = f"A worker cannot report to the others: {fault}"
                log.error("cannot report", error=str(fault))
                self.following = replace(self.following, registry_error=text)
                self._stop.wait(RETRY_SECONDS)  # a reload may wait for this worker

    def _wait(self, generation: int) -> None:
        """Wait until the next look is due: after the interval, or as soon as another generation is desired."""
        interval = self._settings.follow_interval_seconds * random.uniform(0.8, 1.2)  # noqa: S311
        if self.following.last_contact is None:
            interval = min(interval, STARTUP_POLL_SECONDS)
        due = time.monotonic() + interval
        while time.monotonic() < due and self._control.desired() == generation:
            if self._stop.wait(GENERATION_POLL_SECONDS):
                return

    def _report(self, generation: int) -> None:
        """Write this worker's state to the control folder and the metrics. Raises ControlError."""
        serving = {(model, str(number), role) for model, roles in self.roles.items() for role, number in roles.items()}
        for labels in serving | self._counted:
            metrics.serving.labels(*labels).set(labels in serving)
        self._counted = serving
        contact = self.following.last_contact
        timestamp = contact.timestamp() if contact else None
        self._control.report(WorkerState(os.getpid(), generation, self.roles, self.following.errors, timestamp))

    def _log_reachability(self, error: str | None) -> None:
        """Log once that the registry was lost or did not come up in time, and once that it is back."""
        unreachable = error is not None and self.waiting_seconds is None
        if unreachable and not self._logged_unreachable:
            log.error("registry unreachable", error=error, timeout_seconds=self._settings.startup_timeout_seconds)
        elif error is None and self._logged_unreachable:
            log.info("registry reachable again")
        if unreachable or error is None:
            self._logged_unreachable = unreachable
