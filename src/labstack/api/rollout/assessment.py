"""The assessment of the versions that are served, from the counts in our database.

The counts are those of all workers and of all replicas that share the database: traffic by period, drift, and the
verdict on a canary.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Engine

from labstack.api.recording.counter import PERIODS
from labstack.api.serving.lineup import Lineup, Role, Served
from labstack.monitoring import canary, drift
from labstack.monitoring.counts import Counts
from labstack.registry.roles import ROLES, Rollout
from labstack.settings import Settings
from labstack.store import predictions, windows
from labstack.store.windows import Window


class VersionDrift(NamedTuple):
    """The drift of a version in the drift window, by its counts in all its roles; `role` is its present one."""

    role: Role
    counts: Counts
    features: list[drift.Drift]
    predictions: drift.Drift

    @property
    def verdict(self) -> drift.Verdict:
        """The worst verdict of all columns."""
        return drift.worst([*self.features, self.predictions])


class Step(NamedTuple):
    """A step of a canary's trial: the counts of both versions, the verdict, and the rollout after an advance."""

    production: Counts
    canary: Counts
    verdict: canary.Verdict
    next: Rollout | None  # None when the canary becomes production


def thresholds(settings: Settings) -> drift.Thresholds:
    """Return the thresholds of drift."""
    return drift.Thresholds(settings.drift_watch, settings.drift_drifted, settings.drift_minimum_rows)


def rules(settings: Settings) -> canary.Rules:
    """Return the limits that canaries are judged by."""
    return canary.Rules(
        minimum_requests=settings.canary_minimum_requests,
        failures=settings.canary_failure_budget,
        margin=settings.canary_margin,
        latency_ratio=settings.canary_latency_ratio,
        agreement=settings.canary_agreement,
        shift=settings.drift_drifted,
    )


def period_seconds(settings: Settings) -> float:
    """Return the length of one period of the drift window."""
    return settings.drift_window_seconds / PERIODS


def recent(engine: Engine, settings: Settings, model: str) -> list[Window]:
    """Return a model's rows of counts in the drift window, oldest first. Raises DatabaseError."""
    return windows.since(engine, model, time.time() - settings.drift_window_seconds)


def traffic(
    settings: Settings, lineup: Lineup, rows: Iterable[Window], now: float
) -> dict[tuple[str, int], list[Counts]]:
    """Return the counts of each role and version in each period of the drift window, sorted by role.

    The last period is the current one. Versions that hold a role now are included even without requests.
    """
    nothing = lineup.production.served.layout.empty().without_columns()
    length = period_seconds(settings)
    by_role = {(role.name, role.served.version): [nothing] * PERIODS for role in lineup.roles}
    for row in rows:
        periods = by_role.setdefault((row.role, row.version), [nothing] * PERIODS)
        period = max(PERIODS - 1 - int(now // length - round(row.started / length)), 0)
        periods[period] = total([periods[period], Counts.loads(row.counts).without_columns()])
    return {key: by_role[key] for key in sorted(by_role, key=lambda key: (ROLES.index(key[0]), key[1]))}


def total(counts: Iterable[Counts]) -> Counts:
    """Return the sum of counts, of which there must be at least one."""
    first, *others = counts
    result = replace(first)
    for other in others:
        result.add(other)
    return result


def drifts(settings: Settings, lineup: Lineup, rows: Sequence[Window]) -> list[VersionDrift]:
    """Return the drift of each version of a lineup, from rows of counts in any of its roles."""
    limits = thresholds(settings)
    drifted = []
    for role in lineup.roles:
        served = role.served
        counts = _sum(served, (row for row in rows if row.version == served.version))
        features = drift.features(served.layout, counts, limits)
        drifted.append(VersionDrift(role, counts, features, drift.predictions(served.layout, counts, limits)))
    return drifted


def _sum(served: Served, rows: Iterable[Window]) -> Counts:
    """Return the sum of a version's counts, without those of another registry's version with the same number."""
    counts = served.layout.empty()
    for row in rows:
        if row.source == served.record.source:
            counts.add(Counts.loads(row.counts))
    return counts


def step(engine: Engine, settings: Settings, lineup: Lineup) -> Step | None:
    """Return the current step of a canary's trial with its verdict; None without a canary. Raises DatabaseError."""
    if lineup.canary is None:
        return None
    rollout = lineup.canary.rollout
    rows = windows.of_trial(engine, lineup.canary.served.model, lineup.trial)
    counts = [
        _sum(role.served, (row for row in rows if (row.version, row.role) == (role.served.version, role.name)))
        for role in lineup.roles
    ]
    since = _began(rollout, rows)
    outcomes = [predictions.live(engine, role.served.model, role.served.version, since) for role in lineup.roles]
    is_shadow = rollout.mode == "shadow"
    verdict = canary.judge(counts[0], counts[1], (outcomes[0], outcomes[1]), rules(settings), is_shadow)
    return Step(counts[0], counts[1], verdict, _next_rollout(rollout, settings.canary_steps))


def _began(rollout: Rollout, rows: Sequence[Window]) -> float:
    """Return when a step began, in seconds since 1970: an alias set by other tools has no time, but perhaps counts."""
    if rollout.since:
        return datetime.fromisoformat(rollout.since).timestamp()
    return min((row.started for row in rows), default=time.time())


def _next_rollout(rollout: Rollout, steps: tuple[float, ...]) -> Rollout | None:
    """Return the step after a rollout; None when it is production. After a shadow comes the first share of requests."""
    weight = steps[0] if rollout.mode == "shadow" else next((step for step in steps if step > rollout.weight), 1)
    return None if weight == 1 else Rollout(weight, "split")


def describe_step(step: Step) -> dict[str, Any]:
    """Return a step as answers, audit and log show it."""
    return {
        "outcome": step.verdict.outcome,
        "reason": step.verdict.reason,
        "next_weight": step.next.weight if step.next else 1,
        "checks": [asdict(check) for check in step.verdict.checks],
    }


def describe_drift(drifted: VersionDrift) -> dict[str, Any]:
    """Return a version's drift as answers show it."""
    return {
        "version": drifted.role.served.version,
        "role": drifted.role.name,
        "verdict": drifted.verdict,
        "rows": drifted.counts.rows,
        "features": [asdict(feature) for feature in drifted.features],
        "prediction": asdict(drifted.predictions),
    }
