"""The files and commands that CONTRIBUTING.md and the pre-commit hooks name exist."""

import re
import subprocess

import pytest
import yaml

from labstack.settings import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
PATHS = r"(?<![\w./-])((?:\.venv|\.ci|conda-cfg|db|docker|src|tests)/[\w./*-]*\w|\.env\.example|[A-Z]+\.md|run_all\.sh)"


@pytest.mark.parametrize("path", sorted(set(re.findall(PATHS, TEXT))))
def test_what_it_names_exists(path: str) -> None:
    assert list(ROOT.glob(path))


def test_the_tasks_and_suites_that_it_names_exist() -> None:
    listed = subprocess.run([ROOT / "run_all.sh", "help"], capture_output=True, text=True, check=True).stdout
    tasks = set(re.findall(r"^  ([a-z]+)", listed, re.MULTILINE))
    assert set(re.findall(r"run_all\.sh ([a-z]+)", TEXT)) <= tasks
    ci = (ROOT / ".ci/run").read_text()
    suites = re.findall(r"run_all\.sh (test tests/\w+ --\w+)", TEXT)
    assert len(suites) == 4
    assert [suite for suite in suites if suite not in ci] == []


def test_hooks_use_the_tools_of_the_environment() -> None:
    [repository] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert (ROOT / hook["entry"].split()[0]).exists()


def test_the_workflow_pins_each_action_and_runs_each_suite() -> None:
    files = sorted((ROOT / ".github").rglob("*.yml"))
    lines = [line for path in files for line in path.read_text().splitlines() if "uses:" in line]
    assert len(lines) >= 10
    pinned = re.compile(r"\s*- uses: (\./\.github/actions/\w+|[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+)")
    assert [line for line in lines if not pinned.fullmatch(line)] == []
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    for suite in ("browser", "local", "stress", "containers"):
        assert f"tests/{suite} --{suite}" in workflow
