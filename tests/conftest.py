"""What tests share: a real MLflow server, a real database, trained models and real gunicorn, each in its own folder."""

import json
import os
import re
import select
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest
from flask import Flask
from mlflow import MlflowClient
from sqlalchemy import Engine

from labstack.api.app import create_app
from labstack.registry.client import MlflowRest
from labstack.settings import ROOT, Settings
from labstack.store import datasets
from labstack.store.database import connect, migrate
from labstack.training import config
from labstack.training.outcome import TrainingOutcome
from labstack.training.train import train
from tests.preloaded import Preloaded

# the start of a configuration for gunicorn that changes some of the API's hooks; no setting is called gunicorn_conf
API_CONFIGURATION = (
    "from labstack.api.server import config as gunicorn_conf\nfrom labstack.api.server.config import *\n"
)

IRIS_ROW = {"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}


BY_NAME = {
    "browser": "pages are tested, in a browser, by: ./run_all.sh test tests/browser --browser",
    "containers": "containers are tested, with an engine, by: ./run_all.sh test tests/containers --containers",
    "local": "a whole lab is tested by: ./run_all.sh test tests/local --local",
    "stress": "stress is tested by: ./run_all.sh test tests/stress --stress",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--containers",
        nargs="?",
        const="connected",
        choices=["connected", "offline"],
        help="run tests/containers on this machine's engine; `offline` where no image registry can be reached",
    )

    parser.addoption("--browser", action="store_true", help="run tests/browser, in Chromium")
    parser.addoption("--local", action="store_true", help="run tests/local, which makes a whole lab of processes")
    parser.addoption("--stress", action="store_true", help="run tests/stress, which takes minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each of several processes runs whole files, and one of them all that needs the engine, of which there is one.

    The suites that take minutes run by name.
    """
    for item in items:
        parts = item.path.relative_to(ROOT / "tests").parts
        if parts[0] in BY_NAME and not config.getoption(f"--{parts[0]}"):
            item.add_marker(pytest.mark.skip(reason=BY_NAME[parts[0]]))
        item.add_marker(pytest.mark.xdist_group(parts[0] if parts[0] == "containers" else "/".join(parts)))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until(condition: Callable[[], Any], seconds: float = 60, what: str = "") -> Any:
    """The condition's first true value; fails the test when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {what or condition}")
        time.sleep(0.05)
    return value


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    text: str
    json: Any = field(init=False)

    def __post_init__(self) -> None:
        try:
            self.json = json.loads(self.text)
        except ValueError:
            self.json = None


def ask(
    url: str,
    body: Any = None,
    method: str | None = None,
    headers: dict[str, str] | None = None,
    timeout_seconds: float = 60,
) -> Answer:
    """One HTTP request on a connection of its own; a body that is no bytes is sent as JSON."""
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"Content-Type": "application/json"} if data is not None else {}
    request = urllib.request.Request(url, data, sent | (headers or {}), method=method)
    try:
        with urllib.request.urlopen(request, timeout=timeout_seconds) as answer:
            return Answer(answer.status, dict(answer.headers), answer.read().decode())
    except urllib.error.HTTPError as error:
        return Answer(error.code, dict(error.headers), error.read().decode())


def answers(url: str) -> bool:
    try:
        return ask(url).status == 200
    except OSError:
        return False


@dataclass
class Process:
    """A service that a test started, in a session of its own, with all it printed."""

    popen: "subprocess.Popen[bytes]"
    log: Path
    url: str

    def lines(self, message: str | None = None) -> list[dict[str, Any]]:
        """Its JSON log lines, all or those with one message."""
        found = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in found if message is None or line["message"] == message]

    def stop(self, seconds: float = 30) -> int:
        """Stop it gracefully; its exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        try:
            return self.popen.wait(seconds)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.popen.pid, signal.SIGKILL)  # what outlived it


def environment(**settings: Any) -> dict[str, str]:
    """The environment of a process with these settings, by their fields' names, and no others."""
    own = {"LAB_ENV_FILE": os.devnull, "CI": ""}
    return os.environ | own | {name.upper(): str(v) for name, v in settings.items()}


