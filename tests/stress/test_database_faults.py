"""Errors of the database under the prediction log: it reports them, continues, and loses nothing counted as kept."""

import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from labstack.store.database import connect, migrate
from tests.api.recording.test_prediction_log import (
    accounted,
    counted,
    kept,
    load,
    locked,
    logged,
    predict,
    reachable,
    workers_of,
)
from tests.conftest import IRIS_ROW, Lab, Process, ask, run_api, wait_until


def test_predictions_go_on_while_the_database_stalls_and_what_was_lost_is_told(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri, api_workers=1, log_predictions=0) as api:
        predict(api, 5, "before")
        wait_until(lambda: len(kept(tmp_path)) == 5, 10, "the first are kept")
        with locked(tmp_path):
            with ThreadPoolExecutor(4) as pool:
                parts = [pool.submit(predict, api, 4000, f"c{number}") for number in range(4)]
                answered = sum(len(part.result()) for part in parts)
            assert answered == 16_000, "no request waits"
            wait_until(lambda: api.lines("predictions not kept"), 15, "the stall is logged")
            wait_until(lambda: counted(api, "labstack_dropped_total") > 0, 10, "what is lost is counted")
            assert 'labstack_database_reachable{database="lab"} 0.0' in ask(f"{api.url}/metrics").text
            assert len(kept(tmp_path)) == 5
        wait_until(lambda: api.lines("predictions kept again"), 20, "it recovers")
        wait_until(lambda: counted(api, "labstack_waiting") == 0, 20, "what waited is written")
        dropped = int(counted(api, "labstack_dropped_total"))
        names = kept(tmp_path)
    assert len(names) == len(set(names)) == 5 + answered - dropped
    assert 0 < dropped < answered
    assert api.lines("predictions kept again")[0]["dropped"] <= dropped


@pytest.mark.parametrize("mode", ["batched", "durable"])
def test_a_database_that_is_moved_away_and_back_holds_what_was_counted_as_kept(
    lab: Lab, tmp_path: Path, mode: str
) -> None:
    file, away = tmp_path / "lab.db", tmp_path / "away.db"
    with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri, prediction_log=mode) as api:
        with load(api, 4) as seen:
            wait_until(lambda: len(kept(tmp_path)) > 100, 20, "predictions are kept")
            file.rename(away)
            wait_until(lambda: not reachable(api), 10, "the loss is reported")
            wait_until(lambda: logged(api, r"lab\.db (is gone|was moved)"), 10, "and its cause")
            assert not file.exists(), "no empty file replaces it"
            away.rename(file)
            wait_until(lambda: reachable(api), 20, "it recovers")
        numbers = wait_until(lambda: accounted(api, len(seen)), 20, "each is kept or dropped")
        assert api.stop() == 0
    names = kept(tmp_path)
    if mode == "durable":
        assert sorted(names) == sorted(name for name, status in seen if status == 200)
    assert len(names) == len(set(names)) == numbers[0]


def test_another_database_at_its_place_is_written_to(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri, prediction_log="durable") as api:
        assert ask(f"{api.url}/predict", IRIS_ROW, headers={"X-Request-Id": "old"}).status == 200
        assert ask(f"{api.url}/audit").status == 200
        for path in tmp_path.glob("lab.db*"):
            path.rename(tmp_path / "old" / path.name)
        assert ask(f"{api.url}/predict", IRIS_ROW).status == 503
        assert ask(f"{api.url}/audit").status == 503
        migrate(connect(f"sqlite:///{tmp_path}/lab.db"))
        wait_until(lambda: reachable(api), 20, "it recovers")
        assert ask(f"{api.url}/predict", IRIS_ROW, headers={"X-Request-Id": "new"}).status == 200
        assert ask(f"{api.url}/audit").status == 200
    assert kept(tmp_path) == ["new"]
    assert kept(tmp_path / "old") == ["old"]


@contextmanager
def full(api: Process, folder: Path) -> Iterator[None]:
    """A disk with room for little more than the log, which is a file here."""
    pids, size = workers_of(api), api.log.stat().st_size + 16384
    assert size < (folder / "lab.db-wal").stat().st_size
    for pid in pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@contextmanager
def moved(api: Process, folder: Path) -> Iterator[None]:
    (folder / "lab.db").rename(folder / "away.db")
    try:
        yield
    finally:
        (folder / "away.db").rename(folder / "lab.db")


def test_a_fault_of_the_database_is_told_without_any_request(lab: Lab, tmp_path: Path) -> None:
    faults = {"locked": lambda _, folder: locked(folder), "I/O error|full": full, "gone|was moved": moved}
    with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri, prediction_log="durable") as api:
        for number, (text, fault) in enumerate(faults.items()):
            wait_until(lambda: reachable(api), 10, "all is well")
            with fault(api, tmp_path):
                wait_until(lambda: not reachable(api), 10, text)
                assert ask(f"{api.url}/health").status == 200
                assert ask(f"{api.url}/predict", IRIS_ROW, headers={"X-Request-Id": f"refused {number}"}).status == 503
            wait_until(lambda: logged(api, text), 10, f"{text} is logged")  # noqa: B023
        wait_until(lambda: reachable(api), 10, "all is well")
    assert kept(tmp_path) == []
