"""run_all.sh and the commands of README and docs, run as a newcomer would: on a fresh copy, in a path with spaces."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from labstack.settings import ROOT
from labstack.store import audit
from labstack.store.database import connect
from tests.conftest import IRIS_ROW, answers, ask, free_port, wait_until
from tests.docs.pages import commands

NO_ENGINE = "(there is no docker command here|docker has no Compose plugin here|no container engine answers)"


@dataclass
class Copy:
    """A copy of the project as git would clone it, with ports of its own."""

    folder: Path
    mlflow_port: int
    api_port: int

    def run(self, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(self.folder / "run_all.sh"), *arguments],
            cwd="/",
            env=self.environment() | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=280,
        )

    def environment(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in ("LAB_ENV_FILE", "PYTHONPATH") and not name.startswith("MLFLOW_")
        }
        ports = {"MLFLOW_PORT": str(self.mlflow_port), "API_PORT": str(self.api_port)}
        return kept | ports | {"DOCKER_HOST": "unix:///no/engine"}

    @property
    def api(self) -> str:
        return f"http://localhost:{self.api_port}"

    def pids(self) -> dict[str, int]:
        """The recorded process id of each service."""
        return {path.stem: json.loads(path.read_text())["pid"] for path in (self.folder / ".lab/run").glob("*.json")}


def copy_to(folder: Path) -> Copy:
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    for name in filter(None, tracked.decode().split("\0")):
        if os.path.lexists(ROOT / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return Copy(folder, free_port(), free_port())


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    """A copy on which `./run_all.sh` has been called once, its output in `first.txt`."""
    copy = copy_to(tmp_path_factory.mktemp("clones") / "a fresh clone")
    try:
        first = copy.run()
        assert first.returncode == 0, first
        (copy.folder / "first.txt").write_text(first.stdout)
        yield copy
    finally:
        copy.run("down")


def test_from_nothing_to_a_prediction(copy: Copy) -> None:
    lines = (copy.folder / "first.txt").read_text().splitlines()
    steps = [match.groups() for line in lines if (match := re.match(r"\[(\d)/6\] (.+?) +[\d.]+ s", line))]
    names = ["environment", "MLflow server", "database", "training", "API", "prediction"]
    assert steps == [(str(number), name) for number, name in enumerate(names, 1)]
    assert re.fullmatch(f"Labstack, as processes of this machine: {NO_ENGINE}", lines[0])
    text = "\n".join(lines)
    assert "iris version 1 is production" in text
    assert "student_exam version 1 is production" in text
    [curl] = [line for line in lines if line.startswith("curl ")]
    shown = json.loads(lines[lines.index(curl) + 1])
    again = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["prediction"] == shown["prediction"]
    assert f"API     {copy.api}" in lines


def test_a_random_token_is_made_for_operators_and_only_its_owner_reads_it(copy: Copy) -> None:
    env = copy.folder / ".env"
    assert env.stat().st_mode & 0o777 == 0o600
    assert re.search(r"^API_ADMIN_TOKEN=[0-9a-f]{48}$", env.read_text(), re.MULTILINE)
    assert ask(f"{copy.api}/admin/reload", b"", "POST").status == 403


def test_nothing_is_written_outside_the_ignored_places(copy: Copy, tmp_path: Path) -> None:
    written = {path.name for path in copy.folder.iterdir()}
    cloned = {path.name for path in copy_to(tmp_path).folder.iterdir()}
    assert written - cloned == {".env", ".lab", ".venv", "outputs", "first.txt"}
    assert {path.name for path in (copy.folder / "db").iterdir()} >= {"lab.db", "mlruns.db", "mlartifacts"}


def test_called_again_it_leaves_alone_what_runs(copy: Copy) -> None:
    before = copy.pids()
    again = copy.run("up", MLFLOW_TRACKING_URI="http://mlflow.example")  # another server's, from the user's shell
    assert "MLFLOW_TRACKING_URI" in again.stderr
    assert again.returncode == 0, again
    assert again.stdout.startswith("Labstack, as processes of this machine\n")  # as before
    assert again.stdout.count("already running") == 2
    refused = copy.run("up", "--containers")
    assert (refused.returncode, "Stop it first: ./run_all.sh down" in refused.stderr) == (1, True)
    assert "version 2" not in again.stdout
    assert copy.pids() == before


def test_twice_at_once_the_second_waits(copy: Copy) -> None:
    results: list[subprocess.CompletedProcess[str]] = []
    threads = [threading.Thread(target=lambda: results.append(copy.run())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.returncode for result in results] == [0, 0]
    assert "".join(result.stderr for result in results).count("waiting for it") == 1


def test_status_and_logs_and_predict(copy: Copy) -> None:
    status = copy.run("status")
    assert status.returncode == 0
    assert [line.split()[:2] for line in status.stdout.splitlines()] == [["server_mlflow", "up"], ["api", "up"]]
    assert '"message":"prediction"' in copy.run("logs", "api").stdout
    assert "Uvicorn running" in copy.run("logs").stdout
    assert copy.run("predict", "student_exam").stdout.startswith(f"curl {copy.api}/models/student_exam/predict ")
    assert "'irish'" in copy.run("predict", "irish").stderr
    assert copy.run("status", "now").stderr == "This task takes no argument 'now'.\n"
    assert copy.run("logs", "cellar").stderr == "There is no service 'cellar'; there are: server_mlflow, api.\n"
    assert copy.run("predict").stdout.startswith("curl ")


def test_through_a_link_and_behind_a_proxy_it_works_on_its_own_folder(copy: Copy, tmp_path: Path) -> None:
    (tmp_path / "lab").symlink_to(copy.folder / "run_all.sh")
    linked = subprocess.run(
        [tmp_path / "lab", "status"],
        env=copy.environment() | {"http_proxy": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
    )
    assert linked.returncode == 0, linked
    assert list(tmp_path.iterdir()) == [tmp_path / "lab"]


def test_with_other_ports_no_task_takes_another_lab_for_this_one(copy: Copy) -> None:
    for task in ("predict", "train"):
        refused = copy.run(task, MLFLOW_PORT=str(free_port()), API_PORT=str(free_port()))
        assert refused.returncode == 1
        assert "of this lab runs on port" in refused.stderr
    shown = copy.run("status", API_PORT="6002").stdout
    assert f"{copy.api}  3 processes" in shown
    assert "(the settings now say port 6002)" in shown


def test_pipeline_files_are_those_of_the_callers_folder(copy: Copy, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: 7\n")
    (tmp_path / "irish").write_text("a file that is no pipeline takes no name's place")
    for argument, message in (
        ("mine.yaml", f"{tmp_path}/mine.yaml: model: "),
        ("irish", "There is no pipeline 'irish'"),
    ):
        refused = subprocess.run(
            [copy.folder / "run_all.sh", "train", argument],
            cwd=tmp_path,
            env=copy.environment(),
            capture_output=True,
            text=True,
        )
        assert refused.returncode == 1
        assert refused.stderr.startswith(f"Training stopped: {message}")


def test_a_log_is_replaced_while_its_service_runs_and_no_line_is_lost(copy: Copy) -> None:
    log = copy.folder / ".lab/logs/api.log"
    older = log.with_name("api.log.1")
    connection = http.client.HTTPConnection("localhost", copy.api_port, timeout=30)
    body, sent = json.dumps([IRIS_ROW] * 10), 0
    before = copy.pids()
    while not older.exists() or sent % 100:
        headers = {"Content-Type": "application/json", "X-Request-Id": f"line-{sent:05}"}
        connection.request("POST", "/predict", body, headers)
        assert connection.getresponse().read()
        sent += 1
        assert sent < 20_000
    connection.close()

    def logged() -> list[str]:
        return re.findall(r'"request_id":"line-(\d+)"', older.read_text() + log.read_text())

    wait_until(lambda: len(logged()) >= sent, 30, "all lines are written")
    assert sorted(logged()) == [f"{number:05}" for number in range(sent)]
    assert older.stat().st_size + log.stat().st_size < 20_000_000
    assert f"line-{0:05}" in copy.run("logs", "api").stdout
    assert copy.pids() == before
    assert copy.run("status").returncode == 0


def test_an_environment_is_not_taken_from_under_a_running_lab(copy: Copy) -> None:
    stamp = copy.folder / ".venv/labstack-requirements.txt"
    made = stamp.read_text()
    stamp.write_text(made + "another==1.0\n")
    refused = copy.run("train")
    assert (refused.returncode, "Stop it: ./run_all.sh down" in refused.stderr) == (1, True)
    assert copy.run("status").returncode == 0
    stamp.write_text(made)


def test_the_documented_commands_do_what_is_shown(copy: Copy) -> None:
    follow_readme(copy.folder, str(copy.mlflow_port), str(copy.api_port), env=copy.environment())


def follow_readme(folder: Path, mlflow_port: str, api_port: str, **options: Any) -> None:
    """Run every shell block of README and docs in a copy of the project, on its ports; all do what the text shows."""
    blocks = commands()
    assert len(blocks) >= 16
    for command, shown in blocks:
        if command == "./run_all.sh test\n":  # this is what it runs
            continue
        moved = command.replace("localhost:5001", f"localhost:{mlflow_port}").replace(
            "localhost:5002", f"localhost:{api_port}"
        )
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", moved], cwd=folder, capture_output=True, text=True, **options
        )
        assert done.returncode == 0, (moved, done)
        if moved.startswith("curl") or "curl -s" in moved:
            answer = json.loads(done.stdout)
            assert "type" not in answer, answer
            if shown:
                assert rounded(answer | {"request_id": ""}) == rounded(json.loads(shown) | {"request_id": ""})


def rounded(value: object) -> object:
    """A JSON value with its numbers rounded as the README shows them."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value


