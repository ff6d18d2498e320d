"""What the console shows of one model: gathered here, laid out by its template.

A part that cannot be had, as our database or the registry is away, is replaced by what is wrong; the others stay.
"""

import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from labstack import registry
from labstack.api import monitor
from labstack.api.monitor import Drifted
from labstack.api.service import Service
from labstack.api.serving.lineup import Lineup, Role
from labstack.api.windows import PERIODS
from labstack.errors import LabError
from labstack.monitoring import drift
from labstack.monitoring.counts import Counts
from labstack.monitoring.drift import VERDICTS
from labstack.settings import without_credentials
from labstack.store import audit, predictions
from labstack.store.predictions import Prediction
from labstack.store.windows import Window

RECENT = 15
ENTRIES = 15
VERSIONS = 10
CHARTS = 200
GATES_TAG = "labstack.gates"

T = TypeVar("T")


class Part(NamedTuple):
    """A part of the page: what it shows, or why it cannot."""

    value: Any = None
    error: str = ""


class Traffic(NamedTuple):
    """What one version did in its role in the window."""

    role: Role
    counts: Counts
    live: dict[str, Any]


def page(service: Service, model: str, no_moves: str) -> dict[str, Any]:
    """What the template shows of a model; `no_moves` says why whoever looks is no operator, and is empty for one."""
    follower, settings = service.follower, service.settings
    lineup = follower.lineups.get(model)
    away = follower.following.registry_error  # not to be waited for, then
    registered = Part(error=away) if away else _part(lambda: _versions(service, model))
    roles, versions = registered.value or (registry.Roles(), [])
    shown: dict[str, Any] = {
        "model": model,
        "models": sorted(set(follower.lineups) | follower.following.without_production | {model}),
        "lineup": lineup,
        "following": follower.following,
        "status": status(service),
        "database_error": "",
        "now": datetime.now(UTC),
        "is_operator": not no_moves,
        "no_moves": no_moves,
        "needs_token": settings.api_admin_token is not None,
        "mlflow": without_credentials(settings.mlflow_public_url).rstrip("/"),
        "window_seconds": settings.drift_window_seconds,
        "auto": settings.canary_auto,
        "thresholds": monitor.thresholds(settings),
        "prediction_log": settings.prediction_log,
        "refusal": "" if lineup else service.refusal(model).detail,
        "audit": _part(lambda: audit.history(service.engine, model, limit=ENTRIES)),
        "versions": Part(versions, registered.error),
        "previous": Part(roles.previous, registered.error),
    }
    if lineup is not None:
        found = _part(lambda: monitor.recent(service.engine, settings, model))
        drifted = Part(monitor.drifts(settings, lineup, found.value)) if not found.error else found
        shown |= {
            "canary": _part(lambda: monitor.step(service.engine, settings, lineup)),
            "traffic": drifted if drifted.error else _part(lambda: _traffic(service, drifted.value)),
            "traffic_chart": None
            if found.error
            else _traffic_chart(lineup, found.value, settings.drift_window_seconds),
            "drift": drifted,
            "drift_verdict": "" if drifted.error else drifted.value[0].verdict,
            "drift_charts": [] if drifted.error else _drift_charts(drifted.value[0]),
            "recent": _part(lambda: [_row(one) for one in predictions.recent(service.engine, model, RECENT)]),
        }
    return shown


def status(service: Service) -> str:
    """In a word how the API does."""
    follower = service.follower
    if follower.waiting_seconds is not None and not follower.lineups:
        return "starting"
    return "degraded" if follower.following.errors else "ok"


def consequence(move: str, model: str, roles: registry.Roles, version: int | None) -> str:
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


def _traffic(service: Service, found: Sequence[Drifted]) -> list[Traffic]:
    return [
        Traffic(
            one.role,
            one.counts,
            predictions.live(service.engine, one.role.served.model, one.role.served.version).summary,
        )
        for one in found
    ]


def _versions(service: Service, model: str) -> tuple[registry.Roles, list[dict[str, Any]]]:
    """The roles, and the newest versions with theirs, their gates and runs."""
    roles = registry.roles(service.client, model)
    shown = []
    for version in service.client.versions(model)[:VERSIONS]:
        run = service.client.run_of(version)
        shown.append(
            {
                "number": version.number,
                "role": next((name for name in registry.ROLES if getattr(roles, name) == version.number), ""),
                "gates": version.tags.get(GATES_TAG, ""),
                "created": version.created,
                "run_id": version.run_id,
                "experiment": run.experiment,
                "metrics": {n: value for n, value in run.metrics.items() if not n.endswith(("_low", "_high"))},
            }
        )
    return roles, shown


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


def _traffic_chart(lineup: Lineup, found: Sequence[Window], seconds: float) -> dict[str, Any]:
    """Requests and latency by period, of each version in a role."""
    length = seconds / PERIODS
    last = time.time() // length * length
    starts = [last - length * back for back in reversed(range(PERIODS))]
    lengths = [length] * (PERIODS - 1) + [max(time.time() - last, 1.0)]  # the last one lasts
    series = []
    for role in lineup.roles:
        served = role.served
        by_period = [
            monitor.added(served, (w for w in found if w.version == served.version and abs(w.started - start) < 0.01))
            for start in starts
        ]
        series.append(
            {
                "name": f"{role.name} (version {served.version})",
                "requests": [counts.requests / long for counts, long in zip(by_period, lengths, strict=True)],
                "p50": [_milliseconds(counts, 0.5) for counts in by_period],
                "p99": [_milliseconds(counts, 0.99) for counts in by_period],
            }
        )
    return {"times": [datetime.fromtimestamp(start, UTC).isoformat() for start in starts], "series": series}


def _milliseconds(counts: Counts, share: float) -> float | None:
    found = counts.quantile(share)
    return None if found is None else found * 1000


def _drift_charts(found: Drifted) -> list[dict[str, Any]]:
    """Histograms of the predictions and of the features, the most drifted first."""
    layout, counts = found.role.served.layout, found.counts
    columns = [(found.predictions, layout.predictions, counts.outputs)] + [
        (one, spread, layout.seen(counts, number))
        for number, (one, spread) in enumerate(zip(found.features, layout.features, strict=True))
    ]
    first, *others = columns
    others.sort(key=lambda column: (-VERDICTS.index(column[0].verdict), -(column[0].psi or 0)))
    return [
        {"drift": one, "histogram": vars(drift.histogram(spread, now))}
        for one, spread, now in [first, *others][:CHARTS]
        if spread.reference.sum()
    ]
