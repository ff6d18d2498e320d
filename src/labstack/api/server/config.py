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

OWN_DESCRIPTORS = 128  # of a worker, in addition to callers' connections: for the database, the registry and files

_settings = settings.load()
settings.require_operators_token(_settings)
for _library in ("OMP", "OPENBLAS", "MKL"):  # one thread for each prediction; set before numpy is imported
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")


class Logger(glogging.Logger):  # type: ignore[misc]
    """gunicorn's own log records, in the form of all others."""

    def setup(self, cfg: Config) -> None:
        """Configure logging; called at the start and at each reload of the configuration."""
        logs.configure(_settings.log_level)
        self.error_log.propagate = True


_host = f"[{_settings.api_host}]" if ":" in _settings.api_host else _settings.api_host
bind = f"{_host}:{_settings.api_port}"
workers = _settings.api_workers
worker_class = "labstack.api.server.worker.FairWorker"
threads = _settings.api_threads
_descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
if _descriptors != resource.RLIM_INFINITY:  # connections above this wait, so that workers can open files
    worker_connections = max(threads + 1, min(1000, _descriptors - OWN_DESCRIPTORS))
keepalive = 5
timeout = max(30, 3 * math.ceil(_settings.prediction_seconds))  # the loop may predict with canary and production
forwarder_headers = ""  # no caller may set SCRIPT_NAME or PATH_INFO by a header
# The arbiter imports everything once, and workers share its memory; models, threads and connections are made after the
# fork.
preload_app = True
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108  # heartbeats must not wait for a disk
control_socket_disable = True
logger_class = Logger


def on_starting(_server: Arbiter) -> None:
    """Check the default model, if required; called in the arbiter, before it listens."""
    if _settings.require_production_model:
        from labstack.api.serving.refusal import require_production_model  # here, as it imports numpy

        require_production_model(_settings)


def when_ready(server: Arbiter) -> None:
    """Prepare what workers share; called in the arbiter, before the first fork.

    Objects are frozen, so that garbage collections do not touch, and so copy, the memory that workers share.
    """
    service = _service(server.app.wsgi())
    service.prepare()
    control = service.control
    control.reset()
    metrics.begin(control.metrics)
    gc.collect()
    gc.freeze()


def pre_fork(server: Arbiter, worker: Worker) -> None:
    """Give a worker its slot; called in the arbiter."""
    assign(worker, server.WORKERS.values(), server.SIG_QUEUE)


def post_fork(_server: Arbiter, worker: Worker) -> None:
    """Take over the metrics of the slot; called first in the worker."""
    metrics.take(worker.slot)


def post_worker_init(worker: Worker) -> None:
    """Start the worker's threads before it takes requests."""
    _service(worker.wsgi).start()
    worker.is_quick = worker.wsgi.wsgi_app.is_quick


def worker_exit(_server: Arbiter, worker: Worker) -> None:
    """Stop the worker's threads; the recorder finishes its queue."""
    if hasattr(worker, "wsgi"):
        _service(worker.wsgi).stop()


def child_exit(server: Arbiter, worker: Worker) -> None:
    """Forget a worker that ended, for any reason, so that no reload waits for it; called in the arbiter."""
    forget(worker)
    metrics.forget(worker.slot)
    _service(server.app.wsgi()).control.forget(worker.pid)


def on_exit(server: Arbiter) -> None:
    """Remove the control folder; called last in the arbiter."""
    _service(server.app.wsgi()).control.remove()


def _service(app: Any) -> "Service":
    service: Service = app.extensions["labstack"]
    return service
