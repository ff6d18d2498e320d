"""A lab in containers, from nothing to a served version that outlives them all. The tests follow each other."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import IRIS_ROW, ask, wait_until
from tests.containers.conftest import SECRET, SERVICES, Stack, docker


@contextmanager
def attached(stack: Stack, *arguments: str) -> Iterator[Path]:
    """`docker compose` in a terminal until Ctrl-C; the file that it prints to."""
    output = stack.folder / "compose.log"
    with output.open("wb") as file:
        process = subprocess.Popen(
            ["docker", "compose", *arguments], cwd=stack.folder, env=stack.environment(), stdout=file, stderr=file
        )
        try:
            yield output
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)  # its code is not checked: some versions of Compose end in a panic after a clean stop


def test_up_from_nothing_it_is_healthy_and_says_what_is_missing(stack: Stack) -> None:
    with attached(stack, "up", "--build"):
        wait_until(lambda: stack.runs("api") and stack.healthy("api"), 120, "the API is healthy")
        assert stack.healthy("server_mlflow")
        assert stack.compose("ps", "--all", "--services").stdout.split() == ["api", "server_mlflow"]
        welcome = ask(stack.api)
        assert welcome.json["message"] == "Welcome to the API service!"
        assert welcome.json["links"]["mlflow"] == stack.mlflow
        unready = stack.predict(IRIS_ROW)
        assert unready.status == 503
        assert "has no production version" in unready.json["detail"]
        assert ask(stack.mlflow).text.count("<title>MLflow</title>") == 1
    assert [stack.state(service)["State"]["ExitCode"] for service in ("server_mlflow", "api")] == [0, 0]


def test_training_on_demand_is_served_without_a_restart(stack: Stack) -> None:
    with attached(stack, "--profile", "mlops", "up") as output:
        wait_until(lambda: stack.healthy("api"), 120, "the API is healthy")
        started = stack.state("api")["State"]["StartedAt"]
        wait_until(lambda: "mlops-1 exited with code 0" in output.read_text(), 120, "training is done")
        training = stack.logs("mlops")
        for model in ("iris", "student_exam"):
            assert f"{model} version 1 is production" in training
        assert not [line for line in training.splitlines() if json_level(line) in ("warning", "error")]
        stack.serves(1)
        assert stack.predict(IRIS_ROW).json["prediction"]["class"] == "setosa"
        assert stack.state("api")["State"]["StartedAt"] == started
    stack.up()
    stack.serves(1)


def json_level(line: str) -> str | None:
    return str(json.loads(line)["level"]) if line.startswith("{") else None


def test_one_pipeline_is_trained_by_name(stack: Stack) -> None:
    done = stack.train("student_exam")
    same = "version 1, in production, predicts the same of all held-out rows"
    assert done.stdout == f"student_exam version 2 was not promoted: {same}\n"


def test_a_training_that_fails_says_so_and_moves_no_role(stack: Stack) -> None:
    before = ask(f"{stack.api}/health").json["models"]
    failed = stack.train("irish", check=False)
    assert failed.returncode == 1
    [message] = [line for line in failed.stderr.splitlines() if line.startswith("Training stopped: ")]
    assert message.startswith("Training stopped: There is no pipeline 'irish'; there are: iris, student_exam")
    assert ask(f"{stack.api}/admin/reload", b"", "POST", {"X-Admin-Token": SECRET}).status == 200
    assert ask(f"{stack.api}/health").json["models"] == before


def test_a_pipeline_of_the_users_own_is_mounted_and_judged(stack: Stack) -> None:
    done = stack.train_estimator("sklearn.dummy.DummyClassifier", check=False)
    assert "iris version 2 was not promoted: accuracy 0.3158 is worse than 0.9211 of version 1" in done.stdout
    assert done.returncode == 3
    assert stack.version() == 1


def test_two_trainings_at_once_both_end_well(stack: Stack) -> None:
    with ThreadPoolExecutor() as pool:
        outputs = [done.stdout for done in pool.map(lambda _: stack.train("iris"), range(2))]
    versions = sorted(line.split()[2] for line in outputs)
    assert versions == ["3", "4"]
    assert stack.version() == 1  # equal is not better


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("#/experiments/1/runs", ["Training runs", ">iris<", "v1"]),
        ("#/models", [">iris<", ">student_exam<"]),
        ("#/models/iris", ["Version 1", "production"]),
    ],
)
def test_a_browser_shows_the_runs_and_the_registered_models(
    stack: Stack, browser: str, path: str, shown: list[str], tmp_path: Path
) -> None:
    quiet = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    page = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-sync", *quiet),
            *(f"--user-data-dir={tmp_path}", "--window-size=1400,900", "--virtual-time-budget=20000"),
            *("--dump-dom", f"{stack.mlflow}/{path}"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    assert [text for text in shown if text not in page] == [], page[-3000:]


def test_the_server_answers_to_its_names_and_refuses_a_foreign_host(stack: Stack) -> None:
    code = """
