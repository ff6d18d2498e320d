"""The gauges of drift and canaries for `/metrics`, computed from the counts in our database."""

import math
import threading
import time
from collections.abc import Callable, Mapping

import structlog
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from sqlalchemy import Engine

from labstack.api.rollout import assessment
from labstack.api.serving.lineup import Lineup
from labstack.settings import Settings
from labstack.store.database import DatabaseError

WAIT_SECONDS = 1.0
AGE_SECONDS = 30.0

log = structlog.get_logger(__name__)


def compute(engine: Engine, settings: Settings, lineups: Mapping[str, Lineup]) -> list[Metric]:
    """Return the current gauges of drift and canaries. Raises DatabaseError."""
    columns = ("model", "version", "role", "column")
    shift = GaugeMetricFamily("labstack_drift_psi", "How far a column is from training, as PSI.", labels=columns)
    status = GaugeMetricFamily(
        "labstack_drifted", "1 where a column has drifted, 0.5 where it is to be watched, else 0.", labels=columns
    )
    verdict = GaugeMetricFamily(
        "labstack_canary_verdict", "1 for the verdict on a canary.", labels=("model", "version", "verdict")
    )
    for model, lineup in lineups.items():
        for drifted in assessment.drifts(settings, lineup, assessment.recent(engine, settings, model)):
            for column in (*drifted.features, drifted.predictions):
                labels = (model, str(drifted.role.served.version), drifted.role.name, column.name)
                shift.add_metric(labels, column.psi or 0.0)
                status.add_metric(labels, {"drifted": 1.0, "watch": 0.5}.get(column.verdict, 0.0))
        step = assessment.step(engine, settings, lineup)
        if step is not None and lineup.canary is not None:
            verdict.add_metric((model, str(lineup.canary.served.version), step.verdict.outcome), 1)
    return [shift, status, verdict]


class Gauges:
    """The gauges, computed in a thread on request, so that `/metrics` does not wait for our database."""

    def __init__(self, compute: Callable[[], list[Metric]]) -> None:
        self._compute = compute
        self._lock = threading.Lock()
        self._thread = threading.Thread()
        self._latest: tuple[list[Metric], float] = [], -math.inf

    def latest(self) -> list[Metric]:
        """Return the current gauges; if they take over a second, the last ones if at most 30 seconds old, else none."""
        with self._lock:
            if not self._thread.is_alive():
                self._thread = threading.Thread(target=self._refresh, name="gauges", daemon=True)
                self._thread.start()
            thread = self._thread
        thread.join(WAIT_SECONDS)
        metrics, computed_at = self._latest
        return metrics if time.monotonic() - computed_at <= AGE_SECONDS else []

    def _refresh(self) -> None:
        try:
            self._latest = self._compute(), time.monotonic()
        except DatabaseError:  # labstack_database_reachable reports it
            pass
        except Exception:
            log.exception("gauges of drift and canaries failed")
