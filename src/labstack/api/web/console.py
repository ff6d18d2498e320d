"""The values that the console's template shows of one model.

A part that cannot be read, because the database or the registry is unreachable, is replaced by the error; the other
parts stay.
"""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from labstack.api import health
from labstack.api.recording.counter import PERIODS
from labstack.api.rollout import assessment
from labstack.api.rollout.assessment import VersionDrift
from labstack.api.service import Service
from labstack.api.serving.lineup import Lineup
from labstack.api.serving.refusal import refusal
from labstack.errors import LabError
from labstack.monitoring import drift
from labstack.monitoring.counts import Counts
from labstack.monitoring.drift import VERDICTS
from labstack.registry.client import Version
from labstack.registry.roles import GATES_TAG, ROLES, Roles, read_roles
from labstack.settings import without_credentials
from labstack.store import audit, predictions
from labstack.store.predictions import Prediction

RECENT = 15
ENTRIES = 15
VERSIONS = 10
METRICS = 4
CHARTS = 200
HIDDEN_METRIC = re.compile("_low$|_high$|^cv_|^onnx_parity$")  # bounds of intervals, and what the search measured

Answered = dict[tuple[str, int], list[Counts]]  # by role and version, one for each period


class Part(NamedTuple):
    """A part of the page: its value, or the error that stands in its place."""

    value: Any = None
    error: str = ""


class Traffic(NamedTuple):
    """The requests of a role in the window, with outcomes: of one version, or of all versions together (None)."""

    role: str
    version: int | None
    counts: Counts
    live: dict[str, Any]


class Versions(NamedTuple):
    """The roles of a model; rows of the table of versions; the number below which the next page begins, if any."""

    roles: Roles
    rows: list[dict[str, Any]]
    older: int | None


def page(service: Service, model: str, no_moves: str, versions_before: int) -> dict[str, Any]:
    """Return the values that the template shows of a model.

    `no_moves` is the reason why the caller is not an operator, empty for an operator. Versions without a role are those
    below `versions_before`.
    """
    follower, settings = service.follower, service.settings
    lineup = follower.lineups.get(model)
    values = {
        "model": model,
        "models": sorted(set(follower.lineups) | follower.following.without_production | {model}),
        "lineup": lineup,
        **health.look(service)._asdict(),
        "now": datetime.now(UTC),
        "is_operator": not no_moves,
        "no_moves": no_moves,
        "needs_token": settings.api_admin_token is not None,
        "mlflow": without_credentials(settings.mlflow_public_url).rstrip("/"),
        "window_seconds": settings.drift_window_seconds,
        "auto": settings.canary_auto,
        "thresholds": assessment.thresholds(settings),
        "prediction_log": settings.prediction_log,
        "refusal": "" if lineup else refusal(service.settings, service.follower, model).detail,
        "audit": _part(lambda: audit.history(service.engine, model, limit=ENTRIES)),
        **_registered(service, model, versions_before),
    }
    return values if lineup is None else values | _served(service, lineup)


def consequence(move: str, model: str, roles: Roles, version: int | None) -> str:
    """Return what a move will do, as text for operators. Raises LabError when the roles do not allow it."""
    production, canary, previous = roles.production, roles.canary, roles.previous
    match move:
        case "reload":
            return "Every worker reads the roles from the registry now and follows them. No role moves."
        case "canary" if version == canary:
            return f"Version {version} stays the canary, and gets another share of the requests."
        case "canary" if canary is None and version != production:
            return (
                f"Version {version} becomes the canary; production stays version {production}. In split mode the "
                "canary answers its share of the requests; in shadow mode it answers none, and its predictions are "
                "compared with production's."
            )
        case "accept" if canary is not None:
            return (
                f"Version {canary} becomes production and answers every request; version {production} becomes previous."
            )
        case "reject" if canary is not None:
            return f"Version {canary} is removed; production, version {production}, answers every request again."
        case "rollback" if previous is not None:
            return (
                f"Version {previous} becomes production again and answers every request; "
                f"version {production} becomes previous."
            )
    raise LabError(f"The roles of {model!r} do not allow this move now: go back to the console and look again.")


def _part(read: Callable[[], Any]) -> Part:
    try:
        return Part(read())
    except LabError as error:
        return Part(error=str(error))


def _registered(service: Service, model: str, before: int) -> dict[str, Any]:
    """Return what the registry says of a model; it is not asked while it is unreachable, as that would take long."""
    error = service.follower.following.registry_error
    part = Part(error=error) if error else _part(lambda: _versions(service, model, before))
    versions: Versions = part.value or Versions(Roles(), [], None)
    return {
        "versions": Part(versions.rows, part.error),
        "metrics": _metrics(versions.rows),
        "older": versions.older,
        "previous": Part(versions.roles.previous, part.error),
    }


def _served(service: Service, lineup: Lineup) -> dict[str, Any]:
    """Return what the database says of a model that is served."""
    settings, model, now = service.settings, lineup.production.served.model, time.time()
    windows = _part(lambda: assessment.recent(service.engine, settings, model))
    values: dict[str, Any] = {
        "canary": _part(lambda: assessment.step(service.engine, settings, lineup)),
        "recent": _part(lambda: [_prediction(row) for row in predictions.recent(service.engine, model, RECENT)]),
    }
    if windows.error:
        return values | {"traffic": windows, "traffic_chart": None, "drift": windows, "drift_verdict": ""}
    answered = assessment.traffic(settings, lineup, windows.value, now)
    drifted = assessment.drifts(settings, lineup, windows.value)
    return values | {
        "traffic": _part(lambda: _traffic(service, model, answered)),
        "traffic_chart": _traffic_chart(answered, assessment.period_seconds(settings), now),
        "drift": Part(drifted),
        "drift_verdict": drifted[0].verdict,
        "drift_charts": _drift_charts(drifted[0]),
    }


