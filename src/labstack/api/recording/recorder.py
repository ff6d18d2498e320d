"""The thread in each worker that turns finished predictions into log lines, counts and metrics, off the request's path.

What it counts, and the predictions themselves, another thread writes to our database (`prediction_log.py`). Production
and a canary predict each other's rows in a third: it may be slow, and must delay neither callers nor the log.
"""

import math
import random
import time
from collections import Counter
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import orjson
import structlog

from labstack import logs
from labstack.api import metrics
from labstack.api.recording.counter import WindowCounter
from labstack.api.recording.finished import FinishedPrediction, outputs
from labstack.api.recording.prediction_log import PredictionLog
from labstack.api.serving.lineup import Canary, Role, Served
from labstack.background import Background
from labstack.model.contract import Contract, ContractError, Matrix
from labstack.settings import Settings

LOGGED_ROWS = 10  # of one request; a line of the log must stay one that people and collectors can read
WAITING_RECORDS = 10_000
WAITING_SHADOWS = 1_000
SHADOWED_ROWS = 100  # of one request, so that what waits stays small
WINDOW_ROWS = 1_000
WINDOW_SECONDS = 1.0  # how old the statistics in a log line may be
AGREEMENT = 0.05  # two values agree when they differ by at most this share of production's

log = structlog.get_logger(__name__)


class Shadow(NamedTuple):
    """The first rows of a request, what one version predicted for them, and the one that is to predict them too.

    Of both one is production and the other its canary; who answered is `asked`'s other. Rows and no matrix, as the two
    may have their columns in another order, or codes of their own for categories.
    """

    canary: Canary
    trial: str
    asked: Served
    rows: list[Any]
    outputs: list[str] | list[float]


class RecentRows:
    """The last rows that a version predicted: mean and standard deviation of each feature that is a number."""

    def __init__(self, contract: Contract) -> None:
        self._columns = {f.name: number for number, f in enumerate(contract.features) if not f.categories}
        self._rows = np.full((WINDOW_ROWS, len(contract.features)), np.nan)
        self._next = 0
        self._computed = -math.inf
        self._stats = orjson.Fragment(b"{}")

    def add(self, matrix: Matrix) -> None:
        rows = matrix[-WINDOW_ROWS:]
        end = self._next + len(rows)
        if end <= WINDOW_ROWS:
            self._rows[self._next : end] = rows
        else:
            self._rows[np.arange(self._next, end) % WINDOW_ROWS] = rows
        self._next = end % WINDOW_ROWS

    @property
    def stats(self) -> orjson.Fragment:
        """`{feature: {mean, std}}` as JSON, not much older than now; null where no row holds a value."""
        now = time.monotonic()
        if now - self._computed > WINDOW_SECONDS:
            seen = np.ma.masked_invalid(self._rows)
            mean, std = seen.mean(axis=0).filled(np.nan).tolist(), seen.std(axis=0).filled(np.nan).tolist()
            found = {name: {"mean": mean[column], "std": std[column]} for name, column in self._columns.items()}
            self._stats, self._computed = orjson.Fragment(orjson.dumps(found)), now
        return self._stats


