"""The prediction log of a running API: workers that write, are killed and stop, and a database that stalls."""

import http.client
import json
import os
import re
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from labstack.store.database import connect, migrate, reading
from labstack.store.predictions import Prediction
from labstack.store.windows import Window
from tests.conftest import IRIS_ROW, Lab, Process, ask, run_api, wait_until


def predict(api: Process, number: int, name: str = "r", first: int = 0) -> list[tuple[str, float]]:
    """Send requests on one connection until one fails; the ids of those answered, and the times."""
    answered = []
    connection = http.client.HTTPConnection("localhost", int(api.url.rpartition(":")[2]), timeout=30)
    for index in range(first, first + number):
        headers = {"Content-Type": "application/json", "X-Request-Id": f"{name}-{index}"}
        try:
            connection.request("POST", "/predict", json.dumps(IRIS_ROW), headers)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            break
        if answer.status != 200:
            break
        answered.append((f"{name}-{index}", time.time()))
    connection.close()
    return answered


def kept(folder: Path) -> list[str]:
    engine = connect(f"sqlite:///{folder}/lab.db")
    migrate(engine)
    with reading(engine) as session:
        return list(session.scalars(select(Prediction.request_id)))


def counted(api: Process, metric: str, what: str = "predictions") -> float:
    lines = ask(f"{api.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f'{metric}{{what="{what}"}}'))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the write lock of the database."""
    holder = sqlite3.connect(folder / "lab.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        holder.close()


@pytest.mark.parametrize("mode", ["batched", "durable"])
def test_four_workers_keep_all_that_they_answer(lab: Lab, tmp_path: Path, mode: str) -> None:
    """Nothing is lost on a graceful stop, nothing is kept twice, and windows count the same."""
    with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri, api_workers=4, prediction_log=mode) as api:
        wait_until(lambda: len(workers_of(api)) == 4, 30, "all workers are up")
        with ThreadPoolExecutor(8) as pool:
            parts = list(pool.map(lambda number: predict(api, 100, f"c{number}"), range(8)))
        assert api.stop() == 0
    names = kept(tmp_path)
    assert sorted(names) == sorted(name for part in parts for name, _ in part)
    assert len(names) == 800
    with reading(connect(f"sqlite:///{tmp_path}/lab.db")) as session:
        counts = [json.loads(text) for text in session.scalars(select(Window.counts))]
        assert len(set(session.scalars(select(Window.writer)))) > 1
        prediction = session.scalars(select(Prediction).limit(1)).one()
    assert sum(count["rows"] for count in counts) == sum(count["requests"] for count in counts) == 800
    assert json.loads(prediction.inputs or "") == [IRIS_ROW]
    assert json.loads(prediction.outputs)[0]["class"] == "setosa"
    assert (prediction.model, prediction.version, prediction.role) == ("iris", 1, "production")
    assert 0 < prediction.latency_ms < 1000
    assert abs(prediction.at - time.time()) < 120


def workers_of(api: Process) -> list[int]:
    return [worker["pid"] for worker in ask(f"{api.url}/admin/reload", b"", "POST").json["workers"]]


@pytest.mark.parametrize(("mode", "lost_seconds"), [("batched", 0.5), ("durable", 0.0)])
def test_a_killed_worker_loses_at_most_half_a_second_or_nothing(
    lab: Lab, tmp_path: Path, mode: str, lost_seconds: float
) -> None:
    with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri, api_workers=1, prediction_log=mode) as api:
        [pid] = workers_of(api)
        with ThreadPoolExecutor(4) as pool:
            parts = [pool.submit(predict, api, 100_000, f"c{number}") for number in range(4)]
            wait_until(lambda: len(kept(tmp_path)) > 500, 20, "predictions are kept")
            os.kill(pid, signal.SIGKILL)
            died = time.time()
            answered = dict(answer for part in parts for answer in part.result())
        names = set(kept(tmp_path))
    lost = {name: died - at for name, at in answered.items() if name not in names}
    assert all(age <= lost_seconds for age in lost.values()), sorted(lost.values())[-3:]


def test_durable_gives_no_answer_that_it_could_not_keep(lab: Lab, tmp_path: Path) -> None:
    with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri, prediction_log="durable") as api:
        assert ask(f"{api.url}/predict", IRIS_ROW, headers={"X-Request-Id": "good"}).status == 200
        with locked(tmp_path):
            refused = ask(f"{api.url}/predict", IRIS_ROW, headers={"X-Request-Id": "refused"})
            assert refused.status == 503
            assert "PREDICTION_LOG=durable" in refused.json["detail"]
            assert ask(f"{api.url}/health").status == 200
        wait_until(lambda: ask(f"{api.url}/predict", IRIS_ROW).status == 200, 20, "it recovers")
    assert "good" in kept(tmp_path)
    assert "refused" not in kept(tmp_path)


