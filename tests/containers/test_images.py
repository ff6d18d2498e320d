"""The content of the images."""

import json
import os
import shutil
import subprocess

import pytest
import yaml

from labstack.settings import ROOT
from tests.conftest import answers, free_port, wait_until
from tests.containers.conftest import PROJECT, SECRET, SERVICES, Stack, docker

PACKAGES = {"server_mlflow": "server", "api": "api", "mlops": "mlops"}

pytestmark = pytest.mark.usefixtures("built")


def image(service: str) -> str:
    return f"{PROJECT}-{service}"


def shell(service: str, script: str) -> str:
    """The output of a script in a container of an image, run as root so that it can read every file."""
    return docker("run", "--rm", "--user", "0", "--entrypoint", "sh", image(service), "-c", script).stdout


@pytest.mark.parametrize("service", SERVICES)
def test_it_holds_no_package_manager_compiler_cache_test_folder_or_static_library(service: str) -> None:
    tools = "apt apt-get dpkg pip pip3 uv conda mamba micromamba gcc cc g++ ld make npm git curl wget"
    assert shell(service, f"for tool in {tools}; do command -v $tool; done; true") == ""
    assert shell(service, "find / -xdev -name '*.a' -type f") == ""
    assert shell(service, "find /opt /lab -name '*.[ch]' -type f") == ""
    folders = "-name tests -o -name test -o -name .cache -o -name pkgs -o -name .git"
    assert shell(service, f"find /opt /lab /root /tmp /home -type d '(' {folders} ')'") == ""


@pytest.mark.parametrize(("service", "goal"), [("server_mlflow", 700), ("api", 450), ("mlops", 950)])
def test_its_environment_is_small(service: str, goal: int) -> None:
    assert int(shell(service, "du -sm /opt/env").split()[0]) <= goal


@pytest.mark.parametrize("service", SERVICES)
def test_it_holds_what_its_environment_file_names(service: str) -> None:
    path = ROOT / f"conda-cfg/environment-{PACKAGES[service]}.yml"
    named = dict(line.split("=") for line in yaml.safe_load(path.read_text())["dependencies"])
    records = shell(service, "cat /opt/env/conda-meta/*.json | tr -d '\\n'")
    decoder, position, installed = json.JSONDecoder(), 0, {}
    while position < len(records):
        record, position = decoder.raw_decode(records, position)
        installed[record["name"]] = record["version"]
    wrong = {
        name: installed.get(name)
        for name, version in named.items()
        if not f"{installed.get(name)}.".startswith(f"{version}.")
    }
    assert wrong == {}


@pytest.mark.parametrize("service", SERVICES)
def test_it_has_labels_and_runs_as_a_user_without_a_name(service: str) -> None:
    [description] = json.loads(docker("image", "inspect", image(service)).stdout)
    config = description["Config"]
    assert config["User"] == "10001:0"
    assert config["Labels"]["org.opencontainers.image.title"] == f"labstack-{PACKAGES[service]}"
    assert config["Labels"]["org.opencontainers.image.licenses"] == "MIT"
    assert ("Healthcheck" in config) == (service != "mlops")
    assert shell(service, "find / -xdev -perm /6000 -type f") == ""


@pytest.mark.parametrize("service", SERVICES)
def test_it_holds_no_secret_and_no_other_file(service: str, built: Stack) -> None:
    with subprocess.Popen(["docker", "save", image(service)], stdout=subprocess.PIPE) as saved:
        matches = subprocess.run(
            ["grep", "--count", "--text", SECRET], stdin=saved.stdout, capture_output=True, text=True
        )
    assert (saved.returncode, matches.stdout) == (0, "0\n")
    assert SECRET not in docker("history", "--no-trunc", image(service)).stdout
    assert shell(service, "find /lab -name '.*' -o -name 'conda-lock*' -o -name '*.yml'") == ""
    assert (
        shell(service, "ls /lab").split()
        == {
            "server_mlflow": ["data", "mlflow", "src"],
            "api": ["data", "db", "models", "src"],
            "mlops": ["data", "db", "src", "training"],
        }[service]
    )


@pytest.mark.parametrize("service", SERVICES)
def test_a_change_of_the_code_leaves_the_environments_layer_alone(service: str, built: Stack) -> None:
    def layers() -> list[str]:
        [description] = json.loads(docker("image", "inspect", image(service)).stdout)
        return list(description["RootFS"]["Layers"])

    before = layers()
    path = built.folder / "src/labstack/settings.py"
    text = path.read_text()
    path.write_text(text + "\n# changed\n")
    try:
        built.compose("build", service)
        after = layers()
    finally:
        path.write_text(text)
        built.compose("build", service)
    changed = [old != new for old, new in zip(before, after, strict=True)]
    assert changed == sorted(changed)
    assert changed.count(True) == 1


@pytest.mark.parametrize(("service", "path"), [("api", "/"), ("server_mlflow", "/health")])
def test_it_listens_on_the_port_that_is_given(service: str, path: str) -> None:
    """Start a container as Cloud Run does: with PORT, another user, and without the other services."""
    port = free_port()
    hardened = ["--init", "--read-only", "--tmpfs", "/tmp", "--user", "31337"]  # noqa: S108
    options = [*hardened, "--env", "PORT=8080", "--publish", f"127.0.0.1:{port}:8080"]
    container = docker("run", "--detach", *options, image(service)).stdout.strip()
    try:
        wait_until(lambda: answers(f"http://localhost:{port}{path}"), 60, f"{service} is up")
        health = ("inspect", "--format", "{{.State.Health.Status}}", container)
        wait_until(lambda: docker(*health).stdout == "healthy\n", 30, f"{service} is healthy")
    finally:
        docker("rm", "--force", "--volumes", container)


@pytest.mark.parametrize(("service", "own"), [("server_mlflow", "mlflow"), ("api", "models"), ("mlops", "training")])
def test_a_data_folder_that_it_may_not_write_is_named(
    service: str, own: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("data")
    for name in ("data", own):
        refused = docker("run", "--rm", "--volume", f"{folder}:/lab/{name}", image(service), check=False)
        assert refused.returncode == 1
        assert refused.stderr == (
            f"This container runs as 10001:0, which may not write its data folder, /lab/{name}. Let group 0 write it "
            f"(chgrp 0, chmod g+rwxs), or run as its owner: LAB_USER={os.getuid()}:0\n"
        )


@pytest.mark.parametrize("service", SERVICES)
def test_an_environment_without_packages_for_the_platform_is_no_image(service: str, built: Stack) -> None:
    locks = built.folder / ".lab/containers/locks/none"
    locks.mkdir(parents=True, exist_ok=True)
    name = f"conda-lock-{PACKAGES[service]}.yml"
    real = built.folder / built.variables.get("LOCK_DIR", "conda-cfg")
    shutil.copy(real / "conda-lock-build.yml", locks)
    lock = yaml.safe_load((real / name).read_text())
    lock["package"] = []
    (locks / name).write_text(yaml.safe_dump(lock))
    refused = built.compose("build", service, check=False, settings={"LOCK_DIR": ".lab/containers/locks/none"})
    assert refused.returncode != 0
    assert f"The environment is empty: .lab/containers/locks/none/{name} holds no packages for linux/" in (
        refused.stdout + refused.stderr
    )


def test_help_needs_no_lab() -> None:
    assert "Train pipelines" in docker("run", "--rm", image("mlops"), "--help").stdout
    missing = docker("run", "--rm", image("mlops"), "dance", check=False)
    assert (missing.returncode, "No such command" in missing.stderr) == (2, True)
