"""run_all.sh with a container engine: the same tasks, the same words. The tests follow each other."""

import json
import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ask, free_port
from tests.containers.conftest import Stack, docker

STEPS = ["images", "MLflow server", "training", "API", "prediction"]


def run(stack: Stack, *arguments: str, cwd: Path | None = None, **settings: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [stack.folder / "run_all.sh", *arguments],
        cwd=cwd or stack.folder,
        env={name: value for name, value in os.environ.items() if name != "LAB_ENV_FILE"} | stack.variables | settings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def test_images_that_cannot_be_built_leave_local_processes(stack: Stack) -> None:
    """Chosen by itself; it goes no further than the settings, one of which is wrong."""
    refused = run(stack, "up", BASE_IMAGE="no.such.host/image:none", API_WORKERS="many")
    assert refused.returncode == 1
    assert "no.such.host/image:none" in refused.stderr
    assert "Labstack, as processes of this machine: the images cannot be built\n" in refused.stdout
    assert "A setting is wrong: API_WORKERS" in refused.stderr
    refused = run(stack, "up", "--containers", BASE_IMAGE="no.such.host/image:none")
    assert (refused.returncode, "[1/5] images failed." in refused.stderr) == (1, True)
    assert not (stack.folder / ".lab/place").exists()  # nothing was begun


def test_from_nothing_to_a_prediction(stack: Stack) -> None:
    up = run(stack, "up")
    assert up.returncode == 0, up
    lines = up.stdout.splitlines()
    assert "Labstack, in containers" in lines
    steps = [match.groups() for line in lines if (match := re.match(r"\[(\d)/5\] (.+?) +[\d.]+ s", line))]
    assert steps == [(str(number), name) for number, name in enumerate(STEPS, 1)]
    assert "iris version 1 is production" in up.stdout
    [curl] = [line for line in lines if line.startswith("curl ")]
    again = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["prediction"] == json.loads(lines[lines.index(curl) + 1])["prediction"]
    assert f"MLflow  {stack.mlflow}" in lines
    assert f"API     {stack.api}" in lines


def test_called_again_it_leaves_alone_what_runs_and_changes_what_has_changed(stack: Stack) -> None:
    before = [stack.state(service)["Id"] for service in ("server_mlflow", "api")]
    assert run(stack, "up").returncode == 0
    assert [stack.state(service)["Id"] for service in ("server_mlflow", "api")] == before
    changed = run(stack, "up", API_WORKERS="1")
    assert changed.returncode == 0, changed
    assert stack.state("server_mlflow")["Id"] == before[0]
    processes = docker("top", stack.container("api")).stdout.splitlines()[1:]
    lasting = [line for line in processes if "healthcheck.py" not in line]  # which may be running at this moment
    assert len(lasting) == 3  # init, gunicorn, its worker


@pytest.mark.parametrize(
    ("setting", "service", "step"),
    [("MLFLOW_PORT", "server_mlflow", "[2/5] MLflow server"), ("API_PORT", "api", "[4/5] API")],
)
def test_a_port_that_is_taken_stops_it_and_is_named_with_its_owner_and_the_setting(
    stack: Stack, setting: str, service: str, step: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        refused = run(stack, "up", cwd=None, **{setting: str(port)})
    assert refused.returncode == 1
    *_, message, last = refused.stderr.splitlines()
    assert message.startswith(f"Port {port}, which {service} needs, is taken by '")
    assert message.endswith(f" (process {os.getpid()}). Stop it, or choose another port: {setting}=<port> in .env.")
    assert last == f"{step} failed."
    assert step not in refused.stdout
    assert "prediction" not in refused.stdout


def test_a_port_that_a_container_has_is_named_with_the_container(stack: Stack) -> None:
    port, image = free_port(), f"{stack.variables['COMPOSE_PROJECT_NAME']}-api"
    command = ("--entrypoint", "sleep", image, "300")
    container = docker("run", "--detach", "--name", "squatter", "--publish", f"127.0.0.1:{port}:80", *command)
    try:
        refused = run(stack, "up", API_PORT=str(port))
    finally:
        docker("rm", "--force", "--volumes", container.stdout.strip())
    assert f"Port {port}, which api needs, is taken by the container squatter. Stop it, or" in refused.stderr
    assert refused.stderr.endswith("\n[4/5] API failed.\n")
    assert run(stack, "up").returncode == 0


def test_an_engine_that_does_not_answer_is_no_lab_that_does_not_run(stack: Stack) -> None:
    for task in ("up", "up --local", "status", "down", "train"):
        refused = run(stack, *task.split(), DOCKER_HOST="unix:///no/engine")
        assert refused.returncode == 1
        assert refused.stderr.startswith("This lab is in containers, and no container engine answers. Start the engine")
    assert run(stack, "status").returncode == 0
    refused = run(stack, "up", "--local")
    assert (refused.returncode, "Stop it first: ./run_all.sh down" in refused.stderr) == (1, True)
    assert (stack.folder / ".lab/place").read_text() == "containers\n"


def test_status_logs_and_predict(stack: Stack) -> None:
    status = run(stack, "status")
    assert status.returncode == 0, status
    assert [line.split()[:3] for line in status.stdout.splitlines()] == [
        ["server_mlflow", "up", stack.mlflow],
        ["api", "up", stack.api],
    ]
    assert '"message":"prediction"' in run(stack, "logs", "api").stdout
    assert "Uvicorn running" in run(stack, "logs").stdout
    missing = run(stack, "logs", "cellar")
    assert (missing.returncode, missing.stderr[:30]) == (1, "There is no service 'cellar'; ")
    assert run(stack, "predict", "student_exam").stdout.startswith(f"curl {stack.api}/models/student_exam/predict ")
    missing = run(stack, "predict", "irish")
    assert (missing.returncode, "'irish'" in missing.stderr) == (1, True)


def test_a_pipeline_file_of_the_callers_is_trained(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "better.yaml").write_text(
        (stack.folder / "src/pipelines/iris.yaml").read_text().replace("max_iter: 1000", "max_iter: 1000, C: 10")
    )
    (tmp_path / "better.yaml").chmod(0o600)
    trained = run(stack, "train", "better.yaml", cwd=tmp_path)
    assert "iris version 2 is production: accuracy 0.9474 is better than 0.9211 of version 1" in trained.stdout, trained
    stack.serves(2)
    (tmp_path / "wrong.yaml").write_text("model: 7\n")
    refused = run(stack, "train", "wrong.yaml", cwd=tmp_path)
    assert refused.returncode == 1
    assert f"Training stopped: {tmp_path}/wrong.yaml: model: " in refused.stderr


def test_backup_and_restore(stack: Stack, tmp_path: Path) -> None:
    saved = run(stack, "backup", "lab.tar.gz", cwd=tmp_path)
    assert saved.stdout.startswith(f"{tmp_path}/lab.tar.gz: "), saved
    assert run(stack, "train", "iris").returncode == 3  # worse than production, and registered
    newest = f"{stack.mlflow}/api/2.0/mlflow/model-versions/get?name=iris&version=3"
    assert ask(newest).status == 200
    (tmp_path / "wrong.tar.gz").write_text("hello")
    refused = run(stack, "restore", "wrong.tar.gz", "--yes", cwd=tmp_path)
    assert (refused.returncode, "This is no archive of a lab" in refused.stderr) == (1, True)
    assert ask(newest).status == 200
    restored = run(stack, "restore", "lab.tar.gz", "--yes", cwd=tmp_path)
    assert restored.returncode == 0, restored
    assert ask(newest).status == 404
    stack.serves(2)


def test_the_lab_is_carried_over_to_processes_and_back(stack: Stack, tmp_path: Path) -> None:
    for number, place in enumerate(("local", "containers")):
        archive = f"{tmp_path}/{number}.tar.gz"
        for task in (f"backup {archive}", "down", f"up --{place}", f"restore {archive} --yes"):
            done = run(stack, *task.split())
            assert done.returncode == 0, (task, done)
        assert (stack.folder / ".lab/place").read_text() == f"{place}\n"
        stack.serves(2)


def test_down_and_then_clean(stack: Stack) -> None:
    assert run(stack, "down").returncode == 0
    status = run(stack, "status")
    assert (status.returncode, status.stdout.split()) == (1, ["server_mlflow", "down", "api", "down"])
    assert run(stack, "predict").returncode == 1
    refused = run(stack, "up", "--local")
    assert (refused.returncode, "backup <file>, down, up --local, restore <file>" in refused.stderr) == (1, True)
    project = stack.variables["COMPOSE_PROJECT_NAME"]
    assert docker("volume", "ls", "--quiet", "--filter", f"name={project}").stdout
    env = (stack.folder / ".env").read_text()
    try:
        assert run(stack, "clean", "--yes").returncode == 0
    finally:
        (stack.folder / ".env").write_text(env)
    assert docker("volume", "ls", "--quiet", "--filter", f"name={project}").stdout == ""
    assert docker("image", "ls", "--quiet", f"{project}*").stdout == ""
