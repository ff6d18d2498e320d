"""The tasks of a lab: `python src/labstack/lab/main.py FOLDER TASK [ARGUMENT...]`, which `./run_all.sh TASK` calls.

FOLDER is the caller's, to which relative paths among the arguments belong.
"""

import fcntl
import io
import os
import re
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from labstack.errors import LabError
from labstack.lab import ROOT, STATE, commands, files, places, steps
from labstack.lab.commands import CommandError

ENV_FILE = ROOT / ".env"
# the files of a lab that are deleted by `clean`, besides those of its place and .lab
MADE = (".venv", ".env", "db/*.db", "db/*.db-moves", "db/*.db-shm", "db/*.db-wal", "db/mlartifacts", "outputs")
CACHES = (".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", "**/__pycache__")


@dataclass(frozen=True)
class TaskCall:
    """A task's arguments, and the folder of the caller."""

    arguments: list[str]
    folder: Path

    def file(self, default: str = "") -> Path:
        """Return the file that the first argument names."""
        return self.folder / (self.arguments[0] if self.arguments else default)

    def require_no_arguments(self) -> None:
        if self.arguments:
            raise LabError(f"This task takes no argument '{self.arguments[0]}'.")


def up(call: TaskCall) -> int:
    """Bring the lab up."""
    with _lock():
        _ensure_token()
        place = places.choose(call.arguments)
        every = place.steps()
        for number, step in enumerate(every, 1):
            steps.run(step, number, len(every))
            if number == 1:
                place.prepare()
                places.record(place)
        print(place.addresses(), end="\n\n")
        places.SAVED.unlink(missing_ok=True)
    print("Stop the lab: ./run_all.sh down")
    return 0


def down(call: TaskCall) -> int:
    """Stop the lab."""
    call.require_no_arguments()
    with _lock():
        return commands.run(places.find().down())


def status(call: TaskCall) -> int:
    """Print the state of each service; return 1 unless all are up."""
    call.require_no_arguments()
    return places.find().status()


def logs(call: TaskCall) -> int:
    """Print the logs of one service, or of all."""
    return commands.run(places.find().logs(call.arguments))


def train(call: TaskCall) -> int:
    """Train pipelines."""
    return labstack(TaskCall(["train", *call.arguments], call.folder))


def labstack(call: TaskCall) -> int:
    """Run the `labstack` command."""
    return commands.run(places.find().labstack(files.resolved(call.arguments, call.folder)))


def predict(call: TaskCall) -> int:
    """Ask the API for one prediction."""
    return commands.run(places.find().predict(call.arguments))


def backup(call: TaskCall) -> int:
    """Write all of the lab into one archive, which only its owner may read."""
    place = places.find()
    file = call.file(f"labstack-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz")
    if os.path.lexists(file):
        raise LabError(f"{file} exists already. Nothing was written.")
    part = Path(f"{file}.part")
    try:
        command = place.archive("write")
        with open(part, "wb", opener=_private) as archive:
            commands.check(command, stdout=archive)
        part.rename(file)
    except LabError as error:
        raise LabError(f"{error}\nNothing was written.".lstrip("\n")) from error
    except OSError as error:
        raise LabError(f"{file} cannot be written: {error.strerror}. Nothing was written.") from error
    finally:
        part.unlink(missing_ok=True)
    places.SAVED.touch()
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
    return 0


def restore(call: TaskCall) -> int:
    """Replace the lab's data by those of an archive."""
    if not call.arguments:
        raise LabError("Which archive? ./run_all.sh restore <file>")
    try:
        archive = call.file().open("rb")
    except OSError as error:
        raise LabError(f"There is no file {call.file()} that can be read.") from error
    with archive, _lock():
        place = places.find()
        _confirm("Replace every model, run, prediction and row of this lab?", "replaced", call.arguments[1:])
        was_running = place.is_running()
        commands.output(place.down())
        failure: LabError | None = None
        try:
            commands.check(place.archive("read"), stdin=archive)
        except LabError as error:
            failure = error
        if was_running:
            for service in ("server_mlflow", "api"):
                print(place.start(service))
    if failure:
        raise LabError(f"{failure}\nNothing was replaced.".lstrip("\n"))
    return 0


def clean(call: TaskCall) -> int:
    """Stop the lab and delete all that it made, and all that tools made."""
    with _lock():
        _confirm("Delete every model, run, prediction and setting of this lab?", "deleted", call.arguments)
        if places.RECORD.exists():
            places.find().clean()
        for pattern in (*MADE, *CACHES):
            for path in ROOT.glob(pattern):
                _delete(path)
        for path in STATE.iterdir():
            if path.name != "lock":  # another call may be waiting for it
                _delete(path)
    return 0


TASKS: dict[str, Callable[[TaskCall], int]] = {
    task.__name__: task for task in (up, down, status, logs, train, labstack, predict, backup, restore, clean)
}


@contextmanager
def _lock() -> Iterator[None]:
    """Hold the lock of the tasks that start or stop services; wait for another call that holds it."""
    STATE.mkdir(exist_ok=True)
    with (STATE / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another ./run_all.sh is running here; waiting for it.", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _ensure_token() -> None:
    """Write a random operators' token into .env, unless it has one."""
    text = b"# Settings of this lab; .env.example explains each."
    try:
        with suppress(FileNotFoundError):
            text = ENV_FILE.read_bytes()
        if re.search(rb"^[ \t]*(export[ \t]+)?API_ADMIN_TOKEN=", text, re.MULTILINE):
            return
        new = ENV_FILE.with_name(".env.new")
        with open(new, "wb", opener=_private) as file:
            file.write(text.rstrip(b"\n") + f"\nAPI_ADMIN_TOKEN={secrets.token_hex(24)}\n".encode())
        new.rename(ENV_FILE)
    except OSError as error:
        raise LabError(f".env cannot be read or written: {error.strerror}.") from error


def _private(path: str, flags: int) -> int:
    """Open a file that only its owner may read."""
    return os.open(path, flags, 0o600)


def _confirm(question: str, done: str, arguments: list[str]) -> None:
    """Raise LabError unless the person, or `--yes`, agrees."""
    if arguments[:1] == ["--yes"]:
        return
    if not sys.stdin.isatty():
        raise LabError(f"Nothing was {done}. Without a terminal, confirm with --yes.")
    print(f"{question} Type yes: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != "yes":
        raise LabError(f"Nothing was {done}.")


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def main() -> int:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end quietly where a reader such as `head` has ended
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # its lines stay in order with those of commands
    folder, task, *arguments = sys.argv[1:]
    try:
        return TASKS[task](TaskCall(arguments, Path(folder)))
    except KeyboardInterrupt:
        print(
            "Interrupted. Services keep running: ./run_all.sh status shows them, ./run_all.sh down stops them.",
            file=sys.stderr,
        )
        return 130
    except LabError as error:
        if str(error):  # else the failed command has printed its own
            print(error, file=sys.stderr)
        return error.code if isinstance(error, CommandError) else 1


if __name__ == "__main__":
    sys.exit(main())
