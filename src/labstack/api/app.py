"""The application factory."""

import os
import re
import tempfile
import uuid
from pathlib import Path
from typing import Any

import orjson
from flask import Flask, Response, g, request
from flask.json.provider import JSONProvider

from labstack.api import problems
from labstack.api.recorder import Recorder
from labstack.api.routes import admin, info, predict
from labstack.api.service import Service
from labstack.api.serving.control import Control
from labstack.api.serving.follower import Follower
from labstack.settings import Settings

SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


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
    app.extensions["labstack"] = Service(settings, control, Follower(settings, control), Recorder(settings.log_inputs))
    problems.register(app)
    for module in (info, predict, admin):
        app.register_blueprint(module.blueprint)
    app.before_request(_name_request)
    app.after_request(_send_request_id)
    return app


def _name_request() -> None:
    theirs = request.headers.get("X-Request-Id", "")
    g.request_id = theirs if SANE_REQUEST_ID.fullmatch(theirs) else uuid.uuid4().hex


def _send_request_id(response: Response) -> Response:
    response.headers["X-Request-Id"] = g.request_id
    return response
