"""run_all.sh as a script: it finds a Python and hands the tasks over. Whole labs are brought up in tests/local."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from labstack.settings import ROOT
from tests.conftest import wait_until

SCRIPT = (ROOT / "run_all.sh").read_text()
STUB = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ.get('MLFLOW_TRACKING_URI')])); sys.exit(3)\n"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A copy of the script whose lab prints the arguments that it is called with, and exits with 3."""
    folder = tmp_path / "a clone"
    main = folder / "src/labstack/lab/main.py"
    main.parent.mkdir(parents=True)
    main.write_text(STUB)
    return Path(shutil.copy2(ROOT / "run_all.sh", folder))


def call(script: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHON": sys.executable} | variables
    return subprocess.run(
        [script, *arguments], cwd=script.parents[1], env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("given", "received"),
    [
        ([], ["up"]),
        (["--local"], ["up", "--local"]),
        (["--containers"], ["up", "--containers"]),
        (["up", "--local"], ["up", "--local"]),
        (["labstack", "a b", "", "*", "$HOME", "'\""], ["labstack", "a b", "", "*", "$HOME", "'\""]),
        (["clean", "--yes"], ["clean", "--yes"]),
    ],
)
def test_a_task_is_handed_over_with_its_arguments_and_the_callers_folder(
    script: Path, given: list[str], received: list[str]
) -> None:
    done = call(script, *given)
    assert (done.returncode, done.stderr) == (3, "")
    assert json.loads(done.stdout) == [[str(script.parents[1]), *received], None]


def test_the_lab_needs_no_package_and_runs_the_code_of_its_own_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a clone"
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    bare = Path(sys.base_prefix, "bin", "python3")
    done = call(Path(shutil.copy2(ROOT / "run_all.sh", folder)), "status", PYTHON=str(bare))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("There is no lab here yet.")


def test_the_shells_mlflow_server_is_ignored(script: Path) -> None:
    done = call(script, "status", MLFLOW_TRACKING_URI="http://mlflow.example")
    assert json.loads(done.stdout)[1] is None
    assert "MLFLOW_TRACKING_URI of your shell" in done.stderr


def fake_python(folder: Path, version: str) -> Path:
    """A Python that calls itself of another version."""
    path = folder / "python3"
    path.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c \"import sys; sys.version_info = {version}; $2\"\n")
    path.chmod(0o755)
    return path


def test_without_a_python_that_is_new_enough_it_says_so(script: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    old = fake_python(tmp_path / "bin", "(3, 9, 2)")
    message = "Labstack needs Python 3.11 or newer"
    refused = call(script, "up", PYTHON=str(old))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == f"{message}; {old} is older. Name another with PYTHON=/path/to/python3.\n"
    for tool in ("bash", "dirname", "readlink", "sed", "grep"):
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))
    refused = call(script, "up", PYTHON="", PATH=str(tmp_path / "bin"))
    assert refused.stderr == f"{message}; python3 is older. Name another with PYTHON=/path/to/python3.\n"
    old.unlink()
    refused = call(script, "up", PYTHON="", PATH=str(tmp_path / "bin"))
    assert (refused.returncode, refused.stderr) == (1, f"{message}, and there is no python3 here.\n")
    assert call(script, "help", PYTHON="", PATH=os.environ["PATH"]).returncode == 0


def test_an_interrupt_reaches_the_lab(script: Path) -> None:
    main = script.parent / "src/labstack/lab/main.py"
    main.write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *_: sys.exit(130))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([script], env=os.environ | {"PYTHON": sys.executable}, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert wait_until(lambda: process.poll() is not None, 10)
    process.stdout.close()
    assert process.returncode == 130


def test_no_function_is_called_where_bash_goes_on_after_a_failed_command() -> None:
    functions = set(re.findall(r"^(\w+)\(\) \{", SCRIPT, re.MULTILINE)) - {"fail"}
    called = rf"(?:{'|'.join(sorted(functions))})(?![\w=])"
    code = "\n".join(line.partition(" # ")[0] for line in SCRIPT.splitlines() if not line.lstrip().startswith("#"))
    conditional = rf"(?:\b(?:if|elif|while|until)\s+|!\s+){called}|^\s*{called}[^|\n]*(?:\|\||&&)"
    assert re.findall(conditional, code, re.MULTILINE) == []