def _traffic(service: Service, model: str, answered: Answered) -> list[Traffic]:
    """Return each role's sum, where several versions held it, and each version's part. Raises DatabaseError."""
    numbers = {version for _, version in answered}
    live = {number: predictions.live(service.engine, model, number).summary for number in numbers}
    rows = []
    for role, versions in _by_role(answered).items():
        sums = {version: assessment.total(periods) for version, periods in versions.items()}
        if len(sums) > 1:
            rows.append(Traffic(role, None, assessment.total(sums.values()), {}))
        rows += [Traffic(role, version, counts, live[version]) for version, counts in sums.items()]
    return rows


def _by_role(answered: Answered) -> dict[str, dict[int, list[Counts]]]:
    by_role: dict[str, dict[int, list[Counts]]] = {}
    for (role, version), periods in answered.items():
        by_role.setdefault(role, {})[version] = periods
    return by_role


def _versions(service: Service, model: str, before: int) -> Versions:
    """Return the versions that have a role, then the newest others below a number.

    The registry is asked for the runs of these versions alone.
    """
    roles = read_roles(service.client, model)
    role_of = {number: name for name in reversed(ROLES) if (number := getattr(roles, name))}
    versions = service.client.versions(model)
    with_role = [version for version in versions if version.number in role_of]
    with_role.sort(key=lambda version: ROLES.index(role_of[version.number]))
    others = [version for version in versions if version.number not in role_of and version.number < before]
    rows = [_version(service, roles, version) for version in [*with_role, *others[:VERSIONS]]]
    return Versions(roles, rows, others[VERSIONS - 1].number if len(others) > VERSIONS else None)


def _version(service: Service, roles: Roles, version: Version) -> dict[str, Any]:
    """Return a row of the table of versions: roles, gates and run of one. Raises RegistryError."""
    run = service.client.run_of(version)
    judged_by = run.params.get("metric")  # a run of other code may use this parameter for something else
    return {
        "number": version.number,
        "roles": [name for name in ROLES if getattr(roles, name) == version.number],
        "gates": version.tags.get(GATES_TAG, ""),
        "created": version.created,
        "run_id": version.run_id,
        "experiment": run.experiment,
        "judged_by": judged_by if judged_by in run.metrics else None,
        "metrics": {name: value for name, value in run.metrics.items() if not HIDDEN_METRIC.search(name)},
    }


def _metrics(versions: Sequence[dict[str, Any]]) -> list[str]:
    """Return the columns of the table of versions: the metrics that judged one of them, then the most common."""
    judged = [version["judged_by"] for version in versions if version["judged_by"]]
    common = Counter(sorted(name for version in versions for name in version["metrics"]))
    return list(dict.fromkeys([*judged, *(name for name, _ in common.most_common())]))[:METRICS]


def _prediction(row: Prediction) -> dict[str, Any]:
    outputs = json.loads(row.outputs)
    return {
        "at": datetime.fromtimestamp(row.at, UTC),
        "request_id": row.request_id,
        "version": row.version,
        "role": row.role,
        "latency_ms": row.latency_ms,
        "rows": len(outputs),
        "input": json.loads(row.inputs)[0] if row.inputs else None,
        "output": outputs[0],
    }


def _traffic_chart(answered: Answered, period_seconds: float, now: float) -> dict[str, Any]:
    """Return, for each role and period, requests a second, latencies in ms, and the requests of each version."""
    last = now // period_seconds * period_seconds
    starts = [last - period_seconds * back for back in reversed(range(PERIODS))]
    seconds = [period_seconds] * (PERIODS - 1) + [max(now - last, 1.0)]  # the last period is not over
    series = []
    for role, versions in _by_role(answered).items():
        periods = [assessment.total(counts) for counts in zip(*versions.values(), strict=True)]
        shares = [
            ", ".join(f"version {version}: {counts[number].requests:,}" for version, counts in versions.items())
            for number in range(PERIODS)
        ]
        series.append(
            {
                "role": role,
                "name": f"{role} ({'version' if len(versions) == 1 else 'versions'} {', '.join(map(str, versions))})",
                "requests": [counts.requests / length for counts, length in zip(periods, seconds, strict=True)],
                "shares": shares,
                "p50": [_milliseconds(counts, 0.5) for counts in periods],
                "p99": [_milliseconds(counts, 0.99) for counts in periods],
            }
        )
    return {"times": [datetime.fromtimestamp(start, UTC).isoformat() for start in starts], "series": series}


def _milliseconds(counts: Counts, share: float) -> float | None:
    seconds = counts.quantile(share)
    return None if seconds is None else seconds * 1000


def _drift_charts(drifted: VersionDrift) -> list[dict[str, Any]]:
    """Return histograms of the predictions, then of the features, the most drifted first."""
    layout, counts = drifted.role.served.layout, drifted.counts
    features = [
        (feature, reference, layout.of_feature(counts, number))
        for number, (feature, reference) in enumerate(zip(drifted.features, layout.features, strict=True))
    ]
    features.sort(key=lambda column: (-VERDICTS.index(column[0].verdict), -(column[0].psi or 0)))
    columns = [(drifted.predictions, layout.predictions, counts.outputs), *features]
    return [
        {"drift": column, "histogram": vars(drift.histogram(reference, values))}
        for column, reference, values in columns[:CHARTS]
        if reference.reference.sum()
    ]
