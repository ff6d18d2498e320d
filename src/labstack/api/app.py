"""The application factory."""

import os
import tempfile
from pathlib import Path
from typing import Any

import orjson
from flask import Flask, Response, g, request
from flask.json.provider import JSONProvider

from labstack.api import problems
from labstack.api.hot_lane import HotLane, request_id
from labstack.api.recorder import Recorder
from labstack.api.routes import admin, info, predict
from labstack.api.service import Service
from labstack.api.serving.control import Control
from labstack.api.serving.follower import Follower
from labstack.settings import Settings


class OrjsonProvider(JSONProvider):
    """JSON without NaN: orjson writes null where a number is not finite."""

    def dumps(self, obj: Any, **_: Any) -> str:
        return orjson.dumps(obj, option=orjson.OPT_SERIALIZE_NUMPY).decode()

    def loads(self, s: str | bytes, **_: Any) -> Any:
        return orjson.loads(s)


def create_app(settings: Settings) -> Flask:
    """The API, with nothing started: each worker starts its own service after the fork."""
    app = Flask(__name__, static_folder=None)
    app.json = OrjsonProvider(app)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_request_bytes
    control = Control(Path(tempfile.gettempdir()) / f"labstack-api-{os.getuid()}-{settings.api_port}")
    service = Service(settings, control, Follower(settings, control), Recorder(settings.log_inputs))
    app.extensions["labstack"] = service
    problems.register(app)
    for module in (info, predict, admin):
        app.register_blueprint(module.blueprint)
    app.before_request(_name_request)
    app.after_request(_send_request_id)
    app.wsgi_app = HotLane(service, app.wsgi_app)  # type: ignore[method-assign]  # as Flask's documentation shows
    return app


def _name_request() -> None:
    g.request_id = request_id(request.headers.get("X-Request-Id", ""))


def _send_request_id(response: Response) -> Response:
    response.headers["X-Request-Id"] = g.request_id
    return response