def test_an_unknown_task_is_refused(copy: Copy) -> None:
    assert copy.run("--help").stdout == copy.run("help").stdout
    for task in ("dance", "step", "quietly", "rm -rf", "", "u.", "["):
        refused = copy.run(task)
        assert (refused.returncode, refused.stderr) == (
            1,
            f"There is no task '{task}'. ./run_all.sh help lists them.\n",
        )


def history(copy: Copy) -> list[tuple[str | None, int]]:
    """Every move of a production role in the copy's database."""
    moves = audit.role_moves(connect(f"sqlite:///{copy.folder}/db/lab.db"))
    return [(move.model, move.to_version or 0) for move in moves]


def test_what_was_there_at_a_backup_is_there_again(copy: Copy, tmp_path: Path) -> None:
    def newest() -> int:
        url = f"http://localhost:{copy.mlflow_port}/api/2.0/mlflow/registered-models/get?name=student_exam"
        return int(ask(url).json["registered_model"]["latest_versions"][0]["version"])

    archive, before = tmp_path / "lab.tar.gz", newest()
    assert copy.run("backup", str(archive)).stdout.startswith(f"{archive}: ")
    assert archive.stat().st_mode & 0o777 == 0o600
    refused = copy.run("backup", str(archive))
    assert (refused.returncode, refused.stderr) == (1, f"{archive} exists already. Nothing was written.\n")
    assert copy.run("train", "student_exam").returncode == 0
    assert newest() == before + 1
    for arguments, message in (
        ([], "Which archive?"),
        ([str(tmp_path / "none")], "There is no file"),
        ([str(archive)], "Nothing was replaced. Without a terminal"),
    ):
        refused = copy.run("restore", *arguments)
        assert refused.returncode == 1
        assert message in refused.stderr
        assert newest() == before + 1
    restored = copy.run("restore", str(archive), "--yes")
    assert restored.returncode == 0, restored
    assert newest() == before
    assert copy.run("predict").returncode == 0


