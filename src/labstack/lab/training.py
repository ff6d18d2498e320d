"""The step of `up` that trains the models which have no production version."""

from collections.abc import Callable

from labstack.lab import STATE, commands
from labstack.lab.commands import CommandError, Stream

LOG = STATE / "logs" / "training.log"


def train_missing(labstack: Callable[[list[str], Stream], list[str]]) -> str:
    """Train the bundled pipelines whose model has no production version; return one line on all of them.

    `labstack` is the place's function. LOG holds the standard error of both. Raises CommandError with its last line.
    """
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with LOG.open("w+b") as log:
        try:
            printed = commands.output(labstack(["train", "--if-missing"], log), stderr=log)
        except CommandError as error:
            lines = f"{LOG.read_text(errors='replace')}\n{error}".strip().splitlines() or [
                "the training logged nothing"
            ]
            raise CommandError(lines[-1], error.code) from error
    return "; ".join(printed.splitlines())
