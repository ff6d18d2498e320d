"""The local environment holds the packages that the environment files name."""

from importlib.metadata import version
from pathlib import Path

import local_environment
import yaml
from packaging.requirements import Requirement

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
        assert version(requirement.name) in requirement.specifier, line


def test_a_failure_is_explained_with_its_cause_and_the_tools_last_line() -> None:
    explain = local_environment.explain
    assert explain("x\nerror: No space left on device (os error 28)\n") == (
        "the disk is full (error: No space left on device (os error 28))"
    )
    assert explain("error: dns error: failed to lookup\n").startswith("the package index cannot be reached (")
    assert explain("") == "the installer failed (it printed nothing)"
