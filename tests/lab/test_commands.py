"""Running commands: the wait for their end, and their failures as exit code and standard error."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from labstack.lab import ROOT, commands
from labstack.lab.commands import CommandError


def test_output_is_what_a_command_prints() -> None:
    assert commands.output(["sh", "-c", "echo one; echo two; echo noise >&2"]) == "one\ntwo"
    assert commands.output(["pwd"]) == str(ROOT)


def test_a_failed_command_raises_with_its_code_and_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandError, match=r"^the reason$") as raised:
        commands.output(["sh", "-c", "echo the reason >&2; exit 7"])
    assert raised.value.code == 7
    with pytest.raises(CommandError, match=r"^$") as raised:
        commands.check(["sh", "-c", "echo the reason >&2; exit 7"])  # seen at once
    assert raised.value.code == 7
    assert capfd.readouterr().err == "the reason\n"


def test_the_exit_code_of_a_killed_command_is_that_of_a_shell() -> None:
    assert commands.run(["sh", "-c", "kill -TERM $$"]) == 128 + signal.SIGTERM


def test_an_interrupted_command_ends_in_its_own_way(tmp_path: Path) -> None:
    command = ["sh", "-c", f"sleep 1; touch '{tmp_path}/ended'"]
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        commands.run(command)
    assert (tmp_path / "ended").exists()


def test_the_tasks_need_the_standard_library_alone() -> None:
    code = "import sys, labstack.lab.main; print(sorted({name.split('.')[0] for name in sys.modules}))"
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "labstack" in done.stdout
    assert not [name for name in ("click", "psutil", "pydantic", "requests") if f"'{name}'" in done.stdout]
