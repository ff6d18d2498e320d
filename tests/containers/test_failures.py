"""Services that die come back, in any order, and no accepted request is lost."""

import http.client
import json
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import IRIS_ROW, ask, wait_until
from tests.containers.conftest import Stack, as_root, docker


@pytest.fixture(scope="module")
def trained(stack: Stack) -> Stack:
    stack.up()
    stack.train("iris")
    stack.serves(1)
    return stack


def test_two_that_start_together_migrate_the_database_once(stack: Stack) -> None:
    stack.up("server_mlflow")
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda _: stack.train("iris", check=False), range(3)))
    assert [result.returncode for result in done] == [0, 0, 0], done
    count = "sqlite3.connect('/lab/data/lab.db').execute('select count(*) from datasets').fetchone()"
    assert stack.python("server_mlflow", f"import sqlite3; print({count})") == "(2,)"
    stack.erase()


@pytest.mark.parametrize("service", ["server_mlflow", "api"])
def test_killed_it_comes_back_by_itself(trained: Stack, service: str) -> None:
    before = trained.state(service)
    as_root("kill", "-KILL", str(before["State"]["Pid"]))
    wait_until(lambda: trained.state(service)["RestartCount"] == before["RestartCount"] + 1, 60, "it was restarted")
    wait_until(lambda: trained.healthy(service), 90, f"{service} is healthy")
    trained.serves(1)
    assert trained.predict(IRIS_ROW).status == 200
    assert "not promoted" in trained.train("iris").stdout


def test_a_training_that_is_killed_leaves_all_as_it_was(trained: Stack) -> None:
    trained.compose("--profile", "mlops", "up", "--detach", "mlops")
    container = trained.container("mlops")
    wait_until(lambda: "rows read" in trained.logs("mlops"), 60, "training is at work")
    docker("kill", "--signal", "KILL", container)
    assert docker("wait", container).stdout == "137\n"
    assert trained.version() == 1
    assert "not promoted" in trained.train("iris").stdout


def test_a_training_that_is_stopped_closes_its_run(trained: Stack) -> None:
    def newest() -> dict[str, str]:
        search = f"{trained.mlflow}/api/2.0/mlflow/runs/search"
        return dict(ask(search, {"experiment_ids": ["1"], "max_results": 1}).json["runs"][0]["info"])

    before = newest()["run_id"]
    endless = "{max_iter: 1000000, n_iter_no_change: 1000000}"
    run = trained.train_estimator("sklearn.neural_network.MLPClassifier", endless, options=("--detach",))
    container = run.stdout.split()[-1]
    wait_until(lambda: newest()["run_id"] != before, 60, "training is at work")
    docker("stop", container)
    assert docker("wait", container).stdout == "1\n"
    assert docker("logs", container).stderr.splitlines()[-1] == "Stopped."
    docker("rm", container)
    assert newest()["run_id"] != before
    assert newest()["status"] == "KILLED"


def test_after_a_crash_of_the_engine_the_lab_comes_back(trained: Stack) -> None:
    as_root(str(Path(__file__).with_name("engine.sh")), "restart")
    wait_until(lambda: trained.healthy("server_mlflow") and trained.healthy("api"), 120, "both are healthy")
    trained.serves(1)
    assert trained.predict(IRIS_ROW).status == 200


def test_they_may_start_in_any_order(trained: Stack) -> None:
    trained.compose("--profile", "mlops", "down")
    trained.compose("up", "--detach", "--no-deps", "api")
    wait_until(lambda: trained.healthy("api"), 60, "the API is up alone")
    wait_until(lambda: trained.version() == 1, 60, "the last version served is served from the cache")
    assert ask(f"{trained.api}/health").json["status"] == "degraded"
    trained.compose("--profile", "mlops", "up", "--detach", "--no-deps", "mlops")
    trained.compose("up", "--detach", "--no-deps", "server_mlflow")
    assert docker("wait", trained.container("mlops")).stdout == "0\n", trained.logs("mlops")
    trained.serves(1)
    assert trained.predict(IRIS_ROW).status == 200


