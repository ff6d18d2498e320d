"""The thread in each worker that turns finished predictions into log lines, off the request's path."""

import queue
import threading
from dataclasses import dataclass
from typing import Any

import structlog

from labstack import logs
from labstack.api.serving.lineup import Served
from labstack.api.serving.predictor import Predictions
from labstack.contract import Matrix

LOGGED_ROWS = 10  # of one request; a line of the log must stay one that people and collectors can read

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Record:
    """A finished prediction."""

    endpoint: str
    request_id: str
    latency_ms: float
    served: Served
    role: str
    matrix: Matrix
    predictions: Predictions


class Recorder:
    def __init__(self, log_inputs: bool) -> None:
        self._log_inputs = log_inputs
        self._queue: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread when everything put before is recorded."""
        self._queue.put(None)
        self._thread.join(timeout=10)

    def put(self, record: Record) -> None:
        """Hand over a finished prediction; never waits."""
        self._queue.put(record)

    def _run(self) -> None:
        while (record := self._queue.get()) is not None:
            try:
                logs.write("info", "prediction", self._fields(record))
            except Exception:  # one record that cannot be written must not end the recording of all
                log.exception("prediction not recorded", request_id=record.request_id)

    def _fields(self, record: Record) -> dict[str, Any]:
        served = record.served
        fields: dict[str, Any] = {
            "endpoint": record.endpoint,
            "status": 200,
            "latency_ms": round(record.latency_ms, 3),
            "request_id": record.request_id,
            "model": served.model,
            "version": served.version,
            "role": record.role,
            "runtime": served.predictor.runtime,
            "rows": len(record.matrix),
        }
        if self._log_inputs:
            names = [feature.name for feature in served.contract.features]
            rows = record.matrix[:LOGGED_ROWS].tolist()
            fields["input"] = [dict(zip(names, row, strict=True)) for row in rows]
        key = "class" if served.contract.task == "classification" else "value"
        outputs: list[dict[str, Any]] = [{key: output} for output in record.predictions.outputs[:LOGGED_ROWS]]
        probabilities = record.predictions.probabilities
        if probabilities is not None:
            for output, confidence in zip(outputs, probabilities[:LOGGED_ROWS].max(axis=1).tolist(), strict=True):
                output["confidence"] = confidence
        fields["prediction"] = outputs
        return fields
