"""The documented commands in containers, as root and as users without a name, each on its own lab and together."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.containers.conftest import Stack
from tests.local.test_run_all import follow_readme

USERS = ("10001:0", "1000:0", "0:0")
SEARCH = """
model: iris
task: classification
data: {dataset: iris, target: species}
candidates: [{estimator: sklearn.tree.DecisionTreeClassifier, search: {max_depth: [1, 2, 3, 4]}}]
metric: accuracy
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that every user sees."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("user", USERS)
def test_the_documented_commands_do_what_is_shown(stack: Stack, user: str) -> None:
    stack.erase()
    for name in ("place", "saved", "better.yaml", "mine.csv", "mine.yaml", "lab.tar.gz"):
        (stack.folder / ".lab" / name).unlink(missing_ok=True)
    ports = (stack.variables["MLFLOW_PORT"], stack.variables["API_PORT"])
    follow_readme(stack.folder, *ports, env=stack.environment() | {"LAB_USER": user}, stdin=subprocess.DEVNULL)


def test_users_train_by_turns_on_the_same_volumes(stack: Stack) -> None:
    for trials, user in enumerate((*USERS, USERS[0]), 3):
        path = stack.folder / "own.yaml"
        path.write_text(f"{SEARCH}search: {{trials: {trials}}}\n")
        mounted = ("--volume", f"{path}:/own.yaml:ro", "mlops", "train", "/own.yaml")
        done = stack.compose("run", "--rm", "-T", *mounted, check=False, settings={"LAB_USER": user})
        assert done.returncode in (0, 3), (user, done)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may call as others")
def test_callers_train_by_turns_on_the_same_volumes(stack: Stack, home: Path) -> None:
    """Each from a clone of their own, with a file that nobody else may read."""
    for trials, uid in enumerate((1000, 0, 4321, 1000), 11):
        folder = home / f"{trials}"
        shutil.copytree(stack.folder, folder / "clone", symlinks=True)
        plugins = Path.home() / ".docker/cli-plugins"
        if plugins.exists():
            shutil.copytree(plugins, folder / ".docker/cli-plugins")
        path = folder / "own.yaml"
        path.write_text(f"{SEARCH}search: {{trials: {trials}}}\n")
        path.chmod(0o600)
        subprocess.run(["chown", "--recursive", f"{uid}:{uid}", folder], check=True)
        caller: dict[str, Any] = {"user": uid, "group": uid, "extra_groups": [os.stat("/var/run/docker.sock").st_gid]}
        done = subprocess.run(
            [folder / "clone/run_all.sh", "train", "own.yaml"],
            cwd=folder,
            env=stack.environment() | {"HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            **caller,
        )
        assert done.returncode in (0, 3), (uid, done)
        assert "iris version" in done.stdout
