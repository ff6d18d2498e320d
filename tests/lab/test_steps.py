"""A step's line, and what follows from a failure."""

import re
from pathlib import Path

import pytest

from labstack.errors import LabError
from labstack.lab import steps, training
from labstack.lab.commands import CommandError


def failing() -> str:
    raise CommandError("the reason", 7)


def test_a_step_prints_its_number_name_time_and_result(capsys: pytest.CaptureFixture[str]) -> None:
    steps.run(("API", lambda: "started"), 2, 5)
    assert re.fullmatch(r"\[2/5\] API               0\.\d s  started\n", capsys.readouterr().out)
    steps.run(("prediction", lambda: "curl\nanswer"), 5, 5)
    assert re.fullmatch(r"\[5/5\] prediction        0\.\d s  \ncurl\nanswer\n", capsys.readouterr().out)


def test_a_failed_step_gives_the_reason_and_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LabError, match=r"^the reason\n\[1/1\] name failed\.$"):
        steps.run(("name", failing), 1, 1)
    assert capsys.readouterr().out == ""

    def fails_silently() -> str:
        raise CommandError("", 7)  # it has printed its own

    with pytest.raises(LabError, match=r"^\[1/1\] name failed\.$"):
        steps.run(("name", fails_silently), 1, 1)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "logs" / "training.log"
    monkeypatch.setattr(training, "LOG", path)
    return path


def test_a_training_is_summed_up_in_one_line_and_logged(log: Path) -> None:
    command = ["sh", "-c", "echo iris; echo exam; echo noise >&2"]
    assert training.train_missing(lambda _arguments, _log: command) == "iris; exam"
    assert log.read_text() == "noise\n"


def test_a_failed_training_gives_the_last_line_of_its_log(log: Path) -> None:
    command = ["sh", "-c", "echo first >&2; echo the reason >&2; exit 1"]
    with pytest.raises(CommandError, match=r"^the reason$"):
        training.train_missing(lambda _arguments, _log: command)
    assert log.read_text() == "first\nthe reason\n"


def test_a_training_that_cannot_begin_is_no_training(log: Path) -> None:
    """A failed build of its image, or environment, is followed by no run with the old one."""

    def unprepared(_arguments: list[str], _log: object) -> list[str]:
        raise CommandError("first\nno build", 1)

    with pytest.raises(CommandError, match=r"^no build$"):
        training.train_missing(unprepared)
