"""Files among a command's arguments are those of the caller's folder, however they are given."""

from pathlib import Path

import pytest

from labstack.lab import files


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ("export x --output x.csv", "export x --output {folder}/x.csv"),
        ("export x --output=x.csv", "export x --output={folder}/x.csv"),
        ("manifest --output=folder", "manifest --output={folder}/folder"),
        ("manifest --output=folder iris", "manifest --output={folder}/folder iris"),
        ("export x --output=/x.csv", "export x --output=/x.csv"),
        ("load --file=mine.csv", "load --file={folder}/mine.csv"),
        ("load --file=none.csv", "load --file=none.csv"),
        ("load mine.csv --name mine", "load {folder}/mine.csv --name mine"),
        ("train mine", "train mine"),  # a file that is no pipeline takes no name's place
        ("rollback iris --reason mine=mine.csv", "rollback iris --reason mine=mine.csv"),
    ],
)
def test_files_are_resolved_to_the_callers_folder(tmp_path: Path, given: str, resolved: str) -> None:
    for name in ("mine", "mine.csv"):
        (tmp_path / name).touch()
    assert files.resolved(given.split(), tmp_path) == resolved.format(folder=tmp_path).split()


def test_files_that_exist_are_found_in_options_too(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").touch()
    arguments = ["load", f"{tmp_path}/mine.csv", f"--file={tmp_path}/mine.csv", f"--output={tmp_path}/none", "a" * 999]
    assert files.existing([*arguments, "/" + "a" * 999]) == [tmp_path / "mine.csv"] * 2
