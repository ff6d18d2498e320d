"""The short way of an ordinary prediction: from WSGI to the predictor without Flask, which takes longer than both.

It answers what can be answered with 200, and hands over all else untouched, errors included, to Flask's lane. So the
two never differ: `tests/api/predicting/test_fast_path.py` sends everything through both.
"""

import io
import random
import re
import time
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import orjson

from labstack.api.predicting.prediction import Call, predict
from labstack.api.problems import PredictionFailedError
from labstack.api.service import Service
from labstack.api.serving.lineup import Lineup

SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
FAILED = "labstack.failed"  # in WSGI's environment, the error of a prediction that failed here
PREFIX, SUFFIX = "/models/", "/predict"


def request_id(theirs: str) -> str:
    """The caller's id of a request when it sent a sane one, else a new one.

    Ours begin with the time, as those of RFC 9562's version 7 do: in an index of random ones each would lie on a page
    of its own, and to keep it cost ten times as much.
    """
    if SANE_REQUEST_ID.fullmatch(theirs):
        return theirs
    return f"{time.time_ns() // 1_000_000:012x}{random.getrandbits(80):020x}"


def sticky_key(header: str | None, body: bytes) -> bytes:
    """What decides between production and canary: the caller's X-Canary-Key, as WSGI hands it over, else the body."""
    return body if header is None else header.encode("latin-1")


class FastPath:
    """A WSGI application before another one."""

    def __init__(self, service: Service, other: WSGIApplication) -> None:
        self._service = service
        self._other = other
        self._limit = service.settings.max_request_bytes
        self._waits = service.recorder.is_durable  # for a commit, which the loop that answers quick ones must not

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "POST" and environ.get("CONTENT_TYPE") == "application/json":
            started = time.perf_counter()
            path = environ["PATH_INFO"]
            endpoint, lineup = self._asked(path)
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
                except OSError:  # the body is incomplete; Flask's lane gets the same error and answers it
                    return self._other(environ, start_response)
                name = request_id(environ.get("HTTP_X_REQUEST_ID", ""))
                key = sticky_key(environ.get("HTTP_X_CANARY_KEY"), body)
                try:
                    call = Call(endpoint, path, name, key, started)
                    answer = predict(self._service, lineup, orjson.loads(body), call)
                except PredictionFailedError as error:  # which must not be tried again here: it may have taken long
                    environ["wsgi.input"], environ[FAILED] = io.BytesIO(body), error
                except Exception:  # whatever it is, Flask's lane meets it again and has the words for it
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
        return self._other(environ, start_response)

    def is_quick(self, path: str) -> bool:
        """Whether a small request to a path is answered in less time than it takes to hand it to another thread."""
        lineup = self._asked(path)[1]
        return lineup is not None and all(role.served.predictor.is_quick for role in lineup.roles)

    def _asked(self, path: str) -> tuple[str, Lineup | None]:
        """The endpoint, and the lineup that a path asks for a prediction, if it is one."""
        if self._waits:
            return path, None
        lineups = self._service.follower.lineups
        if path == SUFFIX:
            return path, lineups.get(self._service.settings.default_model_name)
        if path.startswith(PREFIX) and path.endswith(SUFFIX):
            return "/models/<model>/predict", lineups.get(path[len(PREFIX) : -len(SUFFIX)])
        return path, None
