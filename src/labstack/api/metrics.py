"""What workers count, in Prometheus' form: `/metrics` adds up all workers of this API, those that ended included.

Under gunicorn each worker writes files of its own, named after its slot: the worker that takes the place of one that
ended goes on with its counters, which so never go backwards, and files never grow in number. Every metric has labels,
as one without would be written when it is defined, in the arbiter.

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
ENTRY_BYTES = 28  # at most, of a value beside its key: the key's length, up to 8 bytes of padding, and two doubles
RETRY_SECONDS = 1.0  # between two tries to get room for what is counted in memory

_slot = -1  # the arbiter
_faults: dict[str, str] = {}  # by file

BY_ROLE = ("model", "version", "role")

requests = Counter("labstack_requests", "Requests answered, by the endpoint's pattern.", ("endpoint", "status"))
problems = Counter("labstack_problems", "Answers that are errors, by the kind of problem.", ("kind",))
predictions = Counter("labstack_predictions", "Requests that a version answered with predictions.", BY_ROLE)
rows = Counter("labstack_predicted_rows", "Rows that a version predicted for callers.", BY_ROLE)
outside = Counter(
    "labstack_out_of_range_values", "Values beyond the range of training, predicted all the same.", BY_ROLE
)
classes = Counter("labstack_predicted_classes", "Rows by the class that was predicted.", (*BY_ROLE, "class"))
latency = Histogram(
    "labstack_prediction_seconds", "From a request's coming to its answer.", BY_ROLE, buckets=LATENCY_BUCKETS
)
failures = Counter(
    "labstack_prediction_failures", "Requests whose rows were in order and whose prediction failed.", BY_ROLE
)
shadowed = Counter(
    "labstack_shadow_rows",
    "Rows that a canary and production both predicted, by outcome.",
    ("model", "version", "outcome"),
)
dropped = Counter("labstack_dropped", "What was not recorded, as its queue was full.", ("what",))
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
    """Values in a file with room for all that is mapped. Raises OSError where there is none."""

    def __init__(self, name: str) -> None:
        with open(name, "ab") as file:
            os.posix_fallocate(file.fileno(), 0, max(os.fstat(file.fileno()).st_size, FILE_BYTES))
        super().__init__(name)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        """Called for a new key."""
        while self._used + len(key.encode()) + ENTRY_BYTES > self._capacity:
            os.posix_fallocate(self._f.fileno(), 0, 2 * self._capacity)
            self._m = mmap.mmap(self._f.fileno(), 2 * self._capacity)
            self._capacity *= 2
        super()._init_value(key)  # type: ignore[no-untyped-call]


class Counts:
    """A worker's values in a file, in the place of the library's; what it has no room for waits in memory.

    The library reads each key before it writes it, and holds a lock meanwhile.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._file: Allocated | None = None
        self._waiting: dict[str, tuple[float, float]] = {}
        self._next_try = 0.0

    def read_value(self, key: str) -> tuple[float, float]:
        """A value and its time, 0 for a new one."""
        try:
            found: tuple[float, float] = self._opened().read_value(key)  # type: ignore[no-untyped-call]
        except OSError as error:
            self._put_off(error)
            return self._waiting.setdefault(key, (0.0, 0.0))
        return self._waiting.get(key, found)

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
        if is_new:  # by another thread: a full log counts the lines that it drops, and the library's lock is held here
            told = {"error": _faults[self._name]}
            threading.Thread(target=log.error, args=("metrics not written",), kwargs=told).start()


def fault() -> str | None:
    """The reason why `/metrics` misses counts of this worker, and what to do; None if it misses none."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is not None and not Path(folder).is_dir():
        return f"/metrics misses what workers count, because {folder} was removed. Restart the API."
    return next(iter([*_faults.values()]), None)


def collect() -> list[Metric]:
    """All metrics, added up over the workers."""
    if FOLDER_VARIABLE not in os.environ:
        return list(REGISTRY.collect())
    files = Path(os.environ[FOLDER_VARIABLE]).glob("*.db")
    return list(MultiProcessCollector.merge([str(path) for path in files if _has_counts(path)]))


def _has_counts(file: Path) -> bool:
    """Whether a file exists and has its first page: it may be in the making, removed, or without space."""
    try:
        return file.stat().st_size > 0
    except FileNotFoundError:
        return False


class Found(NamedTuple):
    """Metrics as they are, for the library's writer, which asks a registry for them."""

    found: Sequence[Metric]

    def collect(self) -> Sequence[Metric]:
        return self.found


def text(more: Sequence[Metric] = ()) -> bytes:
    """All metrics, and those that somebody else found, in Prometheus' text form."""
    return generate_latest(Found([*collect(), *more]))


def total(counter: Counter, among: Sequence[Metric] | None = None, /, **labels: str) -> dict[tuple[str, ...], float]:
    """A counter's values where these labels hold, by its other labels; `among` what `collect` found, by default now."""
    name = f"{counter._name}_total"  # noqa: SLF001  # prometheus_client offers no other way to it
    return {
        tuple(value for label, value in sample.labels.items() if label not in labels): sample.value
        for metric in (collect() if among is None else among)
        for sample in metric.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    }


def begin(folder: Path) -> None:
    """In the arbiter, before the first fork: have workers count in files of a folder that is there."""
    os.environ[FOLDER_VARIABLE] = str(folder)
    values.MmapedDict = Counts  # type: ignore[attr-defined, assignment]
    values.ValueClass = values.MultiProcessValue(lambda: _slot)


def take(slot: int) -> None:
    """In a worker, after the fork: which of those that run at once it is."""
    global _slot  # noqa: PLW0603  # one slot a process
    _slot = slot


def forget(slot: int) -> None:
    """In the arbiter, when a worker is gone: its gauges go with it."""
    with suppress(OSError):  # else the arbiter would end
        mark_process_dead(slot)
