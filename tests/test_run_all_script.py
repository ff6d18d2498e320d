"""run_all.sh as a script: what fails stops it, wherever it is called. Whole labs are brought up in tests/local."""

import re
import subprocess
from pathlib import Path

import pytest

from labstack.settings import ROOT

SCRIPT = (ROOT / "run_all.sh").read_text()


def call(folder: Path, *lines: str) -> "subprocess.CompletedProcess[str]":
    """Run lines with the script's functions, in a folder of their own."""
    functions = SCRIPT.rpartition('"$task" "$@"')[0]
    script = folder / "run_all.sh"
    script.write_text("\n".join((functions, "mkdir -p .lab", *lines)) + "\n")
    return subprocess.run(["bash", script, "help"], capture_output=True, text=True)


@pytest.mark.parametrize("way", ["attempt", "quietly", "step name", "step name quietly", "step name attempt_it"])
def test_a_function_ends_at_its_first_failed_command(tmp_path: Path, way: str) -> None:
    done = call(
        tmp_path,
        "attempt_it() { attempt fails; return $code; }",
        "fails() { false; echo went on; touch went-on; }",
        f"steps=1; {way} fails" if "attempt_it" not in way else "steps=1; step name attempt_it",
        "exit $code",
    )
    assert done.returncode == 1
    assert "went on" not in done.stdout + done.stderr
    assert not (tmp_path / "went-on").exists()
    if "step" in way:
        assert done.stderr == "[1/1] name failed.\n"


def test_a_training_that_cannot_begin_is_no_training(tmp_path: Path) -> None:
    """In a step: a failed build of its image, or environment, is followed by no run with the old one."""
    done = call(
        tmp_path,
        "containers_build() { echo no build >&2; false; }",
        "docker() { touch went-on; }",
        "place=containers steps=1",
        "step training train_missing",
    )
    assert (done.returncode, done.stderr) == (1, "no build\n[1/1] training failed.\n")
    assert not (tmp_path / "went-on").exists()


def test_no_function_is_called_where_bash_goes_on_after_a_failed_command() -> None:
    functions = set(re.findall(r"^(\w+)\(\) \{", SCRIPT, re.MULTILINE)) - {"fail"}
    called = rf"(?:{'|'.join(sorted(functions))}|\"\$\{{(?:place|before)\}}_\w+\")(?![\w=])"
    code = "\n".join(line.partition(" # ")[0] for line in SCRIPT.splitlines() if not line.lstrip().startswith("#"))
    conditional = rf"(?:\b(?:if|elif|while|until)\s+|!\s+){called}|^\s*{called}[^|\n]*(?:\|\||&&)"
    assert re.findall(conditional, code, re.MULTILINE) == []


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ("--output x.csv", "--output {folder}/x.csv"),
        ("export x --output=x.csv", "export x --output={folder}/x.csv"),
        ("--output=/x.csv", "--output=/x.csv"),
        ("--file=mine.csv", "--file={folder}/mine.csv"),
        ("--file=none.csv", "--file=none.csv"),
        ("mine.csv", "{folder}/mine.csv"),
    ],
)
def test_files_are_those_of_the_callers_folder(tmp_path: Path, given: str, resolved: str) -> None:
    (tmp_path / "mine.csv").touch()
    done = call(
        tmp_path,
        "find_place() { place=echoed; }",
        'echoed_labstack() { echo "$@"; }',
        f"caller={tmp_path}; labstack {given}",
    )
    assert done.stdout == resolved.format(folder=tmp_path) + "\n"
