"""What the console shows of one model: gathered here, laid out by its template.

A part that cannot be had, as our database or the registry is away, is replaced by what is wrong; the others stay.
"""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from labstack.api import health
from labstack.api.recording.counter import PERIODS
from labstack.api.rollout import assessment
from labstack.api.rollout.assessment import VersionDrift
from labstack.api.service import Service
from labstack.errors import LabError
from labstack.monitoring import drift
from labstack.monitoring.counts import Counts
from labstack.monitoring.drift import VERDICTS
from labstack.registry.roles import ROLES, Roles, read_roles
from labstack.settings import without_credentials
from labstack.store import audit, predictions
from labstack.store.predictions import Prediction

RECENT = 15
ENTRIES = 15
VERSIONS = 10
METRICS = 4
CHARTS = 200
NO_METRIC = re.compile("_low$|_high$|^cv_|^onnx_parity$")  # what runs say of a metric's interval, and of the search
GATES_TAG = "labstack.gates"

T = TypeVar("T")
Answered = dict[tuple[str, int], list[Counts]]  # by role and version, period by period


class Part(NamedTuple):
    """A part of the page: what it shows, or why it cannot."""

    value: Any = None
    error: str = ""


class Traffic(NamedTuple):
    """The requests of a role in the window, with outcomes: of one version, or of all versions together (None)."""

    role: str
    version: int | None
    counts: Counts
    live: dict[str, Any]


def page(service: Service, model: str, no_moves: str, versions_before: int) -> dict[str, Any]:
    """What the template shows of a model.

    `no_moves` is the reason why the caller is not an operator, empty for an operator. Versions without a role are those
    below `versions_before`.
    """
    follower, settings = service.follower, service.settings
    lineup = follower.lineups.get(model)
    away = follower.following.registry_error  # not to be waited for, then
    registered = Part(error=away) if away else _part(lambda: _versions(service, model, versions_before))
    roles, versions, older = registered.value or (Roles(), [], None)
    shown: dict[str, Any] = {
        "model": model,
        "models": sorted(set(follower.lineups) | follower.following.without_production | {model}),
        "lineup": lineup,
        **health.look(service)._asdict(),
        "database_error": "",
        "now": datetime.now(UTC),
        "is_operator": not no_moves,
        "no_moves": no_moves,
        "needs_token": settings.api_admin_token is not None,
        "mlflow": without_credentials(settings.mlflow_public_url).rstrip("/"),
        "window_seconds": settings.drift_window_seconds,
        "auto": settings.canary_auto,
        "thresholds": assessment.thresholds(settings),
        "prediction_log": settings.prediction_log,
        "refusal": "" if lineup else service.refusal(model).detail,
        "audit": _part(lambda: audit.history(service.engine, model, limit=ENTRIES)),
        "versions": Part(versions, registered.error),
        "metrics": _columns(versions),
        "older": older,
        "previous": Part(roles.previous, registered.error),
    }
    if lineup is not None:
        found = _part(lambda: assessment.recent(service.engine, settings, model))
        drifted = Part(assessment.drifts(settings, lineup, found.value)) if not found.error else found
        now = time.time()
        answered = {} if found.error else assessment.traffic(settings, lineup, found.value, now)
        shown |= {
            "canary": _part(lambda: assessment.step(service.engine, settings, lineup)),
            "traffic": found if found.error else _part(lambda: _traffic(service, model, answered)),
            "traffic_chart": answered and _traffic_chart(answered, assessment.period_seconds(settings), now),
            "drift": drifted,
            "drift_verdict": "" if drifted.error else drifted.value[0].verdict,
            "drift_charts": [] if drifted.error else _drift_charts(drifted.value[0]),
            "recent": _part(lambda: [_row(one) for one in predictions.recent(service.engine, model, RECENT)]),
        }
    return shown


def consequence(move: str, model: str, roles: Roles, version: int | None) -> str:
    """What a move will do, for people, before it is made. Raises LabError when there is nothing to do."""
    now, canary, previous = roles.production, roles.canary, roles.previous
    match move:
        case "reload":
            return "Every worker looks at the registry now and follows it. No role moves."
        case "canary" if version == canary:
            return f"Version {version} stays the canary, and gets another share of the requests."
        case "canary" if canary is None and version != now:
            return (
                f"Version {version} becomes the canary beside production, version {now}. In a split it answers its "
                "share of the requests; in shadow it answers none, and is compared."
            )
        case "accept" if canary is not None:
            return f"Version {canary} becomes production and answers every request; version {now} becomes previous."
        case "reject" if canary is not None:
            return f"Version {canary} is taken out; production, version {now}, answers every request again."
        case "rollback" if previous is not None:
            back = f"Version {previous} becomes production again and answers every request"
            return f"{back}; version {now} becomes previous."
    raise LabError(f"That cannot be done with {model!r} as its roles are now: look at the page again.")


def _part(gather: Callable[[], Any]) -> Part:
    try:
        return Part(gather())
    except LabError as error:
        return Part(error=str(error))


