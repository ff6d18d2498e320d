"""The thread in each worker that turns finished predictions into log lines, counts and metrics, off the requests' path.

Another thread writes counts and predictions to our database (`prediction_log.py`), and a third one predicts shadows
(`shadows.py`).
"""

import random
from collections import Counter
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import orjson
import structlog

from labstack import logs
from labstack.api import metrics
from labstack.api.recording.counter import WindowCounter
from labstack.api.recording.finished import FinishedPrediction, outputs
from labstack.api.recording.prediction_log import PredictionLog
from labstack.api.recording.recent_rows import RecentRows
from labstack.api.recording.shadows import Shadow, Shadows
from labstack.api.serving.lineup import Role, Served
from labstack.background import Background
from labstack.settings import Settings

LOGGED_ROWS = 10  # of one request, so that a log line stays readable
WAITING_RECORDS = 10_000

log = structlog.get_logger(__name__)


class Recorder:
    """Receives finished predictions, failures and shadows of one worker."""

    def __init__(self, settings: Settings) -> None:
        self._log_inputs, self._share = settings.log_inputs, settings.log_predictions
        self._recent: WeakKeyDictionary[Served, RecentRows] = WeakKeyDictionary()
        self._counter = WindowCounter(settings.drift_window_seconds)
        self._log = PredictionLog(settings, self._counter)
        self.is_durable = self._log.mode == "durable"
        dropped = partial(metrics.count_dropped, "records")
        self._records = Background("recorder", self._record, dropped, WAITING_RECORDS)
        self._shadows = Shadows(self._counter)

    @property
    def database_fault(self) -> str | None:
        """The reason why predictions and counts cannot be written to our database, as a sentence; None if they can."""
        return self._log.fault

    def prepare(self) -> None:
        """Make the database's file, in the arbiter before the first fork. Raises DatabaseError."""
        self._log.prepare()

    def start(self) -> None:
        logs.output.start(partial(metrics.count_dropped, "log lines"))
        self._log.start()
        self._records.start()
        self._shadows.start()

    def stop(self) -> None:
        """End the threads after everything put before is recorded."""
        self._records.stop()
        self._shadows.stop()
        self._log.stop()
        logs.output.stop()

    def put(self, record: FinishedPrediction) -> None:
        """Hand over a finished prediction; waits only for a durable prediction log.

        Raises NotKeptError if a durable log could not keep the prediction.
        """
        if self.is_durable:
            self._log.keep(record)
        self._records.put(record)

    def fail(self, role: Role, trial: str) -> None:
        """Count a request whose rows fit the contract and which a version failed to predict."""
        metrics.failures.labels(*_labels(role)).inc()
        self._counter.add_failure(role, trial)

    def shadow(self, shadow: Shadow) -> None:
        """Hand over rows for production or its canary to predict too; never waits."""
        self._shadows.put(shadow)

    def _record(self, records: list[FinishedPrediction]) -> None:
        for record in records:
            try:
                recent = self._recent_rows(record.role.served)
                recent.add(record.matrix)
                if self._share == 1 or random.random() < self._share:  # noqa: S311
                    logs.info("prediction", self._fields(record, recent.stats))
            except Exception:  # a record that cannot be logged must not stop the others
                log.exception("prediction not recorded", request_id=record.request_id)
        self._log.put(records)
        self._count(records)

    def _recent_rows(self, served: Served) -> RecentRows:
        if served not in self._recent:
            self._recent[served] = RecentRows(served.contract)
        return self._recent[served]

    def _count(self, records: list[FinishedPrediction]) -> None:
        metrics.waiting.labels("records").set(self._records.waiting)
        for endpoint, requests in Counter(record.endpoint for record in records).items():
            metrics.requests.labels(endpoint, "200").inc(requests)
        by_role: dict[tuple[Role, str], list[FinishedPrediction]] = {}
        for record in records:
            by_role.setdefault((record.role, record.trial), []).append(record)
        for (role, trial), group in by_role.items():
            self._count_role(role, trial, group)

    def _count_role(self, role: Role, trial: str, records: list[FinishedPrediction]) -> None:
        """Count the records of one role in one trial."""
        matrices, latencies_ms = [record.matrix for record in records], [record.latency_ms for record in records]
        predicted: list[Any] = [output for record in records for output in record.predictions.outputs]
        self._counter.add_answers(role, trial, matrices, predicted, latencies_ms)
        labels = _labels(role)
        metrics.predictions.labels(*labels).inc(len(records))
        metrics.rows.labels(*labels).inc(len(predicted))
        metrics.out_of_range.labels(*labels).inc(sum(len(record.warnings) for record in records))
        for name, rows in Counter(predicted).items() if role.served.contract.classes else ():
            metrics.classes.labels(*labels, name).inc(rows)
        observe = metrics.latency.labels(*labels).observe
        for latency_ms in latencies_ms:
            observe(latency_ms / 1000)

    def _fields(self, record: FinishedPrediction, stats: orjson.Fragment) -> dict[str, Any]:
        """Return the fields of a prediction's log line."""
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


def _labels(role: Role) -> tuple[str, str, str]:
    """Return the labels of metrics by role."""
    return role.served.model, str(role.served.version), role.name