def test_after_a_crash_it_comes_up_again(copy: Copy) -> None:
    for pid in copy.pids().values():
        os.kill(pid, signal.SIGKILL)
    assert copy.run("status").returncode == 1
    served = history(copy)
    copy.api_port = free_port()  # the API is to move
    up = copy.run()
    assert up.returncode == 0, up
    assert up.stdout.count("started: ") == 2
    assert ask(f"{copy.api}/predict", IRIS_ROW).status == 200
    assert history(copy) == served


def test_a_process_id_that_went_to_somebody_else_is_not_touched(copy: Copy) -> None:
    assert copy.run("down").returncode == 0
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
    try:
        record = {"pid": stranger.pid, "created": psutil.Process(stranger.pid).create_time() - 1000}
        (copy.folder / ".lab/run/api.json").write_text(json.dumps(record))
        assert copy.run("down").stdout.splitlines() == [
            "api            was not running",
            "server_mlflow  was not running",
        ]
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_port_that_is_taken_is_named_with_its_owner_and_the_setting(copy: Copy) -> None:
    assert copy.run("down").returncode == 0
    with socket.create_server(("127.0.0.1", copy.api_port)):
        refused = copy.run()
    assert refused.returncode == 1
    message, step = refused.stderr.splitlines()
    assert message.startswith(f"Port {copy.api_port}, which api needs, is taken by ")
    assert f"(process {os.getpid()})" in message
    assert "API_PORT=<port> in .env" in message
    assert not answers(f"http://localhost:{copy.mlflow_port}/health")
    assert step == "Nothing was started."


