"""Serving under load: nothing is lost, nothing is stale, every value is that of the version it names."""

import itertools
import os
import random
import re
import signal
import subprocess
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from scipy import stats

from labstack.registry import moves
from labstack.registry.roles import Rollout, read_roles
from tests.conftest import Lab, Process, Relay, ask, run_api, wait_until
from tests.stress.conftest import ROW, Seen, Versions, load

PROMOTIONS = 100


def workers(api: Process) -> set[int]:
    return {child.pid for child in psutil.Process(api.popen.pid).children()}


def all_new(api: Process, old: set[int]) -> bool:
    """Return true when all workers run, and none of them is an old one."""
    now = workers(api)
    return not now & old and len(now) == len(ask(f"{api.url}/admin/reload", b"", "POST").json.get("workers", []))


def reload(api: Process, timeout_seconds: float = 60) -> None:
    answer = ask(f"{api.url}/admin/reload", b"", "POST", timeout_seconds=timeout_seconds)
    assert answer.status == 200, answer.text


def assert_right(seen: list[Seen], versions: Versions, least: int = 500) -> None:
    """Check that nothing failed, and that each value is that of the version in the answer."""
    assert len(seen) >= least
    assert [request.failure for request in seen if request.failure] == []
    assert all(abs(request.value - versions.values[request.version]) < 1e-3 for request in seen)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_of_many_promotions_none_loses_a_request_or_leaves_a_stale_answer(
    lab: Lab, versions: Versions, tmp_path: Path, workers: int
) -> None:
    """Run two API processes on one registry; each reload is sent to both, and is in force from its 200 on."""
    settled_moves: list[tuple[float, float, int]] = []  # when the move began, when both had answered, the version
    with ExitStack() as stack:
        apis = []
        for name in ("first", "second"):
            folder = tmp_path / name
            folder.mkdir()
            settings: dict[str, Any] = {"mlflow_tracking_uri": lab.tracking_uri, "api_workers": workers}
            apis.append(stack.enter_context(run_api(folder, **settings)))
        import time

        with load(*apis, path=versions.path, clients=3) as seen:
            for number in itertools.islice(itertools.cycle((2, 3, 1)), PROMOTIONS):
                began = time.monotonic()
                if read_roles(lab.registry, versions.model).production != number:
                    moves.promote(lab.registry, lab.engine, versions.model, number, reason="stress")
                for api in apis:
                    reload(api)
                settled_moves.append((began, time.monotonic(), number))
    assert_right(seen, versions, least=2000)
    for (_, settled, number), (following, _, _) in itertools.pairwise([*settled_moves, (time.monotonic(), 0.0, 0)]):
        stale = [
            request
            for request in seen
            if settled <= request.began and request.ended <= following and request.version != number
        ]
        assert stale == []


def test_a_killed_worker_takes_no_more_with_it_than_it_held(lab: Lab, versions: Versions, tmp_path: Path) -> None:
    kills, clients = 8, 6
    with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri, api_workers=3) as api:
        with load(api, path=versions.path, clients=clients) as seen:
            for _ in range(kills):
                victim = random.choice(sorted(workers(api)))  # noqa: S311
                os.kill(victim, signal.SIGKILL)
                wait_until(partial(all_new, api, {victim}), 30, "another worker")
                reload(api)
        assert len({worker["pid"] for worker in ask(f"{api.url}/admin/reload", b"", "POST").json["workers"]}) == 3
    lost = [request for request in seen if request.failure]
    assert len(lost) <= kills * clients
    assert_right([request for request in seen if not request.failure], versions)


def test_a_worker_that_hangs_is_replaced_and_new_callers_do_not_wait(
    lab: Lab, versions: Versions, tmp_path: Path
) -> None:
    with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri) as api:
        hung = min(workers(api))
        os.kill(hung, signal.SIGSTOP)
        began = time.monotonic()
        answers = [ask(api.url + versions.path, ROW).status for _ in range(20)]
        assert answers == [200] * 20
        assert time.monotonic() - began < 20  # gunicorn ends the worker after 30 s
        wait_until(lambda: hung not in workers(api) and len(workers(api)) == 2, 120, "another worker")
        reload(api)
        assert len(api.lines("prediction")) == 20


def test_a_reload_of_gunicorn_loses_nothing(lab: Lab, versions: Versions, tmp_path: Path) -> None:
    with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri) as api, load(api, path=versions.path) as seen:
        for _ in range(6):
            before = workers(api)
            api.popen.send_signal(signal.SIGHUP)
            wait_until(partial(all_new, api, before), 40, "all workers are new")
    assert_right(seen, versions)


def test_a_stop_answers_all_that_came(lab: Lab, versions: Versions, tmp_path: Path) -> None:
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        with run_api(folder, mlflow_tracking_uri=lab.tracking_uri) as api:
            with load(api, path=versions.path, ends=True) as seen:
                wait_until(lambda: sum(1 for _ in api.lines("prediction")) > 200, 30, "the load is on")
                assert api.stop() == 0
            lines = len(api.lines("prediction"))
        lost = [request for request in seen if request.failure]
        # a connection that nobody had taken yet may be refused in the middle; one that was answered is not cut
        assert [request for request in lost if request.reused] == []
        assert lines == len(seen) - len(lost)  # each prediction is in the log


