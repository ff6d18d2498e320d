"""Each lock file is complete, fits its environment file, and names packages of conda-forge."""

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # conda-lock warns of its own parts
    from conda_lock.interfaces.vendored_conda import MatchSpec

from labstack.settings import ROOT

FOLDER = ROOT / "conda-cfg"
ENVIRONMENTS = ("server", "api", "mlops", "build")

pytestmark = pytest.mark.parametrize("environment", ENVIRONMENTS)


def lock(environment: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / f"conda-lock-{environment}.yml").read_text())
    return loaded


def packages(environment: str) -> dict[str, dict[str, Any]]:
    return {package["name"]: package for package in lock(environment)["package"]}


def build(package: dict[str, Any]) -> str:
    """The build string, the last part of a package's file name."""
    return str(re.sub(r"\.(conda|tar\.bz2)$", "", package["url"].rpartition("-")[2]))


def satisfies(package: dict[str, Any], name: str, requirement: str) -> bool:
    spec = MatchSpec(f"{name} {requirement}".strip())
    record = {"name": name, "version": package["version"], "build": build(package), "build_number": 0}
    return bool(spec.match(record))


def named(environment: str) -> dict[str, str]:
    """The packages that an environment file names, with their versions."""
    dependencies = yaml.safe_load((FOLDER / f"environment-{environment}.yml").read_text())["dependencies"]
    return dict(line.split("=") for line in dependencies)


def test_a_lock_holds_what_its_environment_file_names(environment: str) -> None:
    locked = packages(environment)
    wrong = [name for name, version in named(environment).items() if not satisfies(locked[name], name, f"{version}.*")]
    assert wrong == [], f"run: ./run_all.sh lock {environment}"


def test_a_lock_holds_nothing_that_its_environment_file_does_not_lead_to(environment: str) -> None:
    locked = packages(environment)
    reached: set[str] = set()
    ahead = set(named(environment))
    while ahead:
        name = ahead.pop()
        reached.add(name)
        ahead |= {other for other in locked[name]["dependencies"] if other in locked} - reached
    assert set(locked) - reached == set(), f"run: ./run_all.sh lock {environment}"


def test_a_lock_holds_every_requirement_of_every_package_in_it(environment: str) -> None:
    locked = packages(environment)
    missing = [
        f"{package['name']} needs {name} {requirement}"
        for package in locked.values()
        for name, requirement in package["dependencies"].items()
        if not name.startswith("__") and not (name in locked and satisfies(locked[name], name, requirement))
    ]
    assert missing == []


def test_a_lock_names_conda_forges_own_files_with_their_hashes(environment: str) -> None:
    for package in lock(environment)["package"]:
        assert (package["manager"], package["platform"]) == ("conda", "linux-64")
        assert re.fullmatch(r"https://[a-z.]+/conda-forge/(linux-64|noarch)/[^/]+", package["url"])
        assert re.fullmatch(r"[0-9a-f]{64}", package["hash"]["sha256"])


def test_a_lock_says_nothing_of_the_machine_that_made_it(environment: str) -> None:
    assert lock(environment)["metadata"]["sources"] == [f"environment-{environment}.yml"]
    assert str(Path.home()) not in (FOLDER / f"conda-lock-{environment}.yml").read_text()