def test_no_empty_lab_is_begun_in_containers_beside_one_that_is_not_saved(copy: Copy, tmp_path: Path) -> None:
    assert copy.run("down").returncode == 0
    (copy.folder / ".lab/saved").unlink(missing_ok=True)
    refused = copy.run("up", "--containers")
    assert refused.returncode == 1
    assert "backup <file>, down, up --containers, restore <file>" in refused.stderr
    assert copy.run("backup", str(tmp_path / "lab.tar.gz")).returncode == 0
    refused = copy.run("up", "--containers")
    assert (refused.returncode, bool(re.search(NO_ENGINE, refused.stderr))) == (1, True)


def test_containers_that_are_asked_for_and_cannot_be_had_are_refused_with_the_reason(bare: Copy) -> None:
    refused = bare.run("up", "--containers")
    assert refused.returncode == 1
    message = rf"This lab is to be in containers, and {NO_ENGINE}\. Nothing was started\.\n"
    assert re.fullmatch(message, refused.stderr)
    assert not (bare.folder / ".lab/place").exists()
    assert bare.run("up", "--sideways").stderr == "up takes --containers or --local, and nothing else.\n"


def test_a_wrong_setting_stops_it_with_one_line(copy: Copy) -> None:
    refused = copy.run("up", API_WORKERS="many")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[0].startswith("A setting is wrong: API_WORKERS")
    assert "Traceback" not in refused.stderr


@pytest.fixture
def bare(tmp_path: Path) -> Copy:
    """A copy that nothing has been run in."""
    return copy_to(tmp_path / "bare")


def test_a_token_is_added_to_settings_that_have_none(copy: Copy) -> None:
    env = copy.folder / ".env"
    made = env.read_text()
    env.write_text("LOG_LEVEL=debug\n")
    copy.run("up", API_WORKERS="many")  # goes no further than the settings
    assert re.fullmatch(r"LOG_LEVEL=debug\nAPI_ADMIN_TOKEN=[0-9a-f]{48}\n", env.read_text())
    env.write_text(made)