def test_a_slow_registry_delays_no_request(lab: Lab, versions: Versions, tmp_path: Path) -> None:
    with Relay(lab.tracking_uri) as relay:
        settings: dict[str, Any] = {"mlflow_tracking_uri": relay.url, "follow_interval_seconds": 0.2}
        settings["reload_timeout_seconds"] = 120  # a look that asks for each model of the lab takes half a minute
        with run_api(tmp_path, **settings) as api:
            with load(api, path=versions.path) as quick:
                wait_until(lambda: len(api.lines("prediction")) > 2000, 60, "the load is on")
            relay.delay_seconds = 1.5
            with load(api, path=versions.path) as slow:
                reload(api, timeout_seconds=150)
            relay.delay_seconds = 0.0
    assert_right(quick, versions)
    assert_right(slow, versions)
    longest = max(request.ended - request.began for request in slow)
    assert longest < 1.5  # what waits for the registry waits longer


def test_a_registry_that_comes_and_goes_costs_no_request(lab: Lab, versions: Versions, tmp_path: Path) -> None:
    with Relay(lab.tracking_uri) as relay:
        settings: dict[str, Any] = {"mlflow_tracking_uri": relay.url, "follow_interval_seconds": 0.2}
        with run_api(tmp_path, **settings) as api, load(api, path=versions.path) as seen:
            for _ in range(3):
                relay.close()
                wait_until(lambda: ask(f"{api.url}/health").json["status"] == "degraded", 30, "the loss is seen")
                relay.open()
                wait_until(lambda: ask(f"{api.url}/health").json["status"] == "ok", 60, "it is back")
    assert_right(seen, versions)


def test_the_share_of_a_canary_holds_over_workers_and_replicas(lab: Lab, versions: Versions, tmp_path: Path) -> None:
    model, weight = versions.model, 0.25
    if read_roles(lab.registry, model).production != 1:
        moves.promote(lab.registry, lab.engine, model, 1, reason="stress")
    moves.start_canary(lab.registry, lab.engine, model, 2, Rollout(weight, "split"), reason="stress")
    keys = [f"user-{number}" for number in range(1000)]
    try:
        with ExitStack() as stack:
            roles: list[dict[str, str]] = []
            for name in ("first", "second"):
                folder = tmp_path / name
                folder.mkdir()
                settings: dict[str, Any] = {"mlflow_tracking_uri": lab.tracking_uri, "api_workers": 4}
                api = stack.enter_context(run_api(folder, **settings))
                reload(api)
                for _ in range(2):
                    answers = {key: ask(api.url + versions.path, ROW, headers={"X-Canary-Key": key}) for key in keys}
                    roles.append({key: answer.json["model"]["role"] for key, answer in answers.items()})
    finally:
        moves.stop_canary(lab.registry, lab.engine, model, reason="stress")
    assert all(answer == roles[0] for answer in roles)
    interval = stats.binom.interval(0.9999, len(keys), weight)
    assert interval[0] <= sum(role == "canary" for role in roles[0].values()) <= interval[1]


def test_a_full_disk_of_the_cache_keeps_what_is_served(lab: Lab, versions: Versions, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if read_roles(lab.registry, versions.model).production != 1:
        moves.promote(lab.registry, lab.engine, versions.model, 1, reason="stress")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], check=True)
    try:
        settings: dict[str, Any] = {"mlflow_tracking_uri": lab.tracking_uri, "api_cache_dir": disk}
        with run_api(tmp_path, **settings) as api, load(api, path=versions.path) as seen:
            ballast = os.open(disk / "ballast", os.O_CREAT | os.O_WRONLY)
            with pytest.raises(OSError, match="No space left"):
                while True:
                    os.write(ballast, b"x" * 4096)
            os.close(ballast)
            moves.promote(lab.registry, lab.engine, versions.model, 3, reason="stress")
            failed = ask(f"{api.url}/admin/reload", b"", "POST")
            assert (failed.status, "No space left" in failed.text) == (503, True), failed.text
            (disk / "ballast").unlink()
            reload(api)
        assert_right(seen, versions, least=100)
        assert seen[-1].version == 3
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_after_a_million_requests_memory_is_what_it_was(lab: Lab, versions: Versions, tmp_path: Path) -> None:
    script = tmp_path / "post.lua"
    body = "{" + ", ".join(f'\\"{name}\\": {value}' for name, value in ROW.items()) + "}"
    script.write_text(f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\nwrk.body = "{body}"\n')

    def ask_many(requests: int) -> int:
        """Send at least so many requests; return the number of answers."""
        answered = 0
        while answered < requests:
            command = ["wrk", "-t1", "-c16", "-d20", "-s", str(script), api.url + versions.path]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            assert "Non-2xx" not in output, output
            answered += int(re.search(r"(\d+) requests in", output)[1])
        return answered

    def memory() -> int:
        """Bytes of all workers."""
        return sum(child.memory_info().rss for child in psutil.Process(api.popen.pid).children())

    with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri, log_predictions=0.01) as api:
        answered = ask_many(100_000)
        before = memory()
        while answered < 1_000_000:
            answered += ask_many(100_000)
        assert memory() < 1.05 * before
