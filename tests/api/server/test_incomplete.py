"""Incomplete requests are rejected at every endpoint, and change nothing."""

import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

import pytest

from tests.conftest import IRIS_ROW, Lab, Process, ask, run_api, wait_until

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
ROW = json.dumps(IRIS_ROW)
SPECIES = json.dumps(IRIS_ROW | {"species": "setosa"})
CSV = ",".join(IRIS_ROW) + "\n5.1,3.5,1.4,0.2\n5.1,3.5,1.4,1"  # of 1.7
TENSOR = {"name": "input", "shape": [1, 4], "datatype": "FP64"}
INFER = json.dumps({"inputs": [TENSOR | {"data": list(IRIS_ROW.values())}]})
BINARY_HEAD = json.dumps({"inputs": [TENSOR | {"parameters": {"binary_data_size": 32}}]})
BINARY = BINARY_HEAD.encode() + struct.pack("<4d", *IRIS_ROW.values())

# the request line, and a part of a body that is itself valid
LANES: dict[str, tuple[str, str, bytes]] = {
    "hot lane": ("/predict", JSON, ROW.encode()),
    "hot lane of a model": ("/models/iris/predict", JSON, ROW.encode()),
    "flask": ("/predict", f"{JSON}; charset=utf-8", ROW.encode()),
    "invocations": ("/invocations", JSON, json.dumps({"dataframe_records": [IRIS_ROW]}).encode()),
    "invocations csv": ("/invocations", "text/csv", CSV.encode()),
    "v2": ("/v2/models/iris/infer", JSON, INFER.encode()),
    "v2 binary": (
        "/v2/models/iris/infer",
        f"application/octet-stream\r\nInference-Header-Content-Length: {len(BINARY_HEAD)}",
        BINARY,
    ),
    "feedback": ("/feedback", JSON, b'{"request_id": "fed", "outcome": "setosa"}'),
    "data": ("/data/iris", JSON, SPECIES.encode()),
    "reload": ("/admin/reload", JSON, b"{}"),
    "move": ("/rollback", JSON, b"{}"),
    "form": ("/console/move", FORM, b"move=reload&model=iris&roles=1/None/None/None"),
    "upload": ("/console/sign-in", "multipart/form-data; boundary=x", b"--x--\r\n"),
}
FRAMINGS = {
    "length": (b"Content-Length: %d\r\n\r\n%b", 1),
    "inside a chunk": (b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b", 1),
    "after a chunk": (b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b", 0),
    "before the last chunk": (b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n", 0),
}


def cut(lane: str, framing: str) -> bytes:
    """A request that ends before it is whole."""
    path, content_type, body = LANES[lane]
    form, missing = FRAMINGS[framing]
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n".encode()
    return head + form % (len(body) + missing, body)


CUT = {f"{lane}, {framing}": cut(lane, framing) for lane in LANES for framing in FRAMINGS}


class Refusal(NamedTuple):
    status: int
    content_type: str
    kind: str


INCOMPLETE = Refusal(400, "application/problem+json", "urn:labstack:problem:incomplete")


def refusal(connection: socket.socket) -> Refusal | None:
    """Return the last answer on a connection, which then ends; None without an answer."""
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
    if not data:
        return None
    head, _, body = data.decode().partition("\r\n\r\n")
    assert "connection: close" in head.lower(), head
    headers = dict(line.split(": ", 1) for line in head.lower().splitlines()[1:])
    return Refusal(int(head.split()[1]), headers["content-type"], json.loads(body)["type"])


def connect(api: Process) -> "closing[socket.socket]":
    return closing(socket.create_connection(("localhost", int(api.url.rpartition(":")[2])), timeout=60))


@pytest.fixture(scope="module")
def api(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """An API with a thread for each incomplete request; at the end, none of them changed anything."""
    folder = tmp_path_factory.mktemp("api")
    of_lab = {"mlflow_tracking_uri": lab.tracking_uri, "lab_database_url": lab.database_url}
    with run_api(folder, **of_lab, api_threads=64) as api:
        assert ask(f"{api.url}/predict", IRIS_ROW, headers={"X-Request-Id": "fed"}).status == 200
        fed = {"request_id": "fed", "outcome": "virginica"}
        wait_until(lambda: ask(f"{api.url}/feedback", fed).status == 200, 10, "the prediction is kept")
        rows = ask(f"{api.url}/data/iris?limit=1").json["rows"]
        yield api
        assert ask(f"{api.url}/data/iris?limit=1").json["rows"] == rows
        assert ask(f"{api.url}/feedback", fed).json["replaced"] == 0
        assert len(api.lines("prediction")) == 1
        assert 'labstack_reloads_total{outcome="ok"}' not in ask(f"{api.url}/metrics").text
        assert [line for line in api.lines() if line["level"] in ("error", "critical")] == []


@pytest.mark.parametrize("request_", CUT.values(), ids=CUT.keys())
def test_a_body_that_ends_early_is_refused(api: Process, request_: bytes) -> None:
    with connect(api) as connection:
        connection.sendall(request_)
        connection.shutdown(socket.SHUT_WR)
        assert refusal(connection) == INCOMPLETE


def test_bodies_whose_callers_leave_are_forgotten(api: Process) -> None:
    for request in CUT.values():
        with connect(api) as connection:
            connection.sendall(request)
    assert ask(f"{api.url}/ready").status == 200


def test_bodies_that_stop_are_refused(api: Process) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(api)) for _ in CUT]
        for connection, request in zip(connections, CUT.values(), strict=True):
            connection.sendall(request)
        assert {refusal(connection) for connection in connections} == {INCOMPLETE}


def test_a_get_with_half_a_body_is_refused(api: Process) -> None:
    with connect(api) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n12345")
        connection.shutdown(socket.SHUT_WR)
        assert refusal(connection) == INCOMPLETE


def test_a_form_beyond_the_limit_is_refused_and_not_cut(api: Process) -> None:
    head = f"POST /console/move HTTP/1.1\r\nHost: localhost\r\nContent-Type: {FORM}\r\n"
    body = b"move=reload&model=iris&reason=" + b"x" * 5_000_000
    with connect(api) as connection:
        connection.sendall(
            head.encode() + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


@pytest.fixture(scope="module")
def impatient(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """An API with a single thread, which waits a second for heads and bodies."""
    folder = tmp_path_factory.mktemp("impatient")
    (folder / "conf.py").write_text(
        "from labstack.api.server import worker\n"
        "from labstack.api.server.config import *\n"
        "worker.HEAD_SECONDS = worker.BODY_SECONDS = 1.0\n"
    )
    settings: dict[str, Any] = {"mlflow_tracking_uri": lab.tracking_uri, "api_workers": 1, "api_threads": 1}
    with run_api(folder, conf=str(folder / "conf.py"), **settings) as api:
        yield api


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"X: ", None),
        (b"Content-Length: 4000\r\n\r\n", INCOMPLETE),
        (b"Content-Type: application/json\r\nContent-Length: 4000\r\n\r\n", INCOMPLETE),
        (b"Transfer-Encoding: chunked\r\n\r\nfff\r\n", INCOMPLETE),
    ],
)
def test_a_request_that_comes_byte_by_byte_does_not_hold_a_thread(
    impatient: Process, sent: bytes, answer: Refusal | None
) -> None:
    ended = threading.Event()

    def drip(connection: socket.socket) -> None:
        while not ended.wait(0.1):
            try:
                connection.sendall(b" ")
            except OSError:
                return

    with connect(impatient) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\n" + sent)
        dripping = threading.Thread(target=drip, args=(connection,))
        dripping.start()
        try:
            assert refusal(connection) == answer
        except ConnectionResetError:  # by a byte that came when the connection was closed
            assert answer is None
        finally:
            ended.set()
            dripping.join()
    assert ask(f"{impatient.url}/predict", IRIS_ROW).status == 200
