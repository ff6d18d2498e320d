"""gunicorn's configuration: `gunicorn -c python:labstack.api.server.config labstack.api.server.wsgi:app`."""

import gc
import math
import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gunicorn import glogging
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.workers.base import Worker

from labstack import logs, settings
from labstack.api import metrics
from labstack.api.server.worker import assign, forget

if TYPE_CHECKING:
    from labstack.api.service import Service

OWN_DESCRIPTORS = 128  # of a worker, beside its connections: the database's, the registry's, files that it reads

_settings = settings.load()
settings.require_operators_token(_settings)
for _library in ("OMP", "OPENBLAS", "MKL"):  # one thread computes each prediction; said before numpy is imported
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")


class Logger(glogging.Logger):  # type: ignore[misc]
    """gunicorn's own records in the form of all others."""

    def setup(self, cfg: Config) -> None:
        """Called at the start and at each reload of the configuration."""
        logs.configure(_settings.log_level)
        self.error_log.propagate = True


_host = f"[{_settings.api_host}]" if ":" in _settings.api_host else _settings.api_host
bind = f"{_host}:{_settings.api_port}"
workers = _settings.api_workers
worker_class = "labstack.api.server.worker.FairWorker"
threads = _settings.api_threads
_descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
if _descriptors != resource.RLIM_INFINITY:  # more connections wait, so that workers can open files
    worker_connections = max(threads + 1, min(1000, _descriptors - OWN_DESCRIPTORS))
keepalive = 5
timeout = max(30, 3 * math.ceil(_settings.prediction_seconds))  # the loop may predict by canary and production in turn
forwarder_headers = ""  # no caller sets SCRIPT_NAME or PATH_INFO by a header
# The arbiter imports everything once and workers share its memory; models, threads and connections come after the fork.
preload_app = True
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108  # heartbeats must not wait for a disk
control_socket_disable = True
logger_class = Logger


def on_starting(_server: Arbiter) -> None:
    """In the arbiter, before it listens."""
    if _settings.require_production_model:
        from labstack.api.serving.refusal import require_production_model  # here, as it imports numpy

        require_production_model(_settings)


def when_ready(server: Arbiter) -> None:
    """In the arbiter, before the first fork: collections must not touch, and so copy, the memory that workers share."""
    service = _service(server.app.wsgi())
    service.prepare()
    control = service.control
    control.reset()
    metrics.begin(control.metrics)
    gc.collect()
    gc.freeze()


def pre_fork(server: Arbiter, worker: Worker) -> None:
    """In the arbiter."""
    assign(worker, server.WORKERS.values(), server.SIG_QUEUE)


def post_fork(_server: Arbiter, worker: Worker) -> None:
    """In the worker, first."""
    metrics.take(worker.slot)


def post_worker_init(worker: Worker) -> None:
    """Start the worker's service before it takes requests."""
    _service(worker.wsgi).start()
    worker.is_quick = worker.wsgi.wsgi_app.is_quick


def worker_exit(_server: Arbiter, worker: Worker) -> None:
    """Let the recorder finish."""
    if hasattr(worker, "wsgi"):
        _service(worker.wsgi).stop()


def child_exit(server: Arbiter, worker: Worker) -> None:
    """In the arbiter, however the worker ended: no reload waits for it any more."""
    forget(worker)
    metrics.forget(worker.slot)
    _service(server.app.wsgi()).control.forget(worker.pid)


def on_exit(server: Arbiter) -> None:
    """In the arbiter, last: take the control folder away."""
    _service(server.app.wsgi()).control.remove()


def _service(app: Any) -> "Service":
    found: Service = app.extensions["labstack"]
    return found
