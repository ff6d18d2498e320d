"""The health of this worker and the others, as /health, /ready, /metrics and the console report it.

A fault is a sentence for people. No fault stops serving by itself.
"""

import os
import shutil
import time
from pathlib import Path
from typing import Literal, NamedTuple

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from sqlalchemy import make_url

from labstack.api import metrics
from labstack.api.service import Service
from labstack.api.serving.control import REGISTRY, STARTING
from labstack.settings import Settings

SILENT_SECONDS = 10.0  # the time without the registry's answer, or in one load, that is still no fault
LEAST_FREE_BYTES = 64 << 20


class Health(NamedTuple):
    """The status of the API, and all current faults."""

    status: Literal["ok", "starting", "degraded"]
    faults: list[str]


def look(service: Service) -> Health:
    """Return the health of the API now."""
    current = faults(service)
    follower = service.follower
    if follower.waiting_seconds is not None and not follower.lineups:
        return Health("starting", current)
    return Health("degraded" if current else "ok", current)


def faults(service: Service) -> list[str]:
    """Return all current faults, each once: of the registry, loads, workers, our database, metrics and disks."""
    follower = service.follower
    errors = follower.following.errors.values()
    current = [*errors, *_of_workers(service), *_of_disks(service.settings)]
    current += [fault for fault in (service.recorder.database_fault, metrics.fault()) if fault is not None]
    if follower.loader.loading is not None:
        version, since = follower.loader.loading
        if (seconds := time.monotonic() - since) > SILENT_SECONDS:
            current.append(f"Worker {os.getpid()} has been loading {version} for {seconds:.0f} seconds.")
    return list(dict.fromkeys(current))


def registry_answers(service: Service) -> bool:
    """Return true when every worker's last look at the registry succeeded and is recent."""
    states = [state for state in service.control.states() if state.generation != STARTING]
    fresh = [state.contact is not None and not _is_silent(service.settings, state.contact) for state in states]
    return bool(fresh) and all(fresh) and not any(REGISTRY in state.errors for state in states)


def gauge(url: str, answers: bool) -> Metric:
    """Return the gauge that says whether the registry at a URL answers every worker."""
    metric = GaugeMetricFamily(
        "labstack_registry_reachable", "1 when the registry answers every worker.", labels=["url"]
    )
    metric.add_metric([url], answers)
    return metric


def _of_workers(service: Service) -> list[str]:
    """Return the errors that the workers of this API report, and a fault for each that has not looked lately."""
    current: list[str] = []
    for state in service.control.states():
        current += state.errors.values()
        if state.contact is not None and REGISTRY not in state.errors and _is_silent(service.settings, state.contact):
            age = time.time() - state.contact
            current.append(f"Worker {state.pid} has not followed the registry for {age:.0f} seconds.")
    return current


def _is_silent(settings: Settings, contact: float) -> bool:
    """Return true when the registry's last answer, a time in seconds since 1970, is too old."""
    return time.time() - contact > max(SILENT_SECONDS, 3 * settings.follow_interval_seconds)


def _of_disks(settings: Settings) -> list[str]:
    """Return a fault for each folder, of our database and of the cache, whose disk is nearly full."""
    url = make_url(settings.lab_database_url)
    folders = {settings.api_cache_dir}
    if url.get_backend_name() == "sqlite" and url.database:
        folders.add(Path(url.database).parent)
    return [
        f"The disk of {folder} is nearly full: {free / 2**20:.0f} MB are free."
        for folder in sorted(folders)
        if folder.exists() and (free := shutil.disk_usage(folder).free) < LEAST_FREE_BYTES
    ]