def start(folder: Path, name: str, command: list[str], url: str, **settings: Any) -> Process:
    log = folder / f"{name}.log"
    with log.open("a") as output:
        popen = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env=environment(**settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return Process(popen, log, url)


@contextmanager
def run_mlflow(folder: Path, port: int) -> Iterator[Process]:
    """A real MLflow server, as the lab starts it, with its files in a folder."""
    process = start(
        folder,
        "mlflow",
        ["-m", "labstack.mlflow_server.main"],
        f"http://localhost:{port}",
        mlflow_port=port,
        mlflow_backend_store_uri=f"sqlite:///{folder}/mlruns.db",
        mlflow_artifacts_destination=folder / "mlartifacts",
    )
    try:
        wait_until(lambda: answers(f"{process.url}/health") or process.popen.poll() is not None, 120, "MLflow is up")
        assert process.popen.poll() is None, process.log.read_text()
        yield process
    finally:
        process.stop()


@contextmanager
def run_api(
    folder: Path, *, until: str = "/ready", conf: str = "python:labstack.api.server.config", **settings: Any
) -> Iterator[Process]:
    """Real gunicorn with two workers, as the lab starts it; yields when the path answers 200."""
    port = free_port()
    process = start(
        folder,
        "api",
        ["-m", "gunicorn", "-c", conf, "labstack.api.server.wsgi:app"],
        f"http://localhost:{port}",
        **{
            "api_port": port,
            "api_cache_dir": folder / "cache",
            "lab_database_url": f"sqlite:///{folder}/lab.db",
            "follow_interval_seconds": 600,
        }
        | settings,
    )
    try:
        wait_until(lambda: answers(process.url + until) or process.popen.poll() is not None, 60, f"the API's {until}")
        assert process.popen.poll() is None, process.log.read_text()
        yield process
    finally:
        process.stop()


class Relay:
    """A TCP relay to a service of this machine, whose way can be closed and opened again: the service out of reach."""

    def __init__(self, target: str) -> None:
        self._target = ("127.0.0.1", int(target.rpartition(":")[2]))
        self._port = free_port()
        self._connections: list[socket.socket] = []
        self.url = f"http://localhost:{self._port}"
        self.delay_seconds = 0.0
        self.drips = False  # whether what comes goes on byte by byte, slowly

    def open(self) -> None:
        target, relay = self._target, self

        connections = self._connections

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                connections.append(self.request)
                with socket.create_connection(target) as other:
                    ends = {self.request: other, other: self.request}
                    while True:
                        for end in select.select(list(ends), [], [])[0]:
                            if not (data := end.recv(65536)):
                                return
                            time.sleep(relay.delay_seconds)
                            while relay.drips and data:
                                ends[end].sendall(data[:1])
                                data = data[1:]
                                time.sleep(0.2)
                            ends[end].sendall(data)

        socketserver.ThreadingTCPServer.allow_reuse_address = True
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Refuse new connections from now on, and cut those there are."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._connections.clear()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of its own at a folder, which only root can mount."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Take all the room of a disk; the file that takes it."""
    ballast = disk / f"ballast-{time.monotonic_ns()}"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(b"x" * 4096)
    return ballast


NOBODY = 9  # the port of the discard service, which nobody runs


@dataclass
class Lab:
    """A lab whose parts are all real: the server, the database, and both bundled models in production as version 1."""

    folder: Path
    tracking_uri: str
    database_url: str
    engine: Engine
    client: MlflowClient  # MLflow's own, for what a person does in its page
    registry: MlflowRest
    command: Preloaded

    def settings(self, **others: Any) -> Settings:
        own: dict[str, Any] = {"mlflow_tracking_uri": self.tracking_uri, "lab_database_url": self.database_url}
        own |= {"search_database_url": f"sqlite:///{self.folder}/search.db", "lab_outputs": self.folder / "outputs"}
        own |= {"api_cache_dir": self.folder / "cache", "api_url": f"http://localhost:{NOBODY}"}
        return Settings(**own | others)

    def pipeline(self, name: str, **changes: Any) -> config.Pipeline:
        """A bundled pipeline, without its gates and search, some of its keys changed.

        `estimator` and `params` are those of its only candidate.
        """
        given = config.read(name).model_dump(by_alias=True) | {"gates": {}, "after_promotion": "nothing"}
        first = given["candidates"][0]
        candidate = {key: changes.pop(key, first[key]) for key in ("estimator", "params")}
        return config.Pipeline.model_validate(given | {"candidates": [candidate]} | changes)

    def outcome(self, name: str, **changes: Any) -> TrainingOutcome:
        """Train a bundled pipeline, some of its keys changed; what it came to."""
        return train(self.pipeline(name, **changes), self.registry, self.engine, self.settings())

    def train(self, name: str, **changes: Any) -> int:
        """Train a bundled pipeline, some of its keys changed; the new version."""
        return self.outcome(name, **changes).version or 0

    def run(self, *arguments: str, killed_at: str | None = None, **settings: Any) -> "subprocess.CompletedProcess[str]":
        """Run the `labstack` command, and kill it when it logs a certain message."""
        return self.command.run(list(arguments), self.environment(**settings), killed_at)

    def environment(self, **settings: Any) -> dict[str, str]:
        """That of a process of this lab."""
        names = {"mlflow_tracking_uri", "lab_database_url", "search_database_url", "lab_outputs", "api_url"}
        return environment(**self.settings().model_dump(include=names) | settings)


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings of the shell that runs the tests, or that MLflow puts into the environment, must not reach them."""
    monkeypatch.setenv("LAB_ENV_FILE", os.devnull)
    monkeypatch.setattr(socket, "gethostname", lambda: tmp_path.name)  # which the API's control folder is named after
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def group_writable() -> Iterator[None]:
    """The umask of the containers, whose users share their files by their group."""
    before = os.umask(0o002)
    yield
    os.umask(before)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """An empty database in its newest form."""
    engine = connect(f"sqlite:///{tmp_path}/lab.db")
    migrate(engine)
    return engine


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("a lab")
    with run_mlflow(folder, free_port()) as server:
        url = f"sqlite:///{folder}/lab.db"
        engine = connect(url)
        migrate(engine)
        list(datasets.load_bundled(engine))
        made = Lab(
            folder, server.url, url, engine, MlflowClient(server.url, server.url), MlflowRest(server.url), Preloaded()
        )
        for name in config.names():
            assert made.train(name) == 1
        yield made
        made.command.stop()


@pytest.fixture
def model(lab: Lab) -> Iterator[str]:
    """A registered model of the test's own: versions 1 to 3 with the files of iris version 1, and no roles."""
    name = f"model_{time.monotonic_ns()}"
    lab.client.create_registered_model(name)
    original = lab.client.get_model_version("iris", "1")
    for _ in range(3):
        lab.client.create_model_version(name, str(original.source), original.run_id, await_creation_for=0)
    yield name
    lab.client.delete_registered_model(name)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """The name of a model of the test's own."""
    return re.sub(r"\W", "_", str(request.node.name)[:60])


@pytest.fixture
def app(lab: Lab) -> Flask:
    """The application, following the lab, without a server around it."""
    app = create_app(lab.settings())
    app.extensions["labstack"].follower.sync()
    return app
