"""The client, with answers of the registry and of servers that are not one."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from labstack.deadline import within
from labstack.registry.client import (
    MlflowRest,
    Model,
    NotThereError,
    RegistryError,
    RegistryFailedError,
    RegistryUnreachableError,
    TooLargeError,
)
from tests.conftest import Lab, free_port


class Script(BaseHTTPRequestHandler):
    """Gives each request the next of the answers: a status and a body."""

    answers: list[tuple[int, bytes]]
    requests: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.requests.append((self.path, self.headers.get("Authorization")))
        status, body = self.answers.pop(0)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    Script.answers, Script.requests = [], []
    with ThreadingHTTPServer(("127.0.0.1", 0), Script) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def test_models_come_page_after_page(server: str) -> None:
    model = {"name": "a", "aliases": [{"alias": "production", "version": "3"}]}
    pages = [{"registered_models": [model], "next_page_token": "more"}, {"registered_models": [{"name": "b"}]}]
    Script.answers = [(200, json.dumps(page).encode()) for page in pages]
    assert MlflowRest(server).models() == {"a": Model({"production": 3}, {}), "b": Model({}, {})}
    assert "page_token=more" in Script.requests[1][0]


def test_a_server_that_is_briefly_away_is_asked_again(server: str) -> None:
    Script.answers = [(503, b""), (200, b"{}")]
    assert MlflowRest(server, retries=1).models() == {}


@pytest.mark.parametrize(
    ("status", "body", "message", "kind"),
    [
        (403, b"Invalid Host header", "refuses, with status 403", RegistryError),
        (500, b"<html>", "refuses, with status 500", RegistryFailedError),
        (503, b"", "refuses, with status 503", RegistryFailedError),
        (400, b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "a bad name"}', "a bad name", RegistryError),
        (400, b'["a"]', "refuses, with status 400", RegistryError),
        (200, b"<html>", "is not MLflow", RegistryFailedError),
        (200, b"[]", "is not MLflow", RegistryFailedError),
    ],
)
def test_an_answer_that_is_none_is_an_error_for_people(
    server: str, status: int, body: bytes, message: str, kind: type[RegistryError]
) -> None:
    Script.answers = [(status, body)]
    with pytest.raises(RegistryError, match=message) as raised:
        MlflowRest(server, retries=0).models()
    assert type(raised.value) is kind


def test_what_is_not_there_is_told_from_what_is_refused(lab: Lab, tmp_path: Path) -> None:
    for ask in (
        lambda: lab.registry.model("nobody"),
        lambda: lab.registry.version("iris", 99),
        lambda: lab.registry.run("0" * 32),
        lambda: lab.registry.download("iris", 1, "none.bin", tmp_path, 100, 10),
    ):
        with pytest.raises(NotThereError):
            ask()


def test_a_versions_files_are_fetched(lab: Lab, tmp_path: Path) -> None:
    lab.registry.download("iris", 1, "contract.json", tmp_path, 1_000_000, 10)
    assert json.loads((tmp_path / "contract.json").read_text())["target"] == "species"


def test_a_server_that_does_not_answer_is_named_without_credentials(server: str) -> None:
    port = free_port()
    with pytest.raises(RegistryUnreachableError, match=f"http://localhost:{port} cannot be reached") as raised:
        MlflowRest(f"http://me:hush@localhost:{port}", retries=0).models()
    assert "hush" not in str(raised.value)


def test_a_file_that_breaks_off_is_not_taken_for_whole(server: str, tmp_path: Path) -> None:
    Script.answers = [(200, b'{"artifact_uri": "mlflow-artifacts:/1/models/m/artifacts"}'), (200, b"abc")]
    real = Script.send_header

    def lie(self: Script, name: str, value: str) -> None:
        real(self, name, "100" if name == "Content-Length" and value == "3" else value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Script, "send_header", lie)
        with pytest.raises(RegistryUnreachableError):
            MlflowRest(server, retries=0, timeout_seconds=1).download("iris", 1, "model.onnx", tmp_path, 1_000, 10)


@pytest.mark.parametrize(
    ("variables", "sent"),
    [
        ({"MLFLOW_TRACKING_TOKEN": "abc"}, "Bearer abc"),
        ({"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "hush"}, "Basic bWU6aHVzaA=="),
    ],
)
def test_mlflows_own_variables_say_who_asks(
    server: str, variables: dict[str, str], sent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    Script.answers = [(200, b"{}")]
    MlflowRest(server).models()
    assert Script.requests[0][1] == sent


class Dripping:
    """A server that answers a byte now and then, as long as its caller listens: headers first, or a body."""

    def __init__(self, start: bytes) -> None:
        self._start = start
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ended = threading.Event()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _answer(self) -> None:
        while not self._ended.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._drip, args=(connection,), daemon=True).start()

    def _drip(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            connection.recv(65_536)
            connection.sendall(self._start)
            while not self._ended.wait(0.05):
                connection.sendall(b"x")

    def __enter__(self) -> str:
        threading.Thread(target=self._answer, daemon=True).start()
        return self.url

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._listener.close()


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\nX-", b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n"])
def test_an_answer_that_drips_counts_as_none_after_the_deadline(start: bytes, tmp_path: Path) -> None:
    with Dripping(start) as url:
        began = time.monotonic()
        with pytest.raises(RegistryUnreachableError):
            MlflowRest(url, timeout_seconds=0.5, retries=1).models()
        with within(0.5), pytest.raises(RegistryUnreachableError):
            MlflowRest(url, timeout_seconds=600, retries=5).models()
        assert time.monotonic() - began < 30, "each byte began the time anew"


def test_a_file_that_drips_counts_as_none_after_the_deadline(server: str, tmp_path: Path) -> None:
    with Dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n") as url:
        client = MlflowRest(url, timeout_seconds=600, retries=0)
        with pytest.MonkeyPatch.context() as patch:
            uri = {"artifact_uri": "mlflow-artifacts:/1/models/m/artifacts"}
            patch.setattr(client, "_call", lambda *_, **__: uri)
            with pytest.raises(RegistryUnreachableError):
                client.download("iris", 1, "model.onnx", tmp_path, 1_000_000, 0.5)


def test_an_answer_or_a_file_that_is_too_large_is_not_read_to_its_end(server: str, tmp_path: Path) -> None:
    large = b'{"registered_models": [' + b" " * (17 << 20) + b"]}"
    Script.answers = [(200, large)]
    with pytest.raises(RegistryFailedError, match="is not MLflow"):
        MlflowRest(server, retries=0).models()
    Script.answers = [(200, b'{"artifact_uri": "mlflow-artifacts:/1/models/m/artifacts"}'), (200, b"x" * 1000)]
    with pytest.raises(TooLargeError, match=r"model\.onnx of 'iris' version 1 holds more than 999 bytes"):
        MlflowRest(server, retries=0).download("iris", 1, "model.onnx", tmp_path, 999, 10)


def test_the_body_of_a_redirect_is_not_read() -> None:
    sent = 0

    class Redirecting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal sent
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", str(1 << 30))
            self.end_headers()
            with suppress(OSError):
                for _ in range(1 << 10):
                    self.wfile.write(b"x" * (1 << 20))
                    sent += 1 << 20

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Redirecting) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.05,), daemon=True).start()
        with pytest.raises(RegistryUnreachableError):
            MlflowRest(f"http://127.0.0.1:{listening.server_port}", retries=0).models()
        listening.shutdown()
    assert sent < 1 << 28


def test_a_list_without_an_end_is_none(server: str) -> None:
    Script.answers = [(200, b'{"next_page_token": "again"}')] * 1_100
    with pytest.raises(RegistryFailedError, match="is not MLflow"):
        MlflowRest(server, retries=0).models()


@pytest.mark.parametrize(
    ("method", "arguments", "body"),
    [
        ("models", (), {"registered_models": [{"name": 3}]}),
        ("models", (), {"registered_models": "many"}),
        ("models", (), {"registered_models": [{"name": "a", "aliases": [{"alias": "production", "version": "x"}]}]}),
        ("models", (), {"registered_models": [{"name": "a", "tags": [{"key": "b", "value": 7}]}]}),
        ("model", ("a",), {}),
        ("version", ("a", 1), {}),
        ("version", ("a", 1), {"model_version": {"name": "a", "version": "1"}}),
        (
            "version",
            ("a", 1),
            {
                "model_version": {
                    "name": "a",
                    "version": "1",
                    "status": "READY",
                    "source": None,
                    "creation_timestamp": 1,
                }
            },
        ),
        ("versions", ("a",), {"model_versions": [{}]}),
        ("run", ("a",), {"run": {"data": []}}),
        ("download", ("a", 1, "b", Path(), 1, 1), {}),
    ],
)
def test_an_answer_without_what_was_asked_for_is_none(
    server: str, method: str, arguments: tuple[object, ...], body: object
) -> None:
    Script.answers = [(200, json.dumps(body).encode())]
    with pytest.raises(RegistryFailedError, match="is not MLflow"):
        getattr(MlflowRest(server, retries=0), method)(*arguments)