import urllib.error, urllib.request
for host in ("server_mlflow:5001", "evil.example", "evil.example:5001"):
    request = urllib.request.Request("http://server_mlflow:5001/api/2.0/mlflow/registered-models/search")
    request.add_header("Host", host)
    try:
        print(urllib.request.urlopen(request).status, end=" ")
    except urllib.error.HTTPError as error:
        print(error.code, end=" ")
"""
    assert stack.python("api", code) == "200 403 403"
    search = f"{stack.mlflow}/api/2.0/mlflow/registered-models/search"
    assert ask(search).status == 200
    assert ask(search, headers={"Host": "evil.example"}).status == 403


FOLDERS = {
    "server_mlflow": {"/lab/data", "/lab/mlflow"},
    "api": {"/lab/data", "/lab/models"},
    "mlops": {"/lab/data", "/lab/training"},
}


def test_each_container_has_only_its_own_folders_and_a_limit_to_what_it_takes(stack: Stack) -> None:
    for service in SERVICES:
        state = stack.state(service)
        assert {mount["Destination"] for mount in state["Mounts"]} == FOLDERS[service]
        assert 0 < state["HostConfig"]["PidsLimit"] <= 2048
        assert 0 < state["HostConfig"]["CpuQuota"] <= 400_000
        assert 0 < state["HostConfig"]["Memory"] <= 4 * 2**30
    volumes = {service: {mount["Name"] for mount in stack.state(service)["Mounts"]} for service in SERVICES}
    assert len(set.union(*volumes.values())) == 4
    assert len(set.intersection(*volumes.values())) == 1


def test_each_container_runs_as_nobody_without_privileges(stack: Stack) -> None:
    for service in ("server_mlflow", "api"):
        host = stack.state(service)["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert host["RestartPolicy"]["Name"] == "always"
        assert host["LogConfig"]["Config"]["max-size"] == "10m"
        users = docker("top", stack.container(service), "-eo", "pid,uid,gid").stdout.splitlines()[1:]
        assert {tuple(line.split()[1:]) for line in users} == {("10001", "0")}
        status = dict(
            line.split(":\t", 1)
            for line in stack.python(service, "print(open('/proc/1/status').read())").splitlines()
            if ":\t" in line
        )
        assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd")} == {"0" * 16}
        assert status["NoNewPrivs"] == "1"
        ports = stack.state(service)["NetworkSettings"]["Ports"]
        assert {binding["HostIp"] for bindings in ports.values() for binding in bindings} == {"127.0.0.1"}


def test_nothing_is_written_outside_the_volume_and_the_memory(stack: Stack) -> None:
    for service in SERVICES:
        written = docker("diff", stack.container(service)).stdout.splitlines()
        assert [line for line in written if "/sbin" not in line and line != "C /usr"] == []  # the engine's own init


def test_no_secret_is_in_a_log(stack: Stack) -> None:
    assert ask(f"{stack.api}/admin/reload", b"", "POST", {"X-Admin-Token": SECRET}).status == 200
    assert ask(f"{stack.api}/admin/reload", b"", "POST", {"X-Admin-Token": "guess"}).status == 403
    for service in SERVICES:
        assert SECRET not in stack.logs(service)
    assert "reload" in stack.logs("api")


def test_the_commands_work_in_the_docker_folder_too(stack: Stack) -> None:
    configurations = [
        stack.compose("--profile", "mlops", "config", "--format", "json", cwd=folder).stdout
        for folder in (".", "docker")
    ]
    at_root, in_docker = (json.loads(text) for text in configurations)
    assert at_root == {name: part for name, part in in_docker.items() if not name.startswith("x-")}
    assert SECRET in configurations[0]  # .env is read in both
    assert set(stack.compose("ps", "--services", cwd="docker").stdout.split()) == {"server_mlflow", "api"}


def test_down_and_up_again_all_is_there_and_served(stack: Stack) -> None:
    stack.compose("--profile", "mlops", "down")
    stack.up()
    stack.serves(1)
    assert stack.predict(IRIS_ROW).json["prediction"]["class"] == "setosa"
    assert ask(f"{stack.mlflow}/api/2.0/mlflow/model-versions/get?name=iris&version=4").status == 200
    assert "not promoted" in stack.train("student_exam").stdout


def test_any_user_goes_on_with_the_data(stack: Stack) -> None:
    stack.up(LAB_USER="54321:0")
    users = docker("top", stack.container("api"), "-eo", "pid,uid").stdout.splitlines()[1:]
    assert {line.split()[1] for line in users} == {"54321"}
    stack.serves(1)
    trained = stack.compose("run", "--rm", "-T", "mlops", "train", "iris", settings={"LAB_USER": "12321:0"})
    assert "iris version 5 was not promoted" in trained.stdout
    stack.up()  # and back
    stack.serves(1)


def test_without_a_token_operators_are_refused_wherever_they_are(stack: Stack) -> None:
    """A Host header is the caller's to choose, and the engine's relay makes another machine look like this one."""
    stack.up(API_ADMIN_TOKEN="")
    code = """
