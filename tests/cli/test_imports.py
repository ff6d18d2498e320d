"""Commands that train nothing import no training library."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Lab

TRAINING = {"matplotlib", "mlflow", "optuna", "pandas", "skl2onnx", "sklearn"}
CHECKING = TRAINING - {"pandas", "sklearn"}  # a pipeline's estimators and rows are what is checked

SCRIPT = """
import json, sys
from labstack.cli.main import main
try:
    main(sys.argv[1:], prog_name="labstack")
except SystemExit as error:
    print(json.dumps([error.code, sorted(sys.modules)]), file=sys.stderr)
"""


def modules(lab: Lab, *arguments: str) -> set[str]:
    """Run the command in a process of its own; return the names of the modules that it imported."""
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], env=lab.environment(), capture_output=True, text=True
    )
    code, names = json.loads(process.stderr.splitlines()[-1])
    assert not code, process
    return set(names)


def test_help_and_data_commands_import_no_training_library(lab: Lab, tmp_path: Path) -> None:
    for arguments in (["--help"], ["--version"], ["data", "list"], ["data", "export", "iris"]):
        assert not modules(lab, *arguments) & TRAINING, arguments


def test_commands_on_roles_import_no_training_library(lab: Lab, model: str) -> None:
    for arguments in (
        ["promote", model, "1", "--force"],
        ["promote", model, "2", "--force"],
        ["rollback", model],
        ["canary", "start", model, "2"],
        ["canary", "weight", model, "0.5"],
        ["canary", "stop", model],
        ["status"],
        ["status", "--audit"],
        ["versions", model],
        ["manifest"],
    ):
        assert not modules(lab, *arguments) & TRAINING, arguments


@pytest.mark.parametrize("pipeline", ["iris", "student_exam"])
def test_a_check_of_a_pipeline_imports_no_library_that_only_trains(lab: Lab, pipeline: str) -> None:
    assert not modules(lab, "pipeline", "check", pipeline) & CHECKING
