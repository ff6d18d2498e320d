"""What our database says of the versions that are served: of all workers, of all replicas that share it."""

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any, NamedTuple

import structlog
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from sqlalchemy import Engine

from labstack.api.recording.counter import PERIODS
from labstack.api.serving.lineup import Lineup, Role, Served
from labstack.monitoring import canary, drift
from labstack.monitoring.counts import Counts
from labstack.registry.roles import ROLES, Rollout
from labstack.settings import Settings
from labstack.store import predictions, windows
from labstack.store.database import DatabaseError
from labstack.store.windows import Window

GAUGES_WAIT_SECONDS = 1.0
GAUGES_AGE_SECONDS = 30.0

log = structlog.get_logger(__name__)


class Drifted(NamedTuple):
    """How far a version is from its training, by what it saw and said in the window: in this role and in others."""

    role: Role
    counts: Counts
    features: list[drift.Drift]
    predictions: drift.Drift

    @property
    def verdict(self) -> drift.Verdict:
        """The worst of all."""
        return drift.worst([*self.features, self.predictions])


class Step(NamedTuple):
    """A canary's step: what production and canary did in it, the verdict, and what follows from an advance."""

    production: Counts
    canary: Counts
    verdict: canary.Verdict
    next: Rollout | None  # None when the canary is to become production


def thresholds(settings: Settings) -> drift.Thresholds:
    """By what drift is judged."""
    return drift.Thresholds(settings.drift_watch, settings.drift_drifted, settings.drift_minimum_rows)


def rules(settings: Settings) -> canary.Rules:
    """By what canaries are judged."""
    return canary.Rules(
        minimum_requests=settings.canary_minimum_requests,
        failures=settings.canary_failure_budget,
        margin=settings.canary_margin,
        latency_ratio=settings.canary_latency_ratio,
        agreement=settings.canary_agreement,
        shift=settings.drift_drifted,
    )


def recent(engine: Engine, settings: Settings, model: str) -> list[Window]:
    """The windows of a model in the drift window, oldest first. Raises DatabaseError."""
    return windows.since(engine, model, time.time() - settings.drift_window_seconds)


