"""Shared by the stress tests: clients without a pause, and a model whose versions answer differently."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from labstack.api.app import create_app
from labstack.registry import moves
from labstack.registry.roles import read_roles
from tests.conftest import Lab, Process

ROW = {"hours_studied": 6.0, "sleep_hours": 7.0, "attendance_percent": 80.0, "previous_scores": 60.0}


@dataclass(frozen=True)
class Seen:
    """One request: its start and end, and its answer or the reason why there is none."""

    began: float
    ended: float
    version: int = 0
    value: float = 0.0
    role: str = ""
    failure: str = ""
    reused: bool = False  # its connection had answered before


class Client(threading.Thread):
    """A client that asks for predictions without a pause, on one kept connection, until it is stopped."""

    def __init__(self, api: Process, path: str, done: threading.Event, refused: threading.Event | None = None) -> None:
        super().__init__(daemon=True)
        self._port = int(api.url.rpartition(":")[2])
        self._path, self._done, self._refused = path, done, refused
        self.seen: list[Seen] = []

    def run(self) -> None:
        connection, answered = http.client.HTTPConnection("localhost", self._port, timeout=30), 0
        while not self._done.is_set():
            began = time.monotonic()
            try:
                connection.request("POST", self._path, json.dumps(ROW), {"Content-Type": "application/json"})
                answer = connection.getresponse()
                body = json.loads(answer.read())
            except ConnectionRefusedError:
                if self._refused is not None:  # the API is expected to end
                    return
                self.seen.append(Seen(began, time.monotonic(), failure="refused"))
            except (OSError, http.client.HTTPException) as error:
                self.seen.append(Seen(began, time.monotonic(), failure=repr(error), reused=answered > 0))
                connection.close()
                answered = 0
            else:
                ended = time.monotonic()
                if answer.status == 200:
                    model = body["model"]
                    value = body["prediction"]["value"]
                    self.seen.append(Seen(began, ended, model["version"], value, model["role"]))
                else:
                    self.seen.append(Seen(began, ended, failure=f"{answer.status} {body}"))
                answered += 1
                if answer.will_close:
                    answered = 0
        connection.close()


@contextmanager
def load(*apis: Process, path: str, clients: int = 6, ends: bool = False) -> Iterator[list[Seen]]:
    """Load on each API; the list holds all that was seen when the context has ended."""
    done = threading.Event()
    seen: list[Seen] = []
    threads = [Client(api, path, done, threading.Event() if ends else None) for api in apis for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        done.set()
        for thread in threads:
            thread.join(60)
        seen += sorted((request for thread in threads for request in thread.seen), key=lambda request: request.began)


@dataclass(frozen=True)
class Versions:
    """A model whose versions each predict another value for ROW."""

    model: str
    values: dict[int, float]

    @property
    def path(self) -> str:
        return f"/models/{self.model}/predict"


@pytest.fixture(scope="session")
def versions(lab: Lab) -> Versions:
    """A model with three versions, version 1 in production."""
    name = "exam_of_many_versions"
    values = {}
    for alpha in (0.1, 100.0, 10_000.0):
        lab.train("student_exam", model=name, params={"alpha": alpha})
    app = create_app(lab.settings())
    service = app.extensions["labstack"]
    for number in (1, 2, 3):
        served = service.follower.loader.load(lab.registry.version(name, number))
        matrix, _ = served.plan.parse([ROW])
        [values[number]] = served.predictor.predict(matrix).outputs
    assert len({round(value, 2) for value in values.values()}) == 3
    if read_roles(lab.registry, name).production != 1:
        moves.promote(lab.registry, lab.engine, name, 1, reason="first")
    return Versions(name, values)
