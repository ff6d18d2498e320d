"""The `labstack` command, each call in its own process, without the seconds of its imports.

One process imports what the commands need, once, and forks for each call.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path


class Preloaded:
    """A process that waits for calls. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def run(
        self, arguments: list[str], env: dict[str, str], killed_at: str | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run the command and return its exit code and output; kill it when it logs the message `killed_at`."""
        with self._lock, tempfile.TemporaryDirectory() as folder:
            if self._process is None:
                command = [sys.executable, "-m", "tests.preloaded"]
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
                self._process = subprocess.Popen(command, text=True, env=env, **pipes)  # type: ignore[call-overload]
            process = self._process
            print(json.dumps([killed_at, arguments, env, folder]), file=process.stdin, flush=True)
            code = int((process.stdout or sys.stdin).readline())
            out, err = ((Path(folder) / name).read_text() for name in ("out", "err"))
            return subprocess.CompletedProcess(arguments, code, out, err)

    def stop(self) -> None:
        if self._process is not None:
            self._process.communicate()


def _call(arguments: list[str], env: dict[str, str], folder: str) -> None:
    """Run the command in a fork, with this environment and its output in files of the folder."""
    from labstack.cli.main import main

    os.environ.clear()
    os.environ.update(env)
    for descriptor, path in ((0, os.devnull), (1, f"{folder}/out"), (2, f"{folder}/err")):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), descriptor)
    code = 1
    try:
        main(arguments, prog_name="labstack")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")  # as the interpreter does
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    import labstack.cli.main
    import labstack.registry.manifest
    import labstack.training.draft
    import labstack.training.train  # noqa: F401

    for line in sys.stdin:
        killed_at, arguments, env, folder = json.loads(line)
        child = os.fork()
        if not child:
            _call(arguments, env, folder)
        log = Path(folder) / "err"
        ended, status = 0, 0
        while killed_at and not ended and not (log.exists() and f'"message":"{killed_at}"' in log.read_text()):
            ended, status = os.waitpid(child, os.WNOHANG)
        if killed_at and not ended:
            os.kill(child, signal.SIGKILL)
        if not ended:
            _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()