def test_clean_asks_and_then_leaves_only_what_git_knows(copy: Copy) -> None:
    refused = copy.run("clean")
    assert (refused.returncode, (copy.folder / ".venv").exists()) == (1, True)
    assert "Nothing was deleted" in refused.stderr
    assert copy.run("clean", "--yes").returncode == 0
    assert not answers(f"{copy.api}/health")
    left = {str(path.relative_to(copy.folder)) for path in copy.folder.rglob("*") if path.is_file()}
    left -= {"first.txt", ".lab/lock"}  # another call may be waiting for the lock
    tracked = copy_to(copy.folder.parent / "another")
    assert left == {str(path.relative_to(tracked.folder)) for path in tracked.folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("task", ["status", "down", "logs", "predict"])
def test_where_no_lab_is_none_is_made(bare: Copy, task: str) -> None:
    refused = bare.run(task)
    assert (refused.returncode, refused.stderr) == (1, "There is no lab here yet. Bring it up: ./run_all.sh\n")
    assert not (bare.folder / ".venv").exists()


@pytest.mark.parametrize(
    "task",
    [
        "up",
        "up --local",
        "down",
        "status",
        "logs",
        "train",
        "predict",
        "backup",
        "restore {folder}/x --yes",
        "clean --yes",
    ],
)
def test_a_lab_in_containers_whose_engine_is_down_is_left_alone(bare: Copy, task: str) -> None:
    (bare.folder / ".lab").mkdir()
    (bare.folder / ".lab/place").write_text("containers\n")
    (bare.folder / "x").touch()
    refused = bare.run(*task.format(folder=bare.folder).split())
    assert refused.returncode == 1
    assert re.match(f"This lab is in containers, and {NO_ENGINE}\\. Start the engine", refused.stderr), refused
    assert ("backup <file>, down, up --local, restore <file>" in refused.stderr) == (task == "up --local")
    assert ("--local" in refused.stderr) == (task == "up --local")
    assert not (bare.folder / ".venv").exists()
    assert (bare.folder / ".lab/place").read_text() == "containers\n"


def test_a_path_that_databases_cannot_name_is_refused(tmp_path: Path) -> None:
    refused = copy_to(tmp_path / "what?").run()
    assert (refused.returncode, "cannot live in a folder" in refused.stderr) == (1, True)


def test_without_a_network_it_says_so_and_leaves_nothing(bare: Copy, tmp_path: Path) -> None:
    proxy = "http://127.0.0.1:9"  # nobody listens there
    variables = dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy"), proxy)
    refused = bare.run(
        **variables, UV_CACHE_DIR=str(tmp_path / "cache"), UV_HTTP_RETRIES="0", PIP_RETRIES="0", NO_PROXY=""
    )
    assert refused.returncode == 1
    message, step = refused.stderr.splitlines()
    assert "the package index cannot be reached" in message
    assert step == "[1/6] environment failed."
    assert not (bare.folder / ".venv").exists()
    assert not (bare.folder / ".lab/uv").exists()


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="a small disk is mounted, as root on Linux")
def test_on_a_full_disk_it_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "small disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", str(disk)], check=True)
    try:
        bare = copy_to(disk / "clone")
        refused = bare.run()
        assert refused.returncode == 1
        message, step = refused.stderr.splitlines()
        assert "the disk is full" in message
        assert step == "[1/6] environment failed."
        assert not (bare.folder / ".venv").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_python_that_is_too_old_is_named(bare: Copy, tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text(
        f"#!/bin/sh\n[ \"$1\" != -c ] || exec '{sys.executable}' \"$@\"\nexec '{sys.executable}' -c '"
        'import runpy, sys; sys.version_info = (3, 9, 2, "final", 0); sys.argv = sys.argv[1:]; '
        'runpy.run_path(sys.argv[0], run_name="__main__")\' "$@"\n'
    )
    old.chmod(0o755)
    refused = bare.run("up", PYTHON=str(old))
    assert refused.returncode == 1
    assert refused.stderr.startswith("Labstack needs Python 3.11 or newer; ")
    assert refused.stderr.endswith("[1/6] environment failed.\n")
    assert " is 3.9." in refused.stderr
    missing = bare.run("up", PYTHON="/no/python")
    assert (missing.returncode, "there is no /no/python here" in missing.stderr) == (1, True)
