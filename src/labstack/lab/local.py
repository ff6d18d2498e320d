"""The lab as processes of this machine: a place that needs nothing but the project's environment, `.venv`."""

import os
import sys

from labstack.errors import LabError
from labstack.lab import ROOT, STATE, commands
from labstack.lab.commands import CommandError, Stream
from labstack.lab.steps import Step
from labstack.lab.training import train_missing

NAME = "local"
DESCRIPTION = "as processes of this machine"
PYTHON = ROOT / ".venv" / "bin" / "python"
NEED_MLFLOW = ("train", "promote", "rollback", "canary", "status", "versions")


def python(*arguments: str) -> list[str]:
    """Return a command of the environment's Python. Raises LabError where there is no environment."""
    if not os.access(PYTHON, os.X_OK):
        raise LabError("There is no lab here yet. Bring it up: ./run_all.sh")
    return [str(PYTHON), *arguments]


def processes(*arguments: str) -> list[str]:
    """Return a command on the lab's processes."""
    return python("-m", "labstack.lab.processes", *arguments)


def environment(stderr: Stream = None) -> str:
    """Bring `.venv` up to date. Raises CommandError."""
    bare_python = os.environ.get("PYTHON", sys.executable)
    commands.check([bare_python, str(ROOT / "conda-cfg" / "local_environment.py")], stderr=stderr)
    return ""


def steps() -> list[Step]:
    """Return the steps that bring the lab up."""
    return [
        ("environment", environment),
        ("MLflow server", lambda: start("server_mlflow")),
        ("database", lambda: commands.output(python("-m", "labstack.store"))),
        ("training", lambda: train_missing(labstack)),
        ("API", lambda: start("api")),
        ("prediction", lambda: commands.output(predict([]))),
    ]


def prepare() -> None:
    """Raise LabError when somebody else listens on a port that a service needs."""
    try:
        commands.output(processes("require-ports"))
    except CommandError as error:
        raise LabError(f"{error}\nNothing was started.") from error


def start(service: str) -> str:
    """Start a service unless it runs, and return its state and address. Raises CommandError."""
    return commands.output(processes("start", service))


def addresses() -> str:
    """Return the addresses of the services, as a person reads them."""
    return commands.output(processes("addresses"))


def labstack(arguments: list[str], stderr: Stream = None) -> list[str]:
    """Return the command that runs `labstack`, with the environment up to date and MLflow running where it is used."""
    environment(stderr)
    if arguments and arguments[0] in NEED_MLFLOW:
        commands.check(processes("require-mlflow"), stderr=stderr)
    return python("-m", "labstack.cli.main", *arguments)


def predict(arguments: list[str]) -> list[str]:
    """Return the command that asks the API for one prediction."""
    return processes("predict", *arguments)


def archive(direction: str) -> list[str]:
    """Return the command that writes an archive of the lab's data to standard output, or reads it from standard input.

    The direction is `write` or `read`.
    """
    environment()
    return python("-m", "labstack.mlflow_server.archive", direction)


def logs(arguments: list[str]) -> list[str]:
    """Return the command that prints the logs of one service, or of all."""
    return processes("logs", *arguments)


def down() -> list[str]:
    """Return the command that stops the lab."""
    return processes("stop")


def clean() -> None:
    """Stop the lab. Raises LabError when it may run and there is no environment to stop it with."""
    if PYTHON.exists():
        commands.check(down())
    elif is_running():
        raise LabError(
            "Services may be running, and .venv, which could stop them, is gone. Nothing was deleted. "
            "Call ./run_all.sh up, then clean."
        )


def is_running() -> bool:
    """Return whether a service was started and not stopped since; it may have crashed."""
    return any((STATE / "run").glob("*.json"))


def status() -> int:
    """Print the state of each service; return 1 when one does not answer, else 0."""
    return commands.run(processes("status"))