import json, urllib.error, urllib.request
for host in ("localhost:5002", "127.0.0.1:5002", "api:5002"):
    request = urllib.request.Request("http://api:5002/rollback", b"{}", {"Content-Type": "application/json"})
    request.add_header("Host", host)
    try:
        print(urllib.request.urlopen(request).status)
    except urllib.error.HTTPError as error:
        print(error.code, "API_ADMIN_TOKEN" in json.load(error)["detail"])
"""
    assert stack.python("server_mlflow", code).splitlines() == ["403 True"] * 3
    for path in ("/rollback", "/update-model", "/accept-next-model", "/reject-next-model", "/admin/reload"):
        refused = ask(stack.api + path, {"version": 1}, "POST")
        assert (refused.status, "API_ADMIN_TOKEN" in refused.json["detail"]) == (403, True), path
    assert stack.predict(IRIS_ROW).status == 200
    stack.up()
    stack.serves(1)


def test_a_lab_of_one_volume_goes_on_with_a_volume_for_each_service(stack: Stack) -> None:
    """As a Labstack left it that kept everything at /lab/data; and a first move was killed."""
    stack.compose("down")
    shell = ("run", "--rm", "-T", "--no-deps", "--entrypoint", "sh")
    stack.compose(*shell, "api", "-c", "mv /lab/models/cache /lab/data/models")
    back = "cd /lab/mlflow && mv mlruns.db mlartifacts /lab/data/ && mkdir -p mlartifacts/half && touch mlruns.db.part"
    stack.compose(*shell, "server_mlflow", "-c", back)
    refused = stack.compose("run", "--rm", "-T", "--no-deps", "server_mlflow", "archive", "write", check=False)
    assert (refused.returncode, "Start the lab once" in refused.stderr) == (1, True)
    stack.up()
    assert "Moving MLflow's files" in stack.logs("server_mlflow")
    stack.serves(1)
    assert stack.predict(IRIS_ROW).json["prediction"]["class"] == "setosa"
    listed = "import os; print(*sorted(os.listdir('/lab/data')), *sorted(os.listdir('/lab/mlflow')), sep=' ')"
    kept = set(stack.python("server_mlflow", listed).split())
    assert kept >= {"lab.db", "mlruns.db", "mlartifacts"}
    assert not kept & {"models", "mlruns.db.part"}
    assert stack.python("server_mlflow", "import os; print(os.path.exists('/lab/data/mlruns.db'))") == "False"
    assert stack.python("server_mlflow", "import os; print(os.path.exists('/lab/mlflow/mlartifacts/half'))") == "False"
    assert ask(f"{stack.mlflow}/api/2.0/mlflow/model-versions/get?name=iris&version=4").status == 200
    assert "not promoted" in stack.train("iris").stdout


def test_a_folder_in_the_place_of_the_volumes(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("data")
    for name in ("mlflow", "models", "training"):
        (folder / "volumes" / name).mkdir(parents=True)
    own = {"LAB_DB": str(folder), "LAB_USER": f"{os.getuid()}:0"}
    stack.compose("down")
    stack.up(**own)
    assert (folder / "lab.db").exists()
    assert (folder / "volumes/mlflow/mlruns.db").exists()
    for service in ("server_mlflow", "api"):
        assert stack.python(service, "import os; print(os.listdir('/lab/data/volumes'))") == "[]"
        code = "open('/lab/data/volumes/file', 'w')"
        refused = stack.compose("exec", "-T", service, "python", "-c", code, check=False)
        assert "Read-only file system" in refused.stderr + refused.stdout
    assert stack.version() is None  # another lab
    stack.compose("down", settings=own)
    stack.up()
    stack.serves(1)


def test_a_lab_begins_with_the_archive_that_a_setting_names(stack: Stack) -> None:
    archive = stack.folder / "lab.tar.gz"
    with archive.open("wb") as file:
        container = stack.container("server_mlflow")
        subprocess.run(["docker", "exec", container, "entrypoint.sh", "archive", "write"], stdout=file, check=True)
    stack.erase()
    network = f"{stack.variables['COMPOSE_PROJECT_NAME']}_lab"
    stack.compose("create", "server_mlflow")  # and with it the network
    gateway = json.loads(docker("network", "inspect", network).stdout)[0]["IPAM"]["Config"][0]["Gateway"]
    server = subprocess.Popen(
        ["python3", "-m", "http.server", "--bind", gateway, "18765"], cwd=stack.folder, stderr=subprocess.DEVNULL
    )
    try:
        stack.up(LAB_ARCHIVE=f"http://{gateway}:18765/lab.tar.gz")
    finally:
        server.kill()
        server.wait()
    assert f"This lab begins with the data of http://{gateway}:18765/lab.tar.gz." in stack.logs("server_mlflow")
    stack.serves(1)
    assert "iris version 7 was not promoted" in stack.train("iris").stdout