def _traffic(service: Service, model: str, answered: Answered) -> list[Traffic]:
    """Each role's sum, where several versions held it, and each version's share. Raises DatabaseError."""
    live = {version: predictions.live(service.engine, model, version).summary for version in {of for _, of in answered}}
    rows = []
    for role, versions in _by_role(answered).items():
        sums = {version: assessment.total(periods) for version, periods in versions.items()}
        if len(sums) > 1:
            rows.append(Traffic(role, None, assessment.total(sums.values()), {}))
        rows += [Traffic(role, version, counts, live[version]) for version, counts in sums.items()]
    return rows


def _by_role(answered: Answered) -> dict[str, dict[int, list[Counts]]]:
    found: dict[str, dict[int, list[Counts]]] = {}
    for (role, version), periods in answered.items():
        found.setdefault(role, {})[version] = periods
    return found


def _versions(service: Service, model: str, before: int) -> tuple[Roles, list[dict[str, Any]], int | None]:
    """The roles; the versions that have one, then the newest others before a number; and where older ones begin.

    Of each its roles, gates and run; the registry is asked for the runs of these versions alone.
    """
    roles = read_roles(service.client, model)
    held = {number: name for name in reversed(ROLES) if (number := getattr(roles, name))}
    every = service.client.versions(model)
    first = sorted((one for one in every if one.number in held), key=lambda one: ROLES.index(held[one.number]))
    others = [one for one in every if one.number not in held and one.number < before]
    shown = []
    for version in [*first, *others[:VERSIONS]]:
        run = service.client.run_of(version)
        judged_by = run.params.get("metric")  # which other trainings may mean otherwise
        shown.append(
            {
                "number": version.number,
                "roles": [name for name in ROLES if getattr(roles, name) == version.number],
                "gates": version.tags.get(GATES_TAG, ""),
                "created": version.created,
                "run_id": version.run_id,
                "experiment": run.experiment,
                "judged_by": judged_by if judged_by in run.metrics else None,
                "metrics": {name: value for name, value in run.metrics.items() if not NO_METRIC.search(name)},
            }
        )
    return roles, shown, others[VERSIONS - 1].number if len(others) > VERSIONS else None


def _columns(versions: Sequence[dict[str, Any]]) -> list[str]:
    """The metrics that a table of versions shows: those that some were judged by, then those that most have."""
    judged = [one["judged_by"] for one in versions if one["judged_by"]]
    common = Counter(sorted(name for one in versions for name in one["metrics"]))
    return list(dict.fromkeys([*judged, *(name for name, _ in common.most_common())]))[:METRICS]


def _row(one: Prediction) -> dict[str, Any]:
    outputs = json.loads(one.outputs)
    return {
        "at": datetime.fromtimestamp(one.at, UTC),
        "request_id": one.request_id,
        "version": one.version,
        "role": one.role,
        "latency_ms": one.latency_ms,
        "rows": len(outputs),
        "input": json.loads(one.inputs)[0] if one.inputs else None,
        "output": outputs[0],
    }


def _traffic_chart(answered: Answered, length: float, now: float) -> dict[str, Any]:
    """Requests and latency by period, of each role, and how the requests are shared by the versions that held it."""
    last = now // length * length
    starts = [last - length * back for back in reversed(range(PERIODS))]
    lengths = [length] * (PERIODS - 1) + [max(now - last, 1.0)]  # the last one lasts
    series = []
    for role, versions in _by_role(answered).items():
        by_period = [assessment.total(held) for held in zip(*versions.values(), strict=True)]
        shares = [
            [f"version {version}: {periods[place].requests:,}" for version, periods in versions.items()]
            for place in range(PERIODS)
        ]
        series.append(
            {
                "role": role,
                "name": f"{role} ({'version' if len(versions) == 1 else 'versions'} {', '.join(map(str, versions))})",
                "requests": [counts.requests / long for counts, long in zip(by_period, lengths, strict=True)],
                "shares": [", ".join(texts) for texts in shares],
                "p50": [_milliseconds(counts, 0.5) for counts in by_period],
                "p99": [_milliseconds(counts, 0.99) for counts in by_period],
            }
        )
    return {"times": [datetime.fromtimestamp(start, UTC).isoformat() for start in starts], "series": series}


def _milliseconds(counts: Counts, share: float) -> float | None:
    found = counts.quantile(share)
    return None if found is None else found * 1000


def _drift_charts(found: VersionDrift) -> list[dict[str, Any]]:
    """Histograms of the predictions and of the features, the most drifted first."""
    layout, counts = found.role.served.layout, found.counts
    columns = [(found.predictions, layout.predictions, counts.outputs)] + [
        (one, spread, layout.of_feature(counts, number))
        for number, (one, spread) in enumerate(zip(found.features, layout.features, strict=True))
    ]
    first, *others = columns
    others.sort(key=lambda column: (-VERDICTS.index(column[0].verdict), -(column[0].psi or 0)))
    return [
        {"drift": one, "histogram": vars(drift.histogram(spread, now))}
        for one, spread, now in [first, *others][:CHARTS]
        if spread.reference.sum()
    ]
