"""An API without free descriptors, or on a full disk."""

import json
import os
import signal
import socket
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import API_CONFIGURATION, IRIS_ROW, Lab, Process, ask, fill, run_api, small_disk, wait_until

BODY = json.dumps(IRIS_ROW).encode()
PREDICT = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
PREDICT %= len(BODY), BODY

LIMITED = f"""
import os, resource
{API_CONFIGURATION}def post_worker_init(worker):
    gunicorn_conf.post_worker_init(worker)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, used + 20))
"""


def test_connections_wait_while_no_descriptors_are_left(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text(LIMITED)
    with (
        run_api(tmp_path, conf=str(tmp_path / "conf.py"), mlflow_tracking_uri=lab.tracking_uri) as api,
        ExitStack() as stack,
    ):
        workers = psutil.Process(api.popen.pid).children()
        address = ("localhost", int(api.url.rpartition(":")[2]))
        many = [stack.enter_context(closing(socket.create_connection(address, timeout=30))) for _ in range(100)]
        wait_until(lambda: len(exhausted(api)) == 2, 30, "both workers say so")
        before = sum(worker.cpu_times().user + worker.cpu_times().system for worker in workers)
        answered = sum(
            map(answers, many)
        )  # idle ones are closed after a while, and leave their place to those that wait
        assert answered > 20
        assert predict(api, 20) == 20
        assert sum(worker.cpu_times().user + worker.cpu_times().system for worker in workers) - before < 3
        assert psutil.Process(api.popen.pid).children() == workers
        assert len(exhausted(api)) == 2, "each says it once"
        assert [line for line in api.lines() if line["message"].startswith("Exception in worker")] == []


def answers(connection: socket.socket) -> bool:
    """Return true when a connection is served; one that was idle for too long is not."""
    try:
        connection.sendall(PREDICT)
        return connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
    except ConnectionError:
        return False


def exhausted(api: Process) -> list[dict[str, Any]]:
    return [line for line in api.lines() if "Too many open files" in line["message"]]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk of its own")
def test_a_full_disk_stops_no_worker_and_what_was_counted_meanwhile_is_not_lost(lab: Lab, tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk", "2m") as disk,
        run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri, api_cache_dir=disk, follow_interval_seconds=0.5) as api,
    ):
        workers = psutil.Process(api.popen.pid).children()
        sent = predict(api, 20)
        ballast = fill(disk)
        sent += predict(api, 200)
        wait_until(lambda: len(api.lines("prediction")) == sent, 20, "all predictions are logged")
        os.kill(workers[0].pid, signal.SIGKILL)  # a new worker takes over its slot and its files
        os.kill(api.popen.pid, signal.SIGTTIN)  # and a third one comes, whose files are new
        wait_until(lambda: len(psutil.Process(api.popen.pid).children()) == 3, 20, "a third worker")

        def noted() -> bool:
            nonlocal sent
            sent += predict(api, 20)
            return bool(api.lines("metrics not written"))

        wait_until(noted, 30, "a worker says that it counts in memory")
        assert ask(f"{api.url}/metrics").status == 200
        more = fill(disk)  # also the room that the killed worker left
        assert ask(f"{api.url}/admin/reload", b"", "POST").status == 503
        ballast.unlink()
        more.unlink(missing_ok=True)

        def counted() -> bool:
            nonlocal sent
            sent += predict(api, 20)  # what waits is written with what comes
            return predictions(api) == sent

        wait_until(counted, 30, "all predictions are counted")
        wait_until(lambda: ask(f"{api.url}/admin/reload", b"", "POST").status == 200, 30, "workers follow again")
        assert workers[1] in psutil.Process(api.popen.pid).children()
        assert [line for line in api.lines() if "SIGBUS" in line["message"]] == []


def predict(api: Process, times: int) -> int:
    """Send so many predictions, each on a new connection, which any worker may take."""
    for _ in range(times):
        assert ask(f"{api.url}/predict", IRIS_ROW).status == 200
    return times


def predictions(api: Process) -> float:
    lines = ask(f"{api.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("labstack_predictions_total"))


def test_a_control_folder_that_cannot_be_made_stops_the_start(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    folder = tmp_path / "cache" / "control"
    message = f"The folder {folder}/.*: Not a directory. API_CACHE_DIR names another"
    with pytest.raises(AssertionError, match=message), run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri):
        pass


def test_the_folder_of_an_api_that_was_killed_is_removed_and_those_of_others_stay(lab: Lab, tmp_path: Path) -> None:
    shared: dict[str, Any] = {"mlflow_tracking_uri": lab.tracking_uri, "until": "/health"}

    def folders() -> set[str]:
        return {path.name for path in (tmp_path / "cache" / "control").iterdir() if path.is_dir()}

    with ExitStack() as stack:
        first, second = (stack.enter_context(run_api(tmp_path, **shared)) for _ in range(2))
        both = folders()
        assert len(both) == 2
        os.killpg(first.popen.pid, signal.SIGKILL)
        first.popen.wait(10)
        third = stack.enter_context(run_api(tmp_path, **shared))
        left = folders() & both
        assert len(left) == 1
        assert left.pop().endswith(f"-{second.url.rpartition(':')[2]}-{second.popen.pid}")
        assert len(folders()) == 2
        for api in (second, third):
            assert ask(f"{api.url}/admin/reload", b"", "POST").status == 200
