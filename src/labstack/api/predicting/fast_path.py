"""The fast path of an ordinary prediction: from WSGI to the predictor, without Flask, which takes longer than both.

It answers only what can be answered with 200. Everything else, errors included, goes to Flask with its body intact, so
both give the same answers: `tests/api/predicting/test_fast_path.py` sends everything through both.
"""

import io
import time
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import orjson

from labstack.api.predicting.call import Call, request_id, sticky_key
from labstack.api.predicting.prediction import PredictionFailedError, predict
from labstack.api.service import Service
from labstack.api.serving.lineup import Lineup

FAILED = "labstack.failed"  # key in WSGI's environment of the error of a prediction that failed on the fast path
PREFIX, SUFFIX = "/models/", "/predict"


class FastPath:
    """A WSGI application in front of another one."""

    def __init__(self, service: Service, flask: WSGIApplication) -> None:
        self._service = service
        self._flask = flask
        self._limit = service.settings.max_request_bytes
        self._is_durable = service.recorder.is_durable  # then answers wait for a commit, which this loop must not do

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "POST" and environ.get("CONTENT_TYPE") == "application/json":
            started = time.perf_counter()
            path = environ["PATH_INFO"]
            endpoint, lineup = self._target(path)
            length = environ.get("CONTENT_LENGTH", "")
            if (
                lineup is not None
                and not environ.get("QUERY_STRING")
                and length.isdecimal()
                and int(length) <= self._limit
                and "HTTP_CONTENT_ENCODING" not in environ
            ):
                try:
                    body = environ["wsgi.input"].read(int(length))
                except OSError:  # the body is incomplete; Flask meets the same error and answers it
                    return self._flask(environ, start_response)
                name = request_id(environ.get("HTTP_X_REQUEST_ID", ""))
                key = sticky_key(environ.get("HTTP_X_CANARY_KEY"), body)
                try:
                    call = Call(endpoint, path, name, key, started)
                    answer = predict(self._service, lineup, orjson.loads(body), call)
                except PredictionFailedError as error:  # Flask must not predict again, as that may take long
                    environ["wsgi.input"], environ[FAILED] = io.BytesIO(body), error
                except Exception:  # Flask meets the same error and answers it
                    environ["wsgi.input"] = io.BytesIO(body)
                else:
                    start_response(
                        "200 OK",
                        [
                            ("Content-Type", "application/json"),
                            ("Content-Length", str(len(answer))),
                            ("X-Request-Id", name),
                        ],
                    )
                    return [answer]
        return self._flask(environ, start_response)

    def is_quick(self, path: str) -> bool:
        """Return whether a small request to a path is answered sooner than another thread could take it over."""
        lineup = self._target(path)[1]
        return lineup is not None and all(role.served.predictor.is_quick for role in lineup.roles)

    def _target(self, path: str) -> tuple[str, Lineup | None]:
        """Return the endpoint of a path, and the lineup that predicts for it; None if the fast path cannot answer."""
        if self._is_durable:
            return path, None
        lineups = self._service.follower.lineups
        if path == SUFFIX:
            return path, lineups.get(self._service.settings.default_model_name)
        if path.startswith(PREFIX) and path.endswith(SUFFIX):
            return "/models/<model>/predict", lineups.get(path[len(PREFIX) : -len(SUFFIX)])
        return path, None