def test_a_stopped_api_answers_all_that_it_took(trained: Stack) -> None:
    """Each request that the API logged was answered, while it was stopped under load."""
    address = trained.state("api")["NetworkSettings"]["Networks"]["labstack-test_lab"]["IPAddress"]
    answered, stop = set[str](), threading.Event()

    def load() -> None:
        body = json.dumps(IRIS_ROW)
        while not stop.is_set():
            name = f"load-{uuid.uuid4().hex}"
            connection = http.client.HTTPConnection(address, 5002, timeout=10)  # no relay of the engine's between
            try:
                connection.request("POST", "/predict", body, {"Content-Type": "application/json", "X-Request-Id": name})
                if connection.getresponse().read():
                    answered.add(name)
            except (OSError, http.client.HTTPException):
                time.sleep(0.01)  # refused: it is stopping
            finally:
                connection.close()

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(answered) > 200, 30, "it is under load")
    begun = time.monotonic()
    trained.compose("stop", "api")
    took = time.monotonic() - begun
    stop.set()
    for thread in threads:
        thread.join()
    assert trained.state("api")["State"]["ExitCode"] == 0
    assert took < 40
    lines = [json.loads(line) for line in trained.logs("api").splitlines() if '"load-' in line]
    taken = {line["request_id"] for line in lines}
    assert len(taken) > 200
    assert taken - answered == set()
    trained.up()
    trained.serves(1)


def test_a_stopped_server_finishes_the_upload_it_took(trained: Stack) -> None:
    address, path = trained.mlflow.removeprefix("http://"), "/api/2.0/mlflow-artifacts/artifacts/1/slow/file.bin"
    connection = http.client.HTTPConnection(address, timeout=30)
    stopped = threading.Thread(target=trained.compose, args=("stop", "server_mlflow"))

    def chunks() -> Iterator[bytes]:
        for number in range(20):
            if number == 5:
                stopped.start()
            yield b"x" * 100_000
            time.sleep(0.1)

    connection.request("PUT", path, chunks(), {"Content-Type": "application/octet-stream", "Content-Length": "2000000"})
    assert connection.getresponse().status == 200
    connection.close()
    stopped.join()
    assert trained.state("server_mlflow")["State"]["ExitCode"] == 0
    trained.up()
    assert len(ask(f"{trained.mlflow}{path}").text) == 2_000_000


def test_a_model_larger_than_the_memory_of_tmp_is_stored(trained: Stack) -> None:
    size = 150_000_000
    url = f"{trained.mlflow}/api/2.0/mlflow-artifacts/artifacts/1/large/file.bin"
    listed = "import os; print(os.listdir('/lab/mlflow/tmp'))"
    before = trained.python("server_mlflow", listed)  # killed trainings leave something, for a day
    assert ask(url, bytes(size), "PUT", {"Content-Type": "application/octet-stream"}).status == 200
    stored = "import os; print(os.path.getsize('/lab/mlflow/mlartifacts/1/large/file.bin'))"
    assert trained.python("server_mlflow", stored) == str(size)
    assert trained.python("server_mlflow", listed) == before


def test_what_killed_containers_left_is_removed_and_keeps_none_from_starting(trained: Stack) -> None:
    """A file that is old, and a folder that is and holds a new file, which a running container may still need."""
    code = """
import os, pathlib
tmp = pathlib.Path("/lab/training/tmp")
(tmp / "old").write_text("")
(tmp / "kept").mkdir()
(tmp / "kept/new").write_text("")
for path in (tmp / "old", tmp / "kept"):
    os.utime(path, (0, 0))
"""
    in_the_volume = ("run", "--rm", "-T", "--no-deps", "--entrypoint", "python", "mlops", "-c")
    trained.compose(*in_the_volume, code)
    assert "not promoted" in trained.train("iris").stdout
    left = "import glob, os; print(glob.glob('/lab/training/tmp/*/new'), os.path.exists('/lab/training/tmp/old'))"
    assert trained.compose(*in_the_volume, left).stdout == "['/lab/training/tmp/kept/new'] False\n"
