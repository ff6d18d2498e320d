"""The metrics of this API, in Prometheus' form: `/metrics` adds up all workers, including those that ended.

Under gunicorn each worker writes files named after its slot. The worker that replaces an ended one continues its
counters, so that they never decrease, and the number of files stays the same. Every metric has labels, because one
without would be written where it is defined, in the arbiter.

Files are memory-mapped. On a full disk, a write to a mapped page without space kills the process (SIGBUS). So space is
allocated first; counts that get no space stay in memory until the disk has some.
"""

import mmap
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import structlog
from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

log = structlog.get_logger(__name__)

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
LATENCY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)  # seconds

FILE_BYTES = 1 << 16  # of a new file; it is doubled whenever it is full
ENTRY_BYTES = 28  # at most, of a value without its key: the key's length, up to 8 bytes of padding, and two doubles
RETRY_SECONDS = 1.0  # between two tries to allocate space for counts in memory

_slot = -1  # the arbiter
_faults: dict[str, str] = {}  # by file

BY_ROLE = ("model", "version", "role")

requests = Counter("labstack_requests", "Requests answered, by the endpoint's pattern.", ("endpoint", "status"))
problems = Counter("labstack_problems", "Answers that are errors, by the kind of problem.", ("kind",))
predictions = Counter("labstack_predictions", "Requests that a version answered with predictions.", BY_ROLE)
rows = Counter("labstack_predicted_rows", "Rows that a version predicted for callers.", BY_ROLE)
out_of_range = Counter(
    "labstack_out_of_range_values", "Values out of the range of training; they are predicted.", BY_ROLE
)
classes = Counter("labstack_predicted_classes", "Rows by the class that was predicted.", (*BY_ROLE, "class"))
latency = Histogram(
    "labstack_prediction_seconds",
    "Seconds from the arrival of a request to its answer.",
    BY_ROLE,
    buckets=LATENCY_BUCKETS,
)
failures = Counter("labstack_prediction_failures", "Requests with valid rows whose prediction failed.", BY_ROLE)
shadowed = Counter(
    "labstack_shadow_rows",
    "Rows that a canary and production both predicted, by outcome.",
    ("model", "version", "outcome"),
)
dropped = Counter("labstack_dropped", "What was dropped because a queue was full or a write was refused.", ("what",))
kept = Counter("labstack_kept", "What was written to our database.", ("what",))
database = Gauge(
    "labstack_database_reachable",
    "1 when every worker's last write to our database went well.",
    ("database",),
    multiprocess_mode="livemin",
)
reloads = Counter("labstack_reloads", "Reloads that operators asked for, by outcome.", ("outcome",))
serving = Gauge(
    "labstack_serving_workers", "Workers that serve a version in a role.", BY_ROLE, multiprocess_mode="livesum"
)
waiting = Gauge("labstack_waiting", "What waits to be recorded.", ("what",), multiprocess_mode="livesum")


class Allocated(MmapedDict):
    """Values in a file whose mapped pages all have space on the disk. Raises OSError where there is none."""

    def __init__(self, name: str) -> None:
        with open(name, "ab") as file:
            os.posix_fallocate(file.fileno(), 0, max(os.fstat(file.fileno()).st_size, FILE_BYTES))
        super().__init__(name)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        """Allocate space for a new key. The library calls it."""
        while self._used + len(key.encode()) + ENTRY_BYTES > self._capacity:
            os.posix_fallocate(self._f.fileno(), 0, 2 * self._capacity)
            self._m = mmap.mmap(self._f.fileno(), 2 * self._capacity)
            self._capacity *= 2
        super()._init_value(key)  # type: ignore[no-untyped-call]