class Recorder:
    def __init__(self, settings: Settings) -> None:
        self._log_inputs, self._share = settings.log_inputs, settings.log_predictions
        self._recent: WeakKeyDictionary[Served, RecentRows] = WeakKeyDictionary()
        self._windows = WindowCounter(settings.drift_window_seconds)
        self._log = PredictionLog(settings, self._windows)
        self.is_durable = self._log.mode == "durable"
        self._records = Background("recorder", self._record, partial(_drop, "records"), WAITING_RECORDS)
        self._shadows = Background("shadow", self._compare, partial(_drop, "shadows"), WAITING_SHADOWS)

    @property
    def database_fault(self) -> str | None:
        """What keeps this worker's predictions and counts from our database, in words for people; None if nothing."""
        return self._log.fault

    def prepare(self) -> None:
        """In the arbiter, before the first fork. Raises DatabaseError."""
        self._log.prepare()

    def start(self) -> None:
        logs.output.start(partial(_drop, "log lines"))
        self._log.start()
        self._records.start()
        self._shadows.start()

    def stop(self) -> None:
        """End the threads when everything put before is recorded."""
        self._records.stop()
        self._shadows.stop(seconds=3)
        self._log.stop()
        logs.output.stop()

    def put(self, record: FinishedPrediction) -> None:
        """Hand over a finished prediction; never waits, unless the prediction log is to be durable.

        Raises NotKeptError then, when the prediction could not be kept.
        """
        if self.is_durable:
            self._log.keep(record)
        self._records.put(record)

    def fail(self, role: Role, trial: str) -> None:
        """Count a request whose rows were in order and which a version failed to predict."""
        served = role.served
        metrics.failures.labels(served.model, str(served.version), role.name).inc()
        self._windows.failed(served, role.name, trial)

    def shadow(self, shadow: Shadow) -> None:
        """Hand over rows for production or its canary to predict too; never waits."""
        self._shadows.put(shadow)

    def _record(self, records: list[FinishedPrediction]) -> None:
        for record in records:
            try:
                window = self._window(record.role.served)
                window.add(record.matrix)
                if self._share == 1 or random.random() < self._share:  # noqa: S311
                    logs.info("prediction", self._fields(record, window.stats))
            except Exception:  # one record that cannot be written must not end the recording of all
                log.exception("prediction not recorded", request_id=record.request_id)
        self._log.put(records)
        self._count(records)

    def _window(self, served: Served) -> RecentRows:
        if served not in self._recent:
            self._recent[served] = RecentRows(served.contract)
        return self._recent[served]

    def _count(self, records: list[FinishedPrediction]) -> None:
        metrics.waiting.labels("records").set(self._records.waiting)
        for endpoint, number in Counter(record.endpoint for record in records).items():
            metrics.requests.labels(endpoint, "200").inc(number)
        by_role: dict[tuple[Role, str], list[FinishedPrediction]] = {}
        for record in records:
            by_role.setdefault((record.role, record.trial), []).append(record)
        for (role, trial), found in by_role.items():
            served = role.served
            matrices, latencies = [record.matrix for record in found], [record.latency_ms for record in found]
            said: list[Any] = [output for record in found for output in record.predictions.outputs]
            self._windows.answered(served, role.name, trial, matrices, said, latencies)
            labels = served.model, str(served.version), role.name
            metrics.predictions.labels(*labels).inc(len(found))
            metrics.rows.labels(*labels).inc(len(said))
            metrics.outside.labels(*labels).inc(sum(len(record.warnings) for record in found))
            for name, number in Counter(said).items() if served.contract.classes else ():
                metrics.classes.labels(*labels, name).inc(number)
            observe = metrics.latency.labels(*labels).observe
            for latency in latencies:
                observe(latency / 1000)

    def _fields(self, record: FinishedPrediction, stats: orjson.Fragment) -> dict[str, Any]:
        served = record.role.served
        fields: dict[str, Any] = {
            "endpoint": record.path,
            "status": 200,
            "latency_ms": round(record.latency_ms, 3),
            "request_id": record.request_id,
            "model": served.model,
            "version": served.version,
            "role": record.role.name,
            "runtime": served.predictor.runtime,
            "rows": len(record.matrix),
        }
        if record.warnings:
            fields["out_of_range"] = [field for field, _ in record.warnings[:LOGGED_ROWS]]
        if self._log_inputs:
            fields["input"] = served.plan.inputs(record.matrix[:LOGGED_ROWS])
            fields["input_stats"] = stats
        fields["prediction"] = outputs(record, LOGGED_ROWS)
        return fields

    def _compare(self, shadows: list[Shadow]) -> None:
        for canary, trial, asked, rows, answered in shadows:
            labels = canary.served.model, str(canary.served.version)
            try:
                matrix, _ = asked.plan.parse(rows)
                found = asked.predictor.predict(matrix).outputs
                own, production = (found, answered) if asked is canary.served else (answered, found)
                agreed = sum(map(_agree, production, own))
                self._windows.compared(canary.served, canary.name, trial, own, production, agreed)
                metrics.shadowed.labels(*labels, "agreed").inc(agreed)
                metrics.shadowed.labels(*labels, "differed").inc(len(own) - agreed)
            except Exception as error:  # whatever a canary does, production answers
                if asked is canary.served:
                    metrics.shadowed.labels(*labels, "failed").inc(len(rows))
                    self._windows.failed_beside(canary.served, canary.name, trial)
                if asked is canary.served or not isinstance(error, ContractError):  # a canary may take more
                    log.error("shadow failed", model=labels[0], version=asked.version, error=str(error))


def _drop(what: str) -> None:
    metrics.dropped.labels(what).inc()


def _agree(mine: str | float, theirs: str | float) -> bool:
    if isinstance(mine, str) or isinstance(theirs, str):
        return mine == theirs
    return abs(mine - theirs) <= AGREEMENT * abs(mine) + 1e-9
