"""The application factory."""

import os
import socket
from typing import Any

import orjson
from flask import Flask
from flask.json.provider import JSONProvider

from labstack.api.http import errors, queries, request
from labstack.api.predicting.fast_path import FastPath
from labstack.api.recording.recorder import Recorder
from labstack.api.routes import admin, assets, console, data, docs, hooks, info, invocations, monitoring, predict, v2
from labstack.api.service import Service
from labstack.api.serving.control import Control
from labstack.api.serving.follower import Follower
from labstack.registry.client import MlflowRest
from labstack.settings import Settings


class OrjsonProvider(JSONProvider):
    """JSON without NaN: orjson writes null where a number is not finite."""

    def dumps(self, obj: Any, **_: Any) -> str:
        return orjson.dumps(obj, option=orjson.OPT_SERIALIZE_NUMPY).decode()

    def loads(self, s: str | bytes, **_: Any) -> Any:
        return orjson.loads(s)


def create_app(settings: Settings) -> Flask:
    """Return the API with no thread started: each worker starts its own service after the fork."""
    app = Flask(__name__, static_folder=None, template_folder="web/templates")
    app.json = OrjsonProvider(app)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_request_bytes
    name = f"{socket.gethostname()}-{settings.api_port}-{os.getpid()}"  # several APIs may share the folder
    control = Control(settings.api_cache_dir / "control" / name)
    client = MlflowRest(settings.mlflow_tracking_uri, timeout_seconds=5, retries=1)
    service = Service(settings, control, client, Follower(settings, control, client), Recorder(settings))
    app.extensions["labstack"] = service
    request.register(app)
    errors.register(app)
    for module in (info, predict, invocations, v2, data, admin, monitoring, hooks, docs, console, assets):
        app.register_blueprint(module.blueprint)
    queries.register(app)
    app.wsgi_app = FastPath(service, app.wsgi_app)  # type: ignore[method-assign]  # as Flask's documentation shows
    return app
