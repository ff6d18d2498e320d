"""Kept-alive connections, with whole requests, halves of one, several, or none."""

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import API_CONFIGURATION, IRIS_ROW, Lab, Process, ask, free_port, run_api, start, wait_until

BODY = json.dumps(IRIS_ROW).encode()
HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
CHUNKED = HEAD.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n"
CHUNKED %= len(BODY), BODY
WHOLE = HEAD % len(BODY) + BODY


@pytest.fixture(scope="module")
def api(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with run_api(tmp_path_factory.mktemp("api"), mlflow_tracking_uri=lab.tracking_uri) as process:
        yield process


@pytest.fixture
def connection(api: Process) -> Iterator[socket.socket]:
    """A kept-alive connection, after one answer."""
    with closing(socket.create_connection(("localhost", int(api.url.rpartition(":")[2])), timeout=15)) as connection:
        connection.sendall(WHOLE)
        assert answers(connection, 1) == [200]
        yield connection


def answers(connection: socket.socket, number: int) -> list[int]:
    """Read so many answers with their bodies; return their statuses."""
    statuses: list[int] = []
    data = b""
    while len(statuses) < number:
        head, separator, rest = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if separator and length and len(rest) >= int(length[1]):
            statuses.append(int(head.split()[1]))
            data = rest[int(length[1]) :]
        elif chunk := connection.recv(65536):
            data += chunk
        else:
            break
    return statuses


@pytest.mark.parametrize("cut", [1, 20, len(WHOLE) - len(BODY), len(WHOLE) - 1])
def test_a_request_that_comes_in_two_halves_is_answered(connection: socket.socket, cut: int) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(WHOLE[:cut])
    time.sleep(0.2)  # so that the worker reads the first half alone
    connection.sendall(WHOLE[cut:])
    assert answers(connection, 1) == [200]


def test_requests_that_come_together_are_all_answered(connection: socket.socket) -> None:
    connection.sendall(WHOLE * 5)
    assert answers(connection, 5) == [200] * 5


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (WHOLE.replace(b"POST", b"GET"), 405),
        (WHOLE.replace(b"/predict", b"/nowhere"), 404),
        (WHOLE.replace(b"/predict", b"/models/nobody/predict"), 404),
        (HEAD % 1 + b"{", 400),
        (HEAD % 2 + b"{}", 422),
        (WHOLE.replace(b"Content-Type: application/json", b"Content-Type: text/plain"), 415),
        (
            HEAD.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked")
            + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
            200,
        ),
        (HEAD % (len(BODY) + 20_000) + BODY + b" " * 20_000, 200),
        (WHOLE.replace(b"Content-Type", b"Expect: 100-continue\r\nContent-Type"), 100),
    ],
)
def test_other_requests_are_answered_as_on_a_new_connection(
    connection: socket.socket, sent: bytes, status: int
) -> None:
    connection.sendall(sent)
    if status == 100:
        assert connection.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        status = 200
    assert answers(connection, 1) == [status]
    connection.sendall(WHOLE)
    assert answers(connection, 1) == [200]


@pytest.mark.parametrize(
    "sent", [b"nonsense\r\n\r\n", b"POST /predict HTTP/1.1\r\nContent-Length: 1\r\n: x\r\n\r\n{", b"\x00" * 9000]
)
def test_bytes_that_are_not_http_end_their_connection(connection: socket.socket, api: Process, sent: bytes) -> None:
    connection.sendall(sent)
    assert answers(connection, 1) in ([400], [431], [])
    assert ask(f"{api.url}/predict", IRIS_ROW).status == 200


def test_a_request_that_comes_while_another_is_answered_is_not_lost(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for number in range(300):
        connection.sendall(WHOLE)
        for _ in range(number % 20 * 50):
            pass  # so that the second comes a little later each time
        connection.sendall(WHOLE)
        assert answers(connection, 2) == [200, 200]


def test_an_idle_connection_is_closed(connection: socket.socket) -> None:
    for _ in range(3):
        connection.sendall(WHOLE)
        assert answers(connection, 1) == [200]
    began = time.monotonic()
    assert connection.recv(1) == b""
    assert 4 < time.monotonic() - began < 12


def test_a_caller_that_never_reads_blocks_no_other(lab: Lab, tmp_path: Path) -> None:
    with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri, api_workers=1) as api:
        with closing(socket.create_connection(("localhost", int(api.url.rpartition(":")[2])))) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.sendall(WHOLE)
            assert answers(deaf, 1) == [200]
            deaf.settimeout(0.5)
            sent = 0
            while sent < 20_000:  # one at a time, like a caller that waits for each answer
                try:
                    deaf.sendall(WHOLE)
                except TimeoutError:
                    break
                sent += 1
                if sent % 50 == 0:
                    assert ask(f"{api.url}/predict", IRIS_ROW).status == 200
            assert ask(f"{api.url}/predict", IRIS_ROW).status == 200
        assert [line for line in api.lines() if "WORKER TIMEOUT" in line["message"]] == []


def test_callers_that_disconnect_are_no_error(api: Process, lab: Lab, tmp_path: Path) -> None:
    for sent in (b"", WHOLE[:30], WHOLE):
        left = socket.create_connection(("localhost", int(api.url.rpartition(":")[2])))
        left.sendall(WHOLE)
        assert answers(left, 1) == [200]
        left.sendall(sent)
        left.close()
    assert ask(f"{api.url}/predict", IRIS_ROW).status == 200
    assert [line for line in api.lines() if line["level"] in ("error", "critical")] == []


