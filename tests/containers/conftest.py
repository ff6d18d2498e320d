"""The lab in containers: real images, a real engine and the project's own compose file. Run with --containers."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Answer, answers, ask, free_port, wait_until
from tests.containers.offline import supplies
from tests.local.test_run_all import copy_to

PROJECT = "labstack-test"
SERVICES = ("server_mlflow", "api", "mlops")
SECRET = "hush-" * 8


def as_root(*command: str) -> None:
    subprocess.run([*(() if os.geteuid() == 0 else ("sudo",)), *command], check=True, timeout=180)


def docker(*arguments: str, check: bool = True, **options: Any) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, **options)
    assert not check or done.returncode == 0, (arguments, done.stdout[-4000:], done.stderr[-4000:])
    return done


@dataclass
class Stack:
    """One lab as Compose runs it, from a copy of the project."""

    folder: Path
    variables: dict[str, str]

    def compose(
        self, *arguments: str, check: bool = True, cwd: str = ".", settings: dict[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        environment = self.environment() | (settings or {})
        return docker(
            *("compose", *arguments), check=check, cwd=self.folder / cwd, env=environment, stdin=subprocess.DEVNULL
        )

    def environment(self) -> dict[str, str]:
        """The environment variables of a call of Compose: the stack's variables, and none of the shell's settings."""
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "DOCKER_HOST")}
        return kept | self.variables

    def up(self, *services: str, **settings: str) -> None:
        self.compose("up", "--detach", "--wait", *services, settings=settings)

    def train(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        return self.compose("run", "--rm", "-T", "mlops", *(("train", *arguments) if arguments else ()), check=check)

    def train_estimator(
        self, estimator: str, params: str = "{}", options: tuple[str, ...] = ("--rm", "-T"), check: bool = True
    ) -> "subprocess.CompletedProcess[str]":
        """Train a pipeline file of the user's own, for iris with another estimator, mounted into the container."""
        path = self.folder / "own.yaml"
        path.write_text(
            "model: iris\n"
            "task: classification\n"
            "data: {dataset: iris, target: species}\n"
            f"candidates: [{{estimator: {estimator}, params: {params}}}]\n"
            "metric: accuracy\n"
        )
        mounted = ("--volume", f"{path}:/own.yaml:ro")
        return self.compose("run", *options, *mounted, "mlops", "train", "/own.yaml", check=check)

    def erase(self) -> None:
        self.compose("--profile", "mlops", "down", "--volumes", "--remove-orphans")

    def container(self, service: str) -> str:
        return self.compose("ps", "--all", "--quiet", service).stdout.split()[0]

    def state(self, service: str) -> dict[str, Any]:
        """The engine's description of a service's container."""
        [description] = json.loads(docker("inspect", self.container(service)).stdout)
        return dict(description)

    def logs(self, service: str) -> str:
        done = docker("logs", self.container(service))
        return done.stdout + done.stderr

    def python(self, service: str, code: str) -> str:
        """The output of a few lines of Python inside a running container."""
        return self.compose("exec", "-T", service, "python", "-c", code).stdout.strip()

    @property
    def api(self) -> str:
        return f"http://localhost:{self.variables['API_PORT']}"

    @property
    def mlflow(self) -> str:
        return f"http://localhost:{self.variables['MLFLOW_PORT']}"

    def predict(self, row: dict[str, float]) -> Answer:
        return ask(f"{self.api}/predict", row)

    def runs(self, service: str) -> bool:
        return bool(self.compose("ps", "--quiet", service).stdout)

    def healthy(self, service: str) -> bool:
        state = self.state(service)["State"]
        return bool(state["Running"] and state["Health"]["Status"] == "healthy")

    def version(self) -> Any:
        """The version of iris that the API serves, if any."""
        return answers(self.api) and ask(self.api).json["models"].get("iris", {}).get("production")

    def serves(self, version: int) -> None:
        """Wait until the API serves a version of iris by itself, and then until each of its workers does."""
        wait_until(lambda: self.version() == version, 60, f"iris version {version} is served")
        reload = ask(f"{self.api}/admin/reload", b"", "POST", {"X-Admin-Token": SECRET})
        assert reload.status == 200, reload


@pytest.fixture(scope="session")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A fresh copy of the project whose images are built; next to its code lie secrets that no image may contain."""
    folder = copy_to(tmp_path_factory.mktemp("clones") / "a fresh clone").folder
    (folder / ".env").write_text(f"API_ADMIN_TOKEN={SECRET}\n")
    (folder / "db/datasets/.credentials").write_text(SECRET)
    with ExitStack() as context:
        offline = request.config.getoption("--containers") == "offline"
        variables = context.enter_context(supplies(folder)) if offline else {}
        ports = {"API_PORT": str(free_port()), "MLFLOW_PORT": str(free_port())}
        stack = Stack(folder, {"COMPOSE_PROJECT_NAME": PROJECT} | ports | variables)
        stack.erase()
        stack.compose("--progress", "plain", "--profile", "mlops", "build")
        yield stack


@pytest.fixture(scope="module")
def stack(built: Stack) -> Iterator[Stack]:
    """A lab that begins with nothing, and of which nothing stays."""
    try:
        yield built
    finally:
        built.erase()
        (built.folder / ".lab/place").unlink(missing_ok=True)


@pytest.fixture(scope="session")
def browser() -> str:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    assert path, "the pages are opened in chromium: install it"
    return path
