"""What workers count, in Prometheus' form: `/metrics` adds up all workers of this API, those that ended included.

Under gunicorn each worker writes files of its own, named after its slot: the worker that takes the place of one that
ended goes on with its counters, which so never go backwards, and files never grow in number. Every metric has labels,
as one without would be written when it is defined, in the arbiter.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
LATENCY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)  # seconds

_slot = -1  # the arbiter

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


def collect() -> list[Metric]:
    """All metrics, added up over the workers."""
    return list(_registry().collect())


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
    name = f"{counter._name}_total"
    return {
        tuple(value for label, value in sample.labels.items() if label not in labels): sample.value
        for metric in (collect() if among is None else among)
        for sample in metric.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    }


def begin(folder: Path) -> None:
    """In the arbiter, before the first fork: have workers count in files of a folder that is there."""
    os.environ[FOLDER_VARIABLE] = str(folder)
    values.ValueClass = values.MultiProcessValue(lambda: _slot)


def take(slot: int) -> None:
    """In a worker, after the fork: which of those that run at once it is."""
    global _slot
    _slot = slot


def forget(slot: int) -> None:
    """In the arbiter, when a worker is gone: its gauges go with it."""
    mark_process_dead(slot)


def _registry() -> CollectorRegistry:
    if FOLDER_VARIABLE not in os.environ:
        return REGISTRY
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return registry