class WorkerValues:
    """A worker's values in a file, or in memory while the file has no space. It replaces the library's class.

    The library reads each key before it writes it, and holds a lock meanwhile.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._file: Allocated | None = None
        self._waiting: dict[str, tuple[float, float]] = {}
        self._next_try = 0.0

    def read_value(self, key: str) -> tuple[float, float]:
        """Return a value and its time, 0 for a new one."""
        try:
            stored: tuple[float, float] = self._opened().read_value(key)  # type: ignore[no-untyped-call]
        except OSError as error:
            self._put_off(error)
            return self._waiting.setdefault(key, (0.0, 0.0))
        return self._waiting.get(key, stored)

    def write_value(self, key: str, value: float, timestamp: float) -> None:
        if self._file is None or key in self._waiting:
            self._waiting[key] = value, timestamp
        else:
            self._file.write_value(key, value, timestamp)  # type: ignore[no-untyped-call]
        if self._waiting and time.monotonic() >= self._next_try:
            self._write_waiting()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()  # type: ignore[no-untyped-call]

    def _opened(self) -> Allocated:
        if self._file is None:
            self._file = Allocated(self._name)
        return self._file

    def _write_waiting(self) -> None:
        try:
            for key, value in list(self._waiting.items()):
                self._opened().write_value(key, *value)  # type: ignore[no-untyped-call]
                del self._waiting[key]
        except OSError as error:
            self._put_off(error)
        else:
            _faults.pop(self._name, None)

    def _put_off(self, error: OSError) -> None:
        self._next_try = time.monotonic() + RETRY_SECONDS
        is_new = not _faults
        _faults[self._name] = (
            f"Counts for /metrics wait in a worker's memory, as {self._name} cannot be written: {error.strerror}. "
            "Make room on its disk, or let the API write there; no restart is needed."
        )
        if is_new:  # in another thread: logging may count dropped lines, and the library's lock is held
            fields = {"error": _faults[self._name]}
            threading.Thread(target=log.error, args=("metrics not written",), kwargs=fields).start()


def count_dropped(kind: str) -> None:
    """Count one thing that was not recorded."""
    dropped.labels(kind).inc()


def fault() -> str | None:
    """Return why `/metrics` lacks counts of this worker, and what to do; None if it lacks none."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is not None and not Path(folder).is_dir():
        return f"/metrics misses what workers count, because {folder} was removed. Restart the API."
    return next(iter([*_faults.values()]), None)


def collect() -> list[Metric]:
    """Return all metrics, added up over the workers."""
    if FOLDER_VARIABLE not in os.environ:
        return list(REGISTRY.collect())
    files = Path(os.environ[FOLDER_VARIABLE]).glob("*.db")
    return list(MultiProcessCollector.merge([str(path) for path in files if _has_counts(path)]))


def _has_counts(file: Path) -> bool:
    """Return whether a file exists and has its first page: it may be new, removed, or without space."""
    try:
        return file.stat().st_size > 0
    except FileNotFoundError:
        return False


class Snapshot(NamedTuple):
    """Metrics in the form of a registry, which the library's writer needs."""

    metrics: Sequence[Metric]

    def collect(self) -> Sequence[Metric]:
        return self.metrics


def text(more: Sequence[Metric] = ()) -> bytes:
    """Return all metrics and `more` in Prometheus' text form."""
    return generate_latest(Snapshot([*collect(), *more]))


def total(counter: Counter, among: Sequence[Metric] | None = None, /, **labels: str) -> dict[tuple[str, ...], float]:
    """Return a counter's values where these labels match, by its other labels; `among` is a result of `collect`."""
    name = f"{counter._name}_total"  # noqa: SLF001  # prometheus_client offers no other way to it
    return {
        tuple(value for label, value in sample.labels.items() if label not in labels): sample.value
        for metric in (collect() if among is None else among)
        for sample in metric.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    }


def begin(folder: Path) -> None:
    """Have workers count in the files of an existing folder. The arbiter calls it before the first fork."""
    os.environ[FOLDER_VARIABLE] = str(folder)
    values.MmapedDict = WorkerValues  # type: ignore[attr-defined, assignment]
    values.ValueClass = values.MultiProcessValue(lambda: _slot)


def take(slot: int) -> None:
    """Set the slot of this worker. The worker calls it after the fork."""
    global _slot  # noqa: PLW0603  # one slot a process
    _slot = slot


def forget(slot: int) -> None:
    """Remove the gauges of a worker that ended. The arbiter calls it."""
    with suppress(OSError):  # an error would end the arbiter
        mark_process_dead(slot)
