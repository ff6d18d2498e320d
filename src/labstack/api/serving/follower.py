"""The thread in each worker that keeps its lineups equal to the registry's roles.

Nothing that it asks or loads may hold it for ever: each look at the registry has a deadline, and each version is
fetched and tried within another, before it is loaded here.
"""

import os
import random
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import structlog

from labstack.api import metrics
from labstack.api.serving.cache import Cache
from labstack.api.serving.control import REGISTRY, STARTING, Control, ControlError, WorkerState
from labstack.api.serving.lineup import Canary, Lineup, Role, Served
from labstack.deadline import within
from labstack.model import predictor
from labstack.model.contract import Contract, Plan
from labstack.model.predictor import Limits
from labstack.registry.client import MlflowRest, NotThereError, RegistryError, RegistryUnreachableError, Version
from labstack.registry.roles import CANARY, PRODUCTION, SCHEMA_CHANGE_TAG, Roles, Rollout, read_all_roles
from labstack.settings import Settings

log = structlog.get_logger(__name__)

LONGEST_DELAY_SECONDS = 300.0
RETRY_SECONDS = 1.0  # after a look whose result could not be reported
LOOK_SECONDS = 10.0  # of one look at the registry, but for the versions that are loaded meanwhile
ROLE_SECONDS = 5.0  # more for each role, whose version is asked for: as much as one call may take
GENERATION_POLL_SECONDS = 0.05  # how soon a reload wakes the follower: one read of a small file each time


class IncompatibleError(Exception):
    """A version does not take every body that another one does, or answers otherwise: the text says what differs."""

    def __init__(self, number: int, broken: Sequence[str]) -> None:
        super().__init__(f"It does not keep to the contract of version {number}, which is served: {'; '.join(broken)}.")


def require_compatible(production: Served, contract: Contract) -> None:
    """Raise IncompatibleError when callers of production could not go on with a version of this contract."""
    if broken := contract.breaks_with(production.contract):
        raise IncompatibleError(production.version, broken)


@dataclass(frozen=True)
class Following:
    """How the last look at the registry went; replaced whole, like the lineups."""

    registry_error: str | None = "The registry has not been asked yet."
    last_contact: datetime | None = None
    load_errors: Mapping[str, str] = field(default_factory=dict)  # by model
    without_production: frozenset[str] = frozenset()  # registered models that have no production version

    @property
    def errors(self) -> dict[str, str]:
        """Everything that keeps the lineups from being what the registry says, by model or REGISTRY."""
        return ({REGISTRY: self.registry_error} if self.registry_error else {}) | dict(self.load_errors)


class AttemptFailedError(Exception):
    """A version could not be loaded; `deleted` when the registry has it no more."""

    def __init__(self, told: str, deleted: bool) -> None:
        super().__init__(told)
        self.deleted = deleted


@dataclass
class Patience:
    """When a version that could not be loaded is tried again: after twice as long each time."""

    error: str = ""
    deleted: bool = False
    _delay: float = 0.0
    _next: float = 0.0

    def due(self) -> bool:
        return time.monotonic() >= self._next

    def lose(self, error: str, interval: float, deleted: bool = False) -> None:
        """Note another failure; `interval` is the follower's, in seconds."""
        self.error, self.deleted = error, deleted
        self._delay = min(max(2 * self._delay, interval), LONGEST_DELAY_SECONDS)
        self._next = time.monotonic() + self._delay


