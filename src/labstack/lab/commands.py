"""Run commands in the project's folder, and wait for their end even when a person interrupts."""

import subprocess
from collections.abc import Sequence
from typing import IO

from labstack.errors import LabError
from labstack.lab import ROOT

Stream = int | IO[bytes] | None


class CommandError(LabError):
    """A command failed with an exit code; the text is what it printed on standard error, if that was captured."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message.rstrip("\n"))
        self.code = code


def run(command: Sequence[str], stdin: Stream = None, stdout: Stream = None, stderr: Stream = None) -> int:
    """Run a command, by default on this terminal; return its exit code as a shell counts it."""
    code, _, _ = _run(command, stdin, stdout, stderr)
    return code


def check(command: Sequence[str], stdin: Stream = None, stdout: Stream = None, stderr: Stream = None) -> None:
    """Run a command. Raises CommandError when it fails."""
    if code := run(command, stdin, stdout, stderr):
        raise CommandError("", code)


def output(command: Sequence[str], stderr: Stream = subprocess.PIPE) -> str:
    """Return what a command prints, without the last line's end. Raises CommandError when it fails."""
    code, printed, errors = _run(command, None, subprocess.PIPE, stderr)
    if code:
        raise CommandError(errors, code)
    return printed.rstrip("\n")


def _run(command: Sequence[str], stdin: Stream, stdout: Stream, stderr: Stream) -> tuple[int, str, str]:
    """Return the exit code of a command and what it printed on the streams that are pipes."""
    process = subprocess.Popen(command, cwd=ROOT, stdin=stdin, stdout=stdout, stderr=stderr)
    try:
        printed, errors = process.communicate()
    except KeyboardInterrupt:  # a terminal interrupts the command too, which ends in its own way
        process.communicate()
        raise
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    return code, _text(printed), _text(errors)


def _text(content: bytes | None) -> str:
    return (content or b"").decode(errors="replace")
