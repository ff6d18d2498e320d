"""Errors of MLflow's own client become those of the registry, by their types."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from labstack.registry.client import MlflowRest, RegistryError, RegistryFailedError, RegistryUnreachableError
from labstack.training import tracking
from tests.conftest import free_port


class NotMlflow(BaseHTTPRequestHandler):
    """A server whose answers are not MLflow's."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()
        self.wfile.write(b"<html>no such page</html>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", free_port()), NotMlflow)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_closed_port_is_unreachable() -> None:
    registry = MlflowRest(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(RegistryUnreachableError), tracking.connect(registry) as client:
        client.get_run("a")


def test_a_server_that_answers_is_not_unreachable(url: str) -> None:
    with pytest.raises(RegistryError, match="404") as raised, tracking.connect(MlflowRest(url)) as client:
        client.get_run("a")
    assert not isinstance(raised.value, RegistryFailedError)
