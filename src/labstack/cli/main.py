"""The `labstack` command: its group and entry point."""

import signal
import sys

import click

import labstack
from labstack.cli import data, roles, train
from labstack.cli.base import Commands, Lab


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(labstack.__version__, prog_name="labstack")
@click.pass_context
def main(context: click.Context) -> None:
    """Train a lab's models, move them into production and back, and see their status.

    \b
    Write a pipeline file for a dataset:       labstack pipeline init --dataset iris --target species
    Train it, and promote a better version:    labstack train iris
    See what is in production, and why:        labstack status
    Go back to the previous version:           labstack rollback iris

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a trained version did not pass its gates.
    """
    from labstack import logs, settings

    # SIGTERM raises SystemExit, so that a training closes its run and an unfinished move is undone
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))
    configured = settings.load()
    logs.configure(configured.log_level, sys.stderr)
    context.obj = Lab(configured)


for command in (
    train.train,
    roles.promote,
    roles.rollback,
    roles.canary,
    roles.status,
    roles.versions,
    roles.manifest,
    data.data,
    train.pipeline,
):
    main.add_command(command)


if __name__ == "__main__":
    main(prog_name="labstack")
