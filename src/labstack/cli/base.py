"""The parts that all commands share: the lab they work on, options, error handling and printing."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

from labstack.errors import LabError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from labstack.registry.client import MlflowRest
    from labstack.settings import Settings

PIPED_COLUMNS = 250  # the width of a table that is not printed on a terminal

reason_option = click.option("--reason", default="", help="The reason, kept in the audit.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON value, for scripts.")


@dataclass(frozen=True)
class Lab:
    """The lab that a command works on; each connection is opened on first use."""

    settings: "Settings"

    @cached_property
    def engine(self) -> "Engine":
        from labstack.store.database import connect, migrate

        engine = connect(self.settings.lab_database_url)
        migrate(engine)
        return engine

    @cached_property
    def client(self) -> "MlflowRest":
        from labstack.registry.client import MlflowRest

        return MlflowRest(self.settings.mlflow_tracking_uri, timeout_seconds=20)


class Commands(click.Group):
    """A group that lists its commands in the order of their definition."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return list(self.commands)


@contextmanager
def exit_on_error(prefix: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Exit with code 1 and one line on standard error when the command fails for a known reason."""
    try:
        yield
    except FileExistsError as error:
        sys.exit(f"{prefix()}{error.filename} exists already. Nothing was written.")
    except BrokenPipeError:  # the reader of standard output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (LabError, OSError) as error:
        sys.exit(f"{prefix()}{error}")


def print_rows(rows: list[dict[str, Any]], as_json: bool, if_empty: str = "") -> None:
    """Print rows as one JSON value, or as a table for people."""
    if as_json:
        print_json(rows)
        return
    if not rows:
        click.echo(if_empty)
        return
    from rich.console import Console
    from rich.table import Table

    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*names, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in names))
    width = None if sys.stdout.isatty() else PIPED_COLUMNS
    Console(highlight=False, markup=False, width=width).print(table)


def print_json(value: Any) -> None:
    """Print one JSON value on one line."""
    click.echo(json.dumps(value, ensure_ascii=False, default=str))


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(part)}" for name, part in value.items())
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