def answered_by(api: Process, done: threading.Event, clients: int) -> list[tuple[str, int]]:
    """Have clients send requests without pause until `done` is set; the request ids, and the status of each answer."""

    def send(name: int) -> list[tuple[str, int]]:
        answers: list[tuple[str, int]] = []
        for number in count():
            if done.is_set():
                return answers
            request_id = f"c{name}-{number}"
            answer = ask(f"{api.url}/predict", IRIS_ROW, headers={"X-Request-Id": request_id})
            answers.append((request_id, answer.status))
        return answers

    with ThreadPoolExecutor(clients) as pool:
        return [answer for part in pool.map(send, range(clients)) for answer in part]


@contextmanager
def load(api: Process, clients: int) -> Iterator[list[tuple[str, int]]]:
    """Load on an API; after the context, the list holds all answers."""
    done = threading.Event()
    seen: list[tuple[str, int]] = []
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(answered_by, api, done, clients)
        try:
            yield seen
        finally:
            done.set()
            seen += asking.result()


def reachable(api: Process) -> bool:
    return 'labstack_database_reachable{database="lab"} 1.0' in ask(f"{api.url}/metrics").text


def accounted(api: Process, requests: int) -> tuple[float, float] | None:
    """The numbers of predictions kept and dropped, once their sum is that of the requests."""
    numbers = counted(api, "labstack_kept_total"), counted(api, "labstack_dropped_total")
    return numbers if sum(numbers) == requests else None


def logged(api: Process, fault: str) -> bool:
    return any(re.search(fault, line["error"]) for line in api.lines("predictions not kept"))


def test_durable_keeps_what_it_answers_and_nothing_that_it_refused(lab: Lab, tmp_path: Path) -> None:
    """The lock is held so long that requests are refused in the queue and in a transaction while it is freed."""
    with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri, prediction_log="durable", api_threads=8) as api:
        with load(api, 16) as seen:
            wait_until(lambda: len(kept(tmp_path)) > 100, 20, "predictions are kept")
            with locked(tmp_path):
                time.sleep(6.3)  # as many requests wait, some of them for longer than they may
            wait_until(lambda: reachable(api), 20, "it recovers")
        wait_until(lambda: reachable(api), 20, "all that is in doubt is settled")
        assert api.stop() == 0
    statuses = {status for _, status in seen}
    assert statuses == {200, 503}
    assert sorted(kept(tmp_path)) == sorted(name for name, status in seen if status == 200)


def test_off_keeps_nothing_but_counts(lab: Lab, tmp_path: Path) -> None:
    with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri, prediction_log="off") as api:
        predict(api, 50)

        def rows() -> Any:
            return ask(f"{api.url}/drift").json["versions"][0]["rows"] == 50

        wait_until(rows, 10, "the windows count")
    assert kept(tmp_path) == []


def test_inputs_are_left_out_where_they_are_to_be(lab: Lab, tmp_path: Path) -> None:
    with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri, log_inputs="false") as api:
        predict(api, 1)
        api.stop()
    with reading(connect(f"sqlite:///{tmp_path}/lab.db")) as session:
        assert list(session.scalars(select(Prediction.inputs))) == [None]


def test_a_database_that_cannot_be_opened_stops_no_prediction(lab: Lab, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/lab.db"
    (tmp_path / "lab.db").write_text("Dear diary, " * 1000)
    with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri, lab_database_url=url) as api:
        assert len(predict(api, 20)) == 20
        for path in ("/drift", "/audit"):
            assert ask(api.url + path).status == 503
        wait_until(lambda: not reachable(api), 10, "the error is reported")
        wait_until(lambda: logged(api, "not a database"), 10, "and its cause")
        status = ask(f"{api.url}/canary-status")
        assert (status.status, status.json["verdict"]) == (200, None)
        began = time.monotonic()
        assert api.stop() == 0
        assert time.monotonic() - began < 20


def test_drift_is_that_of_all_workers_and_all_replicas(lab: Lab, tmp_path: Path) -> None:
    """Two APIs with four workers each report the same within two seconds, however requests were distributed."""
    shared: dict[str, Any] = {"mlflow_tracking_uri": lab.tracking_uri, "api_workers": 4}
    shared["lab_database_url"] = f"sqlite:///{tmp_path}/lab.db"
    (tmp_path / "other").mkdir()
    with run_api(tmp_path, **shared) as first_api, run_api(tmp_path / "other", **shared) as second_api:
        threads = [
            threading.Thread(target=predict, args=(api, 100, f"{n}"))
            for n, api in enumerate((first_api, second_api) * 4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for api in (first_api, second_api):
            wait_until(lambda: ask(f"{api.url}/drift").json["versions"][0]["rows"] == 800, 10, "all is counted")  # noqa: B023
        first, second = (ask(f"{api.url}/drift").json["versions"][0] for api in (first_api, second_api))
        assert first == second
        assert first["verdict"] == "drifted", "the same row repeated is far from training"
