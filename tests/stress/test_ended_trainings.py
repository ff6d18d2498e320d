"""Trainings that are killed or stopped at any step leave no half-moved role, and the next training works."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from labstack.registry.roles import Roles, read_all_roles, read_roles
from tests.cli.test_main import write
from tests.conftest import Lab

STEPS = ["rows read", "trial", "fitted and evaluated", "packed", "gate", "registered", "promoted"]


def test_a_stopped_training_closes_its_run(lab: Lab, tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, "search: {alpha: {low: 0.01, high: 10}}", more="search: {trials: 10000, folds: 10}")
    with subprocess.Popen(
        [sys.executable, "-m", "labstack.cli.main", "train", str(path)],
        env=lab.environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stderr or ():
            if '"trial"' in line:
                process.send_signal(signal.SIGTERM)
                break
        assert (process.stderr or sys.stderr).read().splitlines()[-1] == "Stopped."
    assert process.returncode == 1
    experiment = lab.client.get_experiment_by_name(name)
    assert experiment is not None
    runs = lab.client.search_runs([experiment.experiment_id], "tags.labstack.fingerprint != ''")
    assert [run.info.status for run in runs] == ["KILLED"]
    assert name not in read_all_roles(lab.registry)


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_training_leaves_no_half_moved_role(lab: Lab, tmp_path: Path, name: str, step: str) -> None:
    lab.train("student_exam", model=name, params={"alpha": 10_000})
    path = write(tmp_path, name, "search: {alpha: {low: 0.01, high: 10}}", more="search: {trials: 4}")
    killed = lab.run("train", str(path), killed_at=step)
    assert killed.returncode == -signal.SIGKILL
    versions = lab.registry.versions(name)
    assert all(version.tags.get("labstack.gates") for version in versions)
    roles = read_roles(lab.registry, name)
    assert roles in (Roles(production=1), Roles(production=2, previous=1))
    assert roles.production == 1 or STEPS.index(step) >= STEPS.index("registered")
    done = lab.run("train", str(path))
    assert done.returncode == 0, done.stderr
    roles = read_roles(lab.registry, name)
    assert (roles.production or 0) >= 2
    assert roles.previous == 1
