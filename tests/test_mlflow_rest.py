"""What becomes of the registry's answers, and of those of what is not the registry."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from labstack.mlflow_rest import (
    MlflowRest,
    Model,
    NotThereError,
    RegistryError,
    RegistryFailedError,
    RegistryUnreachableError,
)
from tests.conftest import Lab, free_port


class Script(BaseHTTPRequestHandler):
    """Gives each request the next of the answers: a status and a body."""

    answers: list[tuple[int, bytes]]
    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Authorization")))
        status, body = self.answers.pop(0)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    Script.answers, Script.asked = [], []
    with ThreadingHTTPServer(("127.0.0.1", 0), Script) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def test_models_come_page_after_page(server: str) -> None:
    model = {"name": "a", "aliases": [{"alias": "production", "version": "3"}]}
    pages = [{"registered_models": [model], "next_page_token": "more"}, {"registered_models": [{"name": "b"}]}]
    Script.answers = [(200, json.dumps(page).encode()) for page in pages]
    assert MlflowRest(server).models() == {"a": Model({"production": 3}, {}), "b": Model({}, {})}
    assert "page_token=more" in Script.asked[1][0]


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
        lambda: lab.registry.download("iris", 1, "none.bin", tmp_path),
    ):
        with pytest.raises(NotThereError):
            ask()


def test_a_versions_files_are_fetched(lab: Lab, tmp_path: Path) -> None:
    lab.registry.download("iris", 1, "contract.json", tmp_path)
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
            MlflowRest(server, retries=0, timeout_seconds=1).download("iris", 1, "model.onnx", tmp_path)


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
    assert Script.asked[0][1] == sent
