"""The thread in each worker that keeps its lineups equal to the registry's roles."""

import hashlib
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import structlog

from labstack import contract, registry, serialization
from labstack.api.serving import predictor
from labstack.api.serving.control import STARTING, Control, WorkerState
from labstack.api.serving.lineup import Lineup, Role, Served
from labstack.contract import Contract, Plan
from labstack.mlflow_rest import MlflowRest, RegistryError, RegistryUnreachableError, Version
from labstack.settings import Settings

log = structlog.get_logger(__name__)

GENERATION_POLL_SECONDS = 0.05  # how soon a reload wakes the follower: one read of a small file each time


@dataclass(frozen=True)
class Following:
    """How the last look at the registry went; replaced whole, like the lineups."""

    registry_error: str | None = "The registry has not been asked yet."
    last_contact: datetime | None = None
    load_errors: Mapping[str, str] = field(default_factory=dict)  # by model
    without_production: frozenset[str] = frozenset()  # registered models that have no production version

    @property
    def errors(self) -> tuple[str, ...]:
        """Everything that keeps the lineups from being what the registry says."""
        return (*([self.registry_error] if self.registry_error else []), *self.load_errors.values())


class Follower:
    """Writes `lineups` and `following`, by reference; request threads read them without a lock."""

    def __init__(self, settings: Settings, control: Control) -> None:
        self._settings = settings
        self._control = control
        self._client = MlflowRest(settings.mlflow_tracking_uri, timeout_seconds=5, retries=1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._started = time.monotonic()
        self._told_unreachable = False
        self.lineups: Mapping[str, Lineup] = {}
        self.following = Following()
        self.first_look = threading.Event()  # set when the registry has been asked once, whatever it said

    def start(self) -> None:
        """Begin to follow. The worker is in the control folder before it reads a role, so that no reload misses it."""
        self._started = time.monotonic()
        self._report(STARTING)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a version that is being loaded is left to the process's end."""
        self._stop.set()
        self._thread.join(timeout=1)

    @property
    def versions(self) -> dict[str, int]:
        """The production version that is served of each model."""
        return {model: lineup.production.served.version for model, lineup in self.lineups.items()}

    @property
    def waiting_seconds(self) -> float | None:
        """Seconds since the start while the registry was never reached and may still be coming up, else None."""
        waited = time.monotonic() - self._started
        never = self.following.last_contact is None
        return waited if never and waited < self._settings.startup_timeout_seconds else None

    def sync(self) -> int:
        """Look at the registry once and make the lineups equal to its roles; the generation that they are true for.

        What went wrong stands in `following`; raises OSError only when the control folder cannot be used.
        """
        generation = self._control.desired()  # before the roles: a reload that comes later is another look
        error = None
        try:
            found = registry.all_roles(self._client)
            lineups, load_errors = self._load({name: r.production for name, r in found.items() if r.production})
            self.lineups = lineups
            self.following = Following(
                None, datetime.now(UTC), load_errors, frozenset(name for name, r in found.items() if not r.production)
            )
        except RegistryError as refusal:
            error = str(refusal)
        except Exception as fault:  # an answer that is no answer of MLflow's must not end the following
            error = f"The registry's answer cannot be used: {type(fault).__name__}: {fault}"
        if error is not None:
            self.following = replace(self.following, registry_error=error)
        self._tell(error)
        self._report(generation)
        self.first_look.set()
        return generation

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._wait(self.sync())
            except OSError as fault:  # the disk of the control folder is full, or the folder is not ours any more
                told = f"A worker cannot report to the others: {fault}"
                log.error("cannot report", error=str(fault))
                self.following = replace(self.following, registry_error=told)
                self._stop.wait(self._settings.follow_interval_seconds)

    def _wait(self, generation: int) -> None:
        """Until the next look is due: after the interval, or at once when a generation beyond this one is desired."""
        interval = self._settings.follow_interval_seconds * random.uniform(0.8, 1.2)  # noqa: S311
        if self.following.last_contact is None:
            interval = min(interval, 0.5)  # the lab is coming up
        due = time.monotonic() + interval
        while time.monotonic() < due and self._control.desired() == generation:
            if self._stop.wait(GENERATION_POLL_SECONDS):
                return

    def _load(self, production: Mapping[str, int]) -> tuple[dict[str, Lineup], dict[str, str]]:
        """The lineups for these versions; a version that cannot be loaded leaves its model's lineup as it is."""
        lineups: dict[str, Lineup] = {}
        errors: dict[str, str] = {}
        for model, number in production.items():
            current = self.lineups.get(model)
            if current:
                lineups[model] = current
            try:
                record = self._client.version(model, number)
                if current and current.production.served.is_of(record):
                    continue
                served = self._load_version(record)
            except RegistryUnreachableError:
                raise
            except Exception as error:  # whatever became of one version, the others are followed
                errors[model] = f"Version {number} of {model!r} could not be loaded: {error}"
                if errors[model] != self.following.load_errors.get(model):
                    log.error("load failed", model=model, version=number, error=str(error))
                continue
            lineups[model] = Lineup(Role.of(registry.PRODUCTION, served))
            log.info("serving", model=model, version=number, runtime=served.predictor.runtime)
        return lineups, errors

    def _load_version(self, record: Version) -> Served:
        metrics = self._client.run(record.run_id).metrics if record.run_id else {}
        folder = self._fetch(record)
        try:
            read = Contract.read(folder)
            loaded = predictor.load(folder, read)
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)  # fetched anew next time, in case it is the cache that is damaged
            raise
        return Served(
            model=record.model,
            version=record.number,
            source=record.source,
            run_id=record.run_id,
            metrics=dict(metrics),
            contract=read,
            plan=Plan(read),
            predictor=loaded,
            since=datetime.now(UTC),
        )

    def _fetch(self, record: Version) -> Path:
        """The folder of a version's files in the cache, complete or not there at all; workers may race for it."""
        folder = self._settings.api_cache_dir / hashlib.sha256(record.source.encode()).hexdigest()[:32]
        if folder.exists():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=folder.parent))
        files = new / "files"  # unlike its parent, which is this user's alone, of the umask's mode
        files.mkdir()
        try:
            self._client.download(record.model, record.number, contract.FILE_NAME, files)
            estimator = contract.ONNX_FILE_NAME if Contract.read(files).onnx else serialization.FILE_NAME
            self._client.download(record.model, record.number, estimator, files)
            files.rename(folder)
        except OSError:
            if not folder.exists():  # else another worker was quicker
                raise
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return folder

    def _report(self, generation: int) -> None:
        self._control.report(WorkerState(os.getpid(), generation, self.versions, self.following.errors))

    def _tell(self, error: str | None) -> None:
        """Log once that the registry was lost or did not come up in time, and once that it is back."""
        unreachable = error is not None and self.waiting_seconds is None
        if unreachable and not self._told_unreachable:
            log.error("registry unreachable", error=error, timeout_seconds=self._settings.startup_timeout_seconds)
        elif error is None and self._told_unreachable:
            log.info("registry reachable again")
        if unreachable or error is None:
            self._told_unreachable = unreachable