def answered(
    settings: Settings, lineup: Lineup, found: Iterable[Window], now: float
) -> dict[tuple[str, int], list[Counts]]:
    """What each role answered in each period of the drift window, by the version that held it then, role by role.

    Versions that hold a role now are there in any case. The last period is the one that lasts.
    """
    nothing = lineup.production.served.layout.empty().without_columns()
    length = period_seconds(settings)
    periods = {(role.name, role.served.version): [nothing] * PERIODS for role in lineup.roles}
    for window in found:
        of = periods.setdefault((window.role, window.version), [nothing] * PERIODS)
        place = max(PERIODS - 1 - int(now // length - round(window.started / length)), 0)
        of[place] = total([of[place], Counts.loads(window.counts).without_columns()])
    return {key: periods[key] for key in sorted(periods, key=lambda key: (ROLES.index(key[0]), key[1]))}


def total(counts: Iterable[Counts]) -> Counts:
    """The sum of some counts, of which there must be one at least."""
    first, *others = counts
    found = replace(first)
    for one in others:
        found.add(one)
    return found


def drifts(settings: Settings, lineup: Lineup, found: Sequence[Window]) -> list[Drifted]:
    """The drift of each version of a lineup, by the windows that were found, whatever role it had in them."""
    limits = thresholds(settings)
    drifted = []
    for role in lineup.roles:
        served = role.served
        counts = added(served, (window for window in found if window.version == served.version))
        features = drift.features(served.layout, counts, limits)
        drifted.append(Drifted(role, counts, features, drift.predictions(served.layout, counts, limits)))
    return drifted


def added(served: Served, found: Iterable[Window]) -> Counts:
    """The sum of a version's windows."""
    counts = served.layout.empty()
    for window in found:
        if window.source == served.record.source:  # else a version of another registry had this number
            counts.add(Counts.loads(window.counts))
    return counts


def step(engine: Engine, settings: Settings, lineup: Lineup) -> Step | None:
    """The verdict on a lineup's canary, and what it is based on; None without a canary. Raises DatabaseError."""
    tried = lineup.canary
    if tried is None:
        return None
    found = windows.of_trial(engine, tried.served.model, lineup.trial)
    production, beside = lineup.production.served, tried.served
    both = [
        added(served, (window for window in found if (window.version, window.role) == (served.version, role.name)))
        for served, role in ((production, lineup.production), (beside, tried))
    ]
    begun = tried.rollout.since  # which a canary lacks whose alias was set by other means than ours
    first = min((window.started for window in found), default=time.time())
    since = datetime.fromisoformat(begun).timestamp() if begun else first
    outcomes = [predictions.live(engine, served.model, served.version, since) for served in (production, beside)]
    shadow = tried.rollout.mode == "shadow"
    verdict = canary.judge(both[0], both[1], (outcomes[0], outcomes[1]), rules(settings), shadow)
    return Step(both[0], both[1], verdict, following(tried.rollout, settings.canary_steps))


def following(rollout: Rollout, steps: tuple[float, ...]) -> Rollout | None:
    """The step after a rollout; a shadow goes on with the first share of requests. None for the role of production."""
    weight = steps[0] if rollout.mode == "shadow" else next((step for step in steps if step > rollout.weight), 1)
    return None if weight == 1 else Rollout(weight, "split")


def shown_step(found: Step) -> dict[str, Any]:
    """A step as answers, audit and log show it."""
    weight = found.next.weight if found.next else 1
    return {"outcome": found.verdict.outcome, "reason": found.verdict.reason, "next_weight": weight} | {
        "checks": [asdict(check) for check in found.verdict.checks]
    }


def shown_drift(found: Drifted) -> dict[str, Any]:
    """A version's drift as answers show it."""
    served = found.role.served
    return {
        "version": served.version,
        "role": found.role.name,
        "verdict": found.verdict,
        "rows": found.counts.rows,
        "features": [asdict(one) for one in found.features],
        "prediction": asdict(found.predictions),
    }


def gauges(engine: Engine, settings: Settings, lineups: Mapping[str, Lineup]) -> list[Metric]:
    """What Prometheus is told of drift and of canaries, as of now. Raises DatabaseError."""
    columns = ("model", "version", "role", "column")
    shift = GaugeMetricFamily("labstack_drift_psi", "How far a column is from training, as PSI.", labels=columns)
    drifted = GaugeMetricFamily(
        "labstack_drifted", "1 where a column has drifted, 0.5 where it is to be watched, else 0.", labels=columns
    )
    judged = GaugeMetricFamily(
        "labstack_canary_verdict", "1 for the verdict on a canary.", labels=("model", "version", "verdict")
    )
    for model, lineup in lineups.items():
        for one in drifts(settings, lineup, recent(engine, settings, model)):
            for column in (*one.features, one.predictions):
                labels = (model, str(one.role.served.version), one.role.name, column.name)
                shift.add_metric(labels, column.psi or 0.0)
                drifted.add_metric(labels, {"drifted": 1.0, "watch": 0.5}.get(column.verdict, 0.0))
        found = step(engine, settings, lineup)
        if found is not None and lineup.canary is not None:
            judged.add_metric((model, str(lineup.canary.served.version), found.verdict.outcome), 1)
    return [shift, drifted, judged]


class Gauges:
    """The gauges for `/metrics`, computed in a thread when they are asked for: nobody waits for our database."""

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
        thread.join(GAUGES_WAIT_SECONDS)
        found, at = self._latest
        return found if time.monotonic() - at <= GAUGES_AGE_SECONDS else []

    def _refresh(self) -> None:
        try:
            self._latest = self._compute(), time.monotonic()
        except DatabaseError:  # labstack_database_reachable reports it
            pass
        except Exception:
            log.exception("gauges of drift and canaries failed")


def period_seconds(settings: Settings) -> float:
    """How long each window lasts."""
    return settings.drift_window_seconds / PERIODS
