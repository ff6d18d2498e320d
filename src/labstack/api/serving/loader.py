"""Load versions: each is fetched and tried within limits before it is loaded, and retried after growing delays.

The follower's thread calls it; requests read `loading`, and fetch a version that an operator wants as the canary.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import structlog

from labstack.api.serving.cache import Cache
from labstack.api.serving.lineup import Role, Served
from labstack.deadline import within
from labstack.model import predictor
from labstack.model.contract import Contract, Plan
from labstack.model.predictor import Limits
from labstack.registry.client import MlflowRest, NotThereError, RegistryError, RegistryUnreachableError, Version
from labstack.registry.roles import PRODUCTION
from labstack.settings import Settings

log = structlog.get_logger(__name__)

MAX_BACKOFF_SECONDS = 300.0


class LoadFailedError(Exception):
    """A version cannot be served in a role; `deleted` when the registry no longer has it."""

    def __init__(self, text: str, deleted: bool) -> None:
        super().__init__(text)
        self.deleted = deleted


@dataclass
class Backoff:
    """The delay before a version that failed is tried again; it doubles with each failure."""

    error: str = ""
    deleted: bool = False
    _delay: float = 0.0
    _next: float = 0.0

    def is_over(self) -> bool:
        return time.monotonic() >= self._next

    def fail(self, error: str, interval: float, deleted: bool = False) -> None:
        """Note a failure; `interval`, in seconds, is the shortest delay."""
        self.error, self.deleted = error, deleted
        self._delay = min(max(2 * self._delay, interval), MAX_BACKOFF_SECONDS)
        self._next = time.monotonic() + self._delay


class Loader:
    def __init__(self, settings: Settings, client: MlflowRest) -> None:
        self.client = client
        self.cache = Cache(settings, client)
        self.loading: tuple[str, float] | None = None  # the version being loaded, and since when, by time.monotonic
        self._limits = Limits.of(settings)
        self._interval = settings.follow_interval_seconds
        self._backoffs: dict[tuple[str, int], Backoff] = {}
        self._recall_backoffs: dict[tuple[str, int], Backoff] = {}
        self._deadline = 0.0  # of one look at the registry, by time.monotonic; each load moves it by its duration

    def begin_look(self, seconds: float) -> None:
        """Give all calls of a look at the registry so many seconds together."""
        self._deadline = time.monotonic() + seconds

    def extend_look(self, seconds: float) -> None:
        """Give a look more time."""
        self._deadline += seconds

    def asking(self) -> AbstractContextManager[None]:
        """Bound the registry calls in this context by the look's deadline."""
        return within(self._deadline - time.monotonic())

    def attempt(
        self, model: str, number: int, loaded: Iterable[Served], require: Callable[[Served], None], retry: bool
    ) -> Served:
        """Return a version that may take its role, which `require` raises to deny; load it unless it is `loaded`.

        A version that failed is tried again when its delay is over, or at once to `retry`. Raises LoadFailedError, or
        RegistryUnreachableError.
        """
        backoff = self._backoffs.setdefault((model, number), Backoff())
        if not (retry or backoff.is_over()):
            raise LoadFailedError(backoff.error, backoff.deleted)
        try:
            with self.asking():
                record = self.client.version(model, number)
        except RegistryUnreachableError:
            raise
        except RegistryError as error:
            raise self._failed(model, number, error, deleted=isinstance(error, NotThereError)) from error
        try:
            served = next((version for version in loaded if version.record == record), None) or self.load(record)
            require(served)
        except Exception as error:  # a version may fail in any way, and must not stop the others
            raise self._failed(model, number, error) from error
        del self._backoffs[model, number]
        return served

    def _failed(self, model: str, number: int, error: Exception, deleted: bool = False) -> LoadFailedError:
        """Note a failure, log it unless it is the same as before, and return the error to raise."""
        text = f"Version {number} of {model!r} could not be loaded: {error}"
        backoff = self._backoffs[model, number]
        if text != backoff.error:
            log.error("load failed", model=model, version=number, error=str(error))
        backoff.fail(text, self._interval, deleted)
        return LoadFailedError(text, deleted)

    def fetch(self, record: Version) -> Contract:
        """Fetch and try a version without loading it here; return its contract.

        Raises RegistryError, TrialError, OSError, or ValueError when its contract is not valid.
        """
        return Contract.read(self.cache.prepare(record))

    def load(self, record: Version, metrics: dict[str, float] | None = None) -> Served:
        """Return a version, loaded; it is fetched and tried first unless that was done before. Raises any error.

        `metrics` are those in the cache's record of a version that was served last. Without them the registry is asked
        for them, and damaged files are fetched again by the next call.
        """
        recalled = metrics is not None
        began = time.monotonic()
        self.loading = f"version {record.number} of {record.model!r}", began
        try:
            if metrics is None:
                metrics = dict(self.client.run_of(record).metrics)
            folder = self.cache.prepare(record, recalled)
            try:
                contract = Contract.read(folder)
                loaded = predictor.load(folder, contract, self._limits)
            except Exception:
                if not recalled:
                    self.cache.discard(record)
                raise
        finally:
            self.loading = None
            self.extend_look(time.monotonic() - began)
        log.info("loaded", model=record.model, version=record.number, runtime=loaded.runtime)
        return Served(record, metrics, contract, Plan(contract), loaded)

    def recall(self, model: str) -> Role | None:
        """Return the production version of a model that was served last; None when the cache cannot give it."""
        for record, metrics in self.cache.recall():
            backoff = self._recall_backoffs.setdefault((model, record.number), Backoff())
            if record.model == model and self.cache.folder(record).exists() and backoff.is_over():
                try:
                    return Role.of(PRODUCTION, self.load(record, metrics))
                except Exception as error:  # other models' versions may be intact
                    log.error("load failed", model=model, version=record.number, error=str(error))
                    backoff.fail(str(error), self._interval)
        return None
