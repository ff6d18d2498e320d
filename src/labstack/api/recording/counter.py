"""The counts of what this worker's versions did in each period, until they are written to our database.

A drift window consists of periods of equal length; the counts of one version, role and trial in one period make a row
of `labstack.store.windows`. The recorder's and the shadows' threads count, and the prediction log's thread writes.
"""

import secrets
import threading
import time
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from labstack.api.serving.lineup import Role
from labstack.model.contract import Matrix
from labstack.monitoring.counts import LATENCY_EDGES, Counts
from labstack.store.windows import Window

PERIODS = 24  # in a drift window


class WindowKey(NamedTuple):
    """A period of a version in a role, and the step of a canary's trial that it belongs to.

    `source` is where the version's files are, so that a version that is loaded again is the same one.
    """

    model: str
    version: int
    source: str
    role: str
    trial: str
    started: float  # seconds since 1970


class WindowCounter:
    """The counts of the current period, and of earlier ones that are not written yet. Its methods are thread-safe."""

    def __init__(self, window_seconds: float) -> None:
        self._period_seconds = window_seconds / PERIODS
        self._lock = threading.Lock()
        self._counts: dict[WindowKey, Counts] = {}
        self._changed: set[WindowKey] = set()

    def add_answers(
        self,
        role: Role,
        trial: str,
        matrices: Sequence[Matrix],
        outputs: list[str] | list[float],
        latencies_ms: Sequence[float],
    ) -> None:
        """Count requests that a version answered: a matrix and a latency of each, and the outputs of all."""
        layout = role.served.layout
        features, sums, squares = layout.count(matrices[0] if len(matrices) == 1 else np.concatenate(matrices))
        output_bins = layout.count_outputs(outputs)
        latency_bins = np.searchsorted(LATENCY_EDGES, np.array(latencies_ms) / 1000)
        latency = np.bincount(latency_bins, minlength=len(LATENCY_EDGES) + 1)
        with self._lock:
            counts = self._current(role, trial)
            counts.features += features
            counts.sums += sums
            counts.squares += squares
            counts.outputs += output_bins
            counts.latency += latency
            counts.requests += len(matrices)
            counts.rows += len(outputs)

    def add_failure(self, role: Role, trial: str) -> None:
        """Count a request that a version failed to predict."""
        with self._lock:
            self._current(role, trial).failures += 1

    def add_comparison(
        self,
        canary: Role,
        trial: str,
        own: list[str] | list[float],
        production: list[str] | list[float],
        agreed: int,
    ) -> None:
        """Count a request whose rows both canary and production predicted: the outputs of each, and equal ones."""
        layout = canary.served.layout
        own_bins, production_bins = layout.count_outputs(own), layout.count_outputs(production)
        with self._lock:
            counts = self._current(canary, trial)
            counts.own += own_bins
            counts.production += production_bins
            counts.shadowed += 1
            counts.agreed += agreed
            counts.differed += len(own) - agreed

    def add_shadow_failure(self, canary: Role, trial: str) -> None:
        """Count a request that a canary failed to predict in shadow."""
        with self._lock:
            self._current(canary, trial).shadow_failures += 1

    def take(self) -> dict[WindowKey, Window]:
        """Return the windows that changed since the last call, and forget those of ended periods."""
        with self._lock:
            changed = {
                key: Window(writer=self._writer, **key._asdict(), counts=self._counts[key].dumps())
                for key in self._changed
            }
            self._changed.clear()
            started = self._period_start()
            for key in [key for key in self._counts if key.started < started and key not in changed]:
                del self._counts[key]
        return changed

    def put_back(self, keys: Sequence[WindowKey]) -> None:
        """Have `take` return windows again that could not be written."""
        with self._lock:
            self._changed.update(keys)

    @cached_property
    def _writer(self) -> str:
        """The name of this worker in the database: unique, as no two workers may write one row; made after the fork."""
        return secrets.token_hex(8)

    def _current(self, role: Role, trial: str) -> Counts:
        """Return the counts of a role in the current period, to be changed under the lock."""
        served = role.served
        key = WindowKey(served.model, served.version, served.record.source, role.name, trial, self._period_start())
        self._changed.add(key)
        if key not in self._counts:
            self._counts[key] = served.layout.empty()
        return self._counts[key]

    def _period_start(self) -> float:
        return time.time() // self._period_seconds * self._period_seconds
