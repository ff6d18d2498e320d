"""Kept-alive connections are balanced over the workers."""

import http.client
import json
from collections import Counter
from pathlib import Path

import psutil

from tests.conftest import IRIS_ROW, Lab, Process, ask, run_api, wait_until


def test_a_burst_of_connections_is_shared_evenly(lab: Lab, tmp_path: Path) -> None:
    with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri, api_workers=4) as api:
        wait_until(lambda: len(ask(f"{api.url}/admin/reload", b"", "POST").json["workers"]) == 4, 30, "4 workers")
        # 8 each, unless a worker gets no CPU time
        assert min(most(api) for _ in range(3)) <= 12


def most(api: Process) -> int:
    """Open a burst of 32 connections; return the largest number in one worker."""
    connections = [http.client.HTTPConnection("localhost", int(api.url.rpartition(":")[2])) for _ in range(32)]
    for connection in connections:
        connection.connect()
    for connection in connections:
        connection.request("POST", "/predict", json.dumps(IRIS_ROW), {"Content-Type": "application/json"})
    for connection in connections:
        assert connection.getresponse().read()
    owners = Counter(owner(connection, api.popen.pid) for connection in connections)
    for connection in connections:
        connection.close()
    return max(owners.values())


def owner(connection: http.client.HTTPConnection, arbiter: int) -> int:
    """Return the process id of the worker that holds the other end of a connection."""
    local = connection.sock.getsockname()[1]
    for child in psutil.Process(arbiter).children():
        for held in child.net_connections("tcp"):
            if held.raddr and held.raddr[1] == local and held.status == psutil.CONN_ESTABLISHED:
                return child.pid
    raise AssertionError(f"no worker holds port {local}")