def test_a_signal_that_comes_right_after_the_fork_is_not_lost(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text(
        f"import os, signal\n{API_CONFIGURATION}"
        "def post_fork(server, worker):\n"
        "    gunicorn_conf.post_fork(server, worker)\n"
        "    if worker.age == 1:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    settings = {"api_port": free_port(), "mlflow_tracking_uri": lab.tracking_uri, "api_workers": 1}
    settings |= {"lab_database_url": f"sqlite:///{tmp_path}/lab.db", "api_cache_dir": tmp_path / "cache"}
    command = ["-m", "gunicorn", "-c", str(tmp_path / "conf.py"), "labstack.api.server.wsgi:app"]
    api = start(tmp_path, "api", command, f"http://localhost:{settings['api_port']}", **settings)
    try:

        def booted() -> bool:
            return len([line for line in api.lines() if line["message"].startswith("Booting worker")]) >= 2

        wait_until(booted, 20, "the worker that was stopped is replaced")
    finally:
        api.stop()


def test_callers_that_are_silent_block_no_other(lab: Lab, tmp_path: Path) -> None:
    with ExitStack() as stack:
        api = stack.enter_context(run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri, api_workers=1, api_threads=2))
        address = ("localhost", int(api.url.rpartition(":")[2]))
        silent = [stack.enter_context(closing(socket.create_connection(address, timeout=30))) for _ in range(20)]
        began = time.monotonic()
        assert ask(f"{api.url}/health").status == 200
        assert time.monotonic() - began < 2
        for caller in silent[:2]:  # as many as there are threads
            caller.sendall(WHOLE[:-1])
        assert ask(f"{api.url}/health").status == 200
        assert answers(silent[0], 1) == [400]
        silent[2].sendall(WHOLE)
        assert answers(silent[2], 1) == []  # it was silent for too long
        assert [line for line in api.lines() if line["level"] in ("error", "critical")] == []


def refused(connection: socket.socket, sent: bytes) -> dict[str, Any]:
    """The problem that ends a connection, after its head was looked at."""
    connection.sendall(sent)
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"\r\nContent-Type: application/problem+json\r\n" in head
    problem: dict[str, Any] = json.loads(body)
    assert head.startswith(f"HTTP/1.1 {problem['status']} ".encode())
    assert f"\r\nX-Request-Id: {problem['request_id']}\r\n".encode() in head
    return problem


@pytest.mark.parametrize(
    ("sent", "status", "detail"),
    [
        (b"nonsense\r\n\r\n", 400, "Invalid HTTP request line: 'nonsense'"),
        (b"GET / HTTP/1.1\r\n: x\r\n\r\n", 400, "Invalid HTTP Header"),
        (b"GET /%b HTTP/1.1\r\n\r\n" % (b"x" * 5000), 400, "Request Line is too large"),
        (b"GET / HTTP/1.1\r\nX: %b\r\n\r\n" % (b"x" * 8190), 431, "limit request headers fields size"),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: zip\r\n\r\n", 501, "zip"),
        (b"GET / HTTP/1.1\r\nExpect: nothing\r\n\r\n", 417, "nothing"),
        (b"GET / HTTP/1.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Ssl: off\r\n\r\n", 400, "scheme"),
    ],
)
def test_bytes_that_are_not_http_get_a_problem(
    api: Process, connection: socket.socket, sent: bytes, status: int, detail: str
) -> None:
    problem = refused(connection, sent)
    assert (problem["status"], problem["type"]) == (status, "urn:labstack:problem:http")
    assert detail.lower() in problem["detail"].lower()
    assert 'labstack_problems_total{kind="http"}' in ask(f"{api.url}/metrics").text


@pytest.mark.parametrize("header", ["SCRIPT_NAME", "Script-Name", "PATH_INFO", "REMOTE_USER", "X-Script-Name"])
def test_no_header_moves_a_request(connection: socket.socket, header: str) -> None:
    for value in (b"/elsewhere", b"/predict", b"/"):
        connection.sendall(WHOLE.replace(b"Host", header.encode() + b": " + value + b"\r\nHost"))
        assert answers(connection, 1) == [200]


def test_an_error_that_the_application_does_not_answer_is_a_problem(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text(
        f"{API_CONFIGURATION}"
        "def post_worker_init(worker):\n"
        "    gunicorn_conf.post_worker_init(worker)\n"
        "    lane = type(worker.wsgi.wsgi_app)\n"
        "    def call(self, environ, start_response, real=lane.__call__):\n"
        "        return 1 // len(environ['QUERY_STRING']) and real(self, environ, start_response)\n"
        "    lane.__call__ = call\n"
    )
    settings = {"until": "/ready?x", "mlflow_tracking_uri": lab.tracking_uri}
    with run_api(tmp_path, conf=str(tmp_path / "conf.py"), **settings) as api:
        address = ("localhost", int(api.url.rpartition(":")[2]))
        with closing(socket.create_connection(address, timeout=15)) as connection:
            problem = refused(connection, WHOLE)
        assert (problem["status"], problem["type"]) == (500, "urn:labstack:problem:internal")
        assert "ZeroDivisionError" not in str(problem)
        assert ask(f"{api.url}/ready?x").status == 200
        [line] = wait_until(lambda: api.lines("unexpected error"), 10, "the log says why")
    assert "ZeroDivisionError" in line["exception"]
    assert line["request_id"] == problem["request_id"]
