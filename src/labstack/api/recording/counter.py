"""What this worker counts of each version it serves, period by period, until it is written to our database."""

import secrets
import threading
import time
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from labstack.api.serving.lineup import Served
from labstack.model.contract import Matrix
from labstack.monitoring.counts import LATENCY_EDGES, Counts
from labstack.store.windows import Window

PERIODS = 24  # of which a drift window consists


class Key(NamedTuple):
    """A period of a version in a role, and the step of a canary's trial that it belongs to.

    A version that is loaded again is the same one: `source` says where its files are.
    """

    model: str
    version: int
    source: str
    role: str
    trial: str
    started: float


class WindowCounter:
    """Written by the recorder's and the shadow's thread, read by the one that writes them down."""

    def __init__(self, window_seconds: float) -> None:
        self._seconds = window_seconds / PERIODS
        self._lock = threading.Lock()
        self._counts: dict[Key, Counts] = {}
        self._changed: set[Key] = set()

    def answered(
        self,
        served: Served,
        role: str,
        trial: str,
        matrices: Sequence[Matrix],
        outputs: list[str] | list[float],
        latencies_ms: Sequence[float],
    ) -> None:
        """Count requests that a version answered: a matrix and a latency of each, and the outputs of all."""
        layout = served.layout
        features, sums, squares = layout.place(matrices[0] if len(matrices) == 1 else np.concatenate(matrices))
        said = layout.place_outputs(outputs)
        slow = np.searchsorted(LATENCY_EDGES, np.array(latencies_ms) / 1000)
        latency = np.bincount(slow, minlength=len(LATENCY_EDGES) + 1)
        with self._lock:
            counts = self._of(served, role, trial)
            counts.features += features
            counts.sums += sums
            counts.squares += squares
            counts.outputs += said
            counts.latency += latency
            counts.requests += len(matrices)
            counts.rows += len(outputs)

    def failed(self, served: Served, role: str, trial: str) -> None:
        """Count a request that a version failed to predict."""
        with self._lock:
            self._of(served, role, trial).failures += 1

    def compared(
        self,
        served: Served,
        role: str,
        trial: str,
        said: list[str] | list[float],
        production: list[str] | list[float],
        agreed: int,
    ) -> None:
        """Count rows that a canary and production both predicted."""
        own, theirs = served.layout.place_outputs(said), served.layout.place_outputs(production)
        with self._lock:
            counts = self._of(served, role, trial)
            counts.own += own
            counts.production += theirs
            counts.beside += 1
            counts.agreed += agreed
            counts.differed += len(said) - agreed

    def failed_beside(self, served: Served, role: str, trial: str) -> None:
        """Count a request that a canary failed to predict beside production."""
        with self._lock:
            self._of(served, role, trial).failed_beside += 1

    def take(self) -> dict[Key, Window]:
        """What changed since it was taken last, as it is to be written."""
        with self._lock:
            found = {
                key: Window(writer=self._writer, **key._asdict(), counts=self._counts[key].dumps())
                for key in self._changed
            }
            self._changed.clear()
            current = self._period()
            for key in [key for key in self._counts if key.started < current and key not in found]:
                del self._counts[key]  # ended and written
        return found

    def put_back(self, taken: Sequence[Key]) -> None:
        """Have what was taken, and could not be written, taken again."""
        with self._lock:
            self._changed.update(taken)

    @cached_property
    def _writer(self) -> str:
        """Who writes: a name that is made after the fork, as no two workers, even one after the other, may share it."""
        return secrets.token_hex(8)

    def _of(self, served: Served, role: str, trial: str) -> Counts:
        key = Key(served.model, served.version, served.record.source, role, trial, self._period())
        self._changed.add(key)
        if key not in self._counts:
            self._counts[key] = served.layout.empty()
        return self._counts[key]

    def _period(self) -> float:
        return time.time() // self._seconds * self._seconds