class Follower:
    """Writes `lineups` and `following`, by reference; request threads read them without a lock."""

    def __init__(self, settings: Settings, control: Control, client: MlflowRest) -> None:
        self._settings = settings
        self._control = control
        self._client = client
        self._cache = Cache(settings, client)
        self._limits = Limits.of(settings)
        self._patience: dict[tuple[str, int], Patience] = {}
        self._generation = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._started = time.monotonic()
        self._told_unreachable = False
        self._counted: set[tuple[str, str, str]] = set()
        self._asking_until = 0.0
        self._remembered: Mapping[str, Version] = {}  # what was served last, until the registry was asked once
        self.lineups: Mapping[str, Lineup] = {}
        self.following = Following()
        self.loading: tuple[str, float] | None = None  # what is being loaded, and since when, in time.monotonic
        self.first_look = threading.Event()  # set when the registry has been asked once, whatever it said

    def start(self) -> None:
        """Begin to follow. The worker is in the control folder before it reads a role, so that no reload misses it."""
        self._started = time.monotonic()
        self._cache.clean()
        with suppress(ControlError):  # of which the thread will tell
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
        never = self.following.last_contact is None
        return waited if never and waited < self._settings.startup_timeout_seconds else None

    def sync(self) -> int:
        """Look at the registry once and make the lineups equal to its roles; the generation that they are true for.

        What went wrong stands in `following`; raises ControlError or OSError only when the control folder cannot be
        used.
        """
        generation = self._control.desired()  # before the roles: a reload that comes later is another look
        error = None
        recalled = [] if self.first_look.is_set() else self._cache.recall()
        self._remembered = {record.model: record for record, _ in recalled}
        self._asking_until = time.monotonic() + LOOK_SECONDS
        try:
            with self._asking():
                roles = read_all_roles(self._client)
            contact = datetime.now(UTC)
            self._asking_until += ROLE_SECONDS * sum(bool(r.production) + bool(r.canary) for r in roles.values())
            lineups, load_errors, gone = self._follow(roles, asked=generation != self._generation)
            self.lineups = lineups
            self._generation = generation
            self._cache.remember((lineup.production.served for lineup in lineups.values()), gone)
            self.following = Following(
                None, contact, load_errors, frozenset(name for name, r in roles.items() if not r.production)
            )
        except RegistryError as refusal:
            error = str(refusal)
        except Exception as fault:  # an answer that is no answer of MLflow's must not end the following
            error = f"The registry's answer cannot be used: {type(fault).__name__}: {fault}"
        if error is not None:
            if not self.first_look.is_set():
                self._recall()
            self.following = replace(self.following, registry_error=error)
        self._tell(error)
        self._report(generation)
        self.first_look.set()
        return generation

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._wait(self.sync())
            except (ControlError, OSError) as fault:  # the control folder's disk is full, or it is not ours any more
                told = f"A worker cannot report to the others: {fault}"
                log.error("cannot report", error=str(fault))
                self.following = replace(self.following, registry_error=told)
                self._stop.wait(RETRY_SECONDS)  # a reload may wait for this worker

    def _wait(self, generation: int) -> None:
        """Until the next look is due: after the interval, or at once when a generation beyond this one is desired."""
        interval = self._settings.follow_interval_seconds * random.uniform(0.8, 1.2)  # noqa: S311
        if self.following.last_contact is None:
            interval = min(interval, 0.5)  # the lab is coming up
        due = time.monotonic() + interval
        while time.monotonic() < due and self._control.desired() == generation:
            if self._stop.wait(GENERATION_POLL_SECONDS):
                return

    def _asking(self) -> AbstractContextManager[None]:
        """The context of what a look asks of the registry, all together in LOOK_SECONDS."""
        return within(self._asking_until - time.monotonic())

    def _follow(
        self, registered: Mapping[str, Roles], asked: bool
    ) -> tuple[dict[str, Lineup], dict[str, str], frozenset[str]]:
        """The lineups for these roles, what went wrong by model, and the models that have no production any more.

        A production version that cannot be loaded, or breaks what callers send, leaves the one before it in place; one
        that was deleted does not. A canary that cannot be loaded is left out. What failed is tried again at growing
        intervals, and at once when `asked` for.
        """
        lineups: dict[str, Lineup] = {}
        errors: dict[str, str] = {}
        gone = {model for model, roles in registered.items() if roles.production is None}
        gone -= self._expected().keys()
        for model, roles in registered.items():
            if roles.production is None:
                continue
            now = self.lineups.get(model)
            known = [role.served for role in now.roles] if now else []
            wrong: list[str] = []
            try:
                served = self._attempt(model, roles.production, roles, known, asked)
                production = now.production if now and now.production.served is served else Role.of(PRODUCTION, served)
            except AttemptFailedError as error:
                wrong.append(str(error))
                kept = None if error.deleted else now.production if now else self._recalled(model)
                if kept is None:
                    errors[model] = str(error)
                    continue
                production = kept
            canary = None
            if roles.canary is not None and roles.canary not in (roles.production, production.served.version):
                try:
                    served = self._attempt(model, roles.canary, roles, known, asked, beside=production.served)
                    rollout = roles.rollout or Rollout(self._settings.canary_probability, "split")
                    canary = now.canary if now else None
                    if not (canary and canary.served is served and canary.rollout == rollout):
                        canary = Canary.of(CANARY, served, rollout=rollout)
                except AttemptFailedError as error:
                    wrong.append(str(error))
                    current = now.canary if now and now.production is production else None
                    if current and current.served.version == roles.canary and not error.deleted:
                        canary = current  # it is loaded: only the registry could not be asked about it
            new = Lineup(production, canary)
            lineups[model] = now if now and now == new else new
            if wrong:
                errors[model] = " ".join(wrong)
        for model, record in self._expected().items():
            if model in registered and registered[model].production is not None:
                continue
            if self._knows(record, bool(registered)):
                gone.add(model)
                continue
            errors[model] = (
                f"The registry has no production version of {model!r}, and does not hold the run of version "
                f"{record.number}, as if it had been emptied; that version is served as before."
            )
            if model in self.lineups:
                lineups[model] = self.lineups[model]
            elif role := self._recalled(model):
                lineups[model] = Lineup(role)
        return lineups, errors, frozenset(gone)

    def _expected(self) -> dict[str, Version]:
        """The production versions that are served, or were served last while the registry was not reached yet."""
        served = {model: lineup.production.served.record for model, lineup in self.lineups.items()}
        return {**self._remembered, **served}

    def _knows(self, record: Version, holds_others: bool) -> bool:
        """Whether the registry is the one that a version is from, and so its word on the version's model counts.

        A version's run outlives the deletion of its model, and not that of the registry. Raises RegistryError.
        """
        if record.run_id is None:
            return holds_others
        try:
            with self._asking():
                self._client.run(record.run_id)
        except NotThereError:
            return False
        return True

    def _last(self, model: str) -> tuple[Version, Contract] | None:
        """The production version that callers of a model know, if there is one."""
        if (now := self.lineups.get(model)) is not None:
            return now.production.served.record, now.production.served.contract
        if (record := self._remembered.get(model)) is not None:
            with suppress(OSError, ValueError):
                return record, Contract.read(self._cache.folder(record))
        return None

    def _require_followable(self, served: Served, roles: Roles) -> None:
        """Raise IncompatibleError when a version is to follow another one whose callers it breaks.

        Its gates may have allowed that; and what a command of the lab made production was checked, or forced.
        """
        record, last = served.record, self._last(served.model)
        if last is None or record == last[0] or record.number == roles.moved or SCHEMA_CHANGE_TAG in record.tags:
            return
        (before, contract), number = last, last[0].number
        broken = served.contract.breaks_with(contract)
        if not broken:
            return
        try:
            with self._asking():
                if self._client.version(record.model, number) != before:
                    return  # made anew under its old name
        except NotThereError:
            return
        raise IncompatibleError(number, broken)

    def _attempt(
        self, model: str, number: int, roles: Roles, known: Iterable[Served], asked: bool, beside: Served | None = None
    ) -> Served:
        """A version, loaded unless it is `known`, that may be production, or a canary `beside` it.

        Raises AttemptFailedError, unless the registry is away.
        """
        patience = self._patience.setdefault((model, number), Patience())
        if not (asked or patience.due()):
            raise AttemptFailedError(patience.error, patience.deleted)
        try:
            with self._asking():
                record = self._client.version(model, number)
        except RegistryUnreachableError:
            raise
        except RegistryError as error:
            raise self._failed(model, number, error, deleted=isinstance(error, NotThereError)) from error
        try:
            served = next((one for one in known if one.record == record), None) or self.open(record)
            if beside is None:
                self._require_followable(served, roles)
            else:
                require_compatible(beside, served.contract)
        except Exception as error:  # whatever became of one version, the others are followed
            raise self._failed(model, number, error) from error
        del self._patience[model, number]
        return served

    def _failed(self, model: str, number: int, error: Exception, deleted: bool = False) -> AttemptFailedError:
        told = f"Version {number} of {model!r} could not be loaded: {error}"
        patience = self._patience[model, number]
        if told != patience.error:
            log.error("load failed", model=model, version=number, error=str(error))
        patience.lose(told, self._settings.follow_interval_seconds, deleted)
        return AttemptFailedError(told, deleted)

    def tried(self, record: Version) -> Contract:
        """The contract of a version that this API could serve: fetched and tried, and not loaded here.

        Raises RegistryError, TrialError, OSError, or ValueError when its contract is none.
        """
        return Contract.read(self._cache.prepare(record))

    def open(self, record: Version, measured: dict[str, float] | None = None) -> Served:
        """A version, fetched and tried unless it was before, and loaded; raises whatever fails.

        Without what was `measured` the registry is asked for it, and so can be for the files, if they are damaged.
        """
        recalled = measured is not None
        began = time.monotonic()
        self.loading = f"version {record.number} of {record.model!r}", began
        try:
            if measured is None:
                measured = dict(self._client.run_of(record).metrics)
            folder = self._cache.prepare(record, recalled)
            try:
                contract = Contract.read(folder)
                loaded = predictor.load(folder, contract, self._limits)
            except Exception:
                if not recalled:
                    self._cache.discard(record)
                raise
        finally:
            self.loading = None
            self._asking_until += time.monotonic() - began
        log.info("loaded", model=record.model, version=record.number, runtime=loaded.runtime)
        return Served(record, measured, contract, Plan(contract), loaded)

    def _recall(self) -> None:
        """Serve the versions that were served last, as the registry cannot be asked."""
        models = [record.model for record, _ in self._cache.recall()]
        self.lineups = {model: Lineup(role) for model in models if (role := self._recalled(model))}

    def _recalled(self, model: str) -> Role | None:
        """The version of a model that was served last, if it is still in the cache."""
        for record, measured in self._cache.recall():
            patience = self._patience.setdefault((f"{model}, recalled", record.number), Patience())
            if record.model == model and self._cache.folder(record).exists() and patience.due():
                try:
                    return Role.of(PRODUCTION, self.open(record, measured))
                except Exception as error:  # the others may be sound
                    log.error("load failed", model=model, version=record.number, error=str(error))
                    patience.lose(str(error), self._settings.follow_interval_seconds)
        return None

    def _report(self, generation: int) -> None:
        serving = {(model, str(number), role) for model, roles in self.roles.items() for role, number in roles.items()}
        for labels in serving | self._counted:
            metrics.serving.labels(*labels).set(labels in serving)
        self._counted = serving
        contact = self.following.last_contact
        self._control.report(
            WorkerState(
                os.getpid(),
                generation,
                self.roles,
                self.following.errors,
                contact.timestamp() if contact else None,
            )
        )

    def _tell(self, error: str | None) -> None:
        """Log once that the registry was lost or did not come up in time, and once that it is back."""
        unreachable = error is not None and self.waiting_seconds is None
        if unreachable and not self._told_unreachable:
            log.error("registry unreachable", error=error, timeout_seconds=self._settings.startup_timeout_seconds)
        elif error is None and self._told_unreachable:
            log.info("registry reachable again")
        if unreachable or error is None:
            self._told_unreachable = unreachable
