"""The local environment is as the environment files say, and Labstack is installed in it."""

import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import local_environment
import pytest
import yaml
from flit_core import buildapi
from packaging.requirements import Requirement

import labstack

FOLDER = Path(local_environment.__file__).parent


def test_every_line_of_every_file_is_a_requirement() -> None:
    declared = {
        line.partition("=")[0]
        for path in FOLDER.glob("environment-*.yml")
        for line in yaml.safe_load(path.read_text())["dependencies"]
    }
    names = {local_environment.PACKAGE_INDEX_NAMES.get(name, name) for name in declared - {"python"}}
    assert {Requirement(line).name for line in local_environment.requirements(FOLDER)} == names


def test_what_is_installed_is_what_is_required() -> None:
    for line in local_environment.requirements(FOLDER):
        requirement = Requirement(line)
        assert metadata.version(requirement.name) in requirement.specifier, line


def test_a_failure_is_explained_with_its_cause_and_the_tools_last_line() -> None:
    explain = local_environment.explain
    assert explain("x\nerror: No space left on device (os error 28)\n") == (
        "the disk is full (error: No space left on device (os error 28))"
    )
    assert explain("error: dns error: failed to lookup\n").startswith("the package index cannot be reached (")
    assert explain("") == "the installer failed (it printed nothing)"


def test_labstack_is_installed_with_its_command() -> None:
    distribution = metadata.distribution("labstack")
    assert distribution.version == labstack.__version__
    [script] = distribution.entry_points
    assert (script.name, callable(script.load())) == ("labstack", True)
    done = subprocess.run(
        [Path(sys.executable).with_name("labstack"), "--help"], cwd="/", capture_output=True, text=True
    )
    assert (done.returncode, done.stdout[:15]) == (0, "Usage: labstack")


def test_a_wheel_holds_every_file_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parent)
    with zipfile.ZipFile(tmp_path / buildapi.build_wheel(str(tmp_path))) as wheel:
        held = {name for name in wheel.namelist() if name.startswith("labstack/")}
    source = FOLDER.parent / "src"
    files = {path for path in (source / "labstack").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert held == {str(path.relative_to(source)) for path in files}
    assert "labstack/py.typed" in held
