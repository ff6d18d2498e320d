"""The progress of a training: tables and bars on a terminal, else one JSON line a step."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:  # they bring ONNX and optuna, which `labstack pipeline check` does without
    from labstack.training.gates import Gate
    from labstack.training.search import Trial

log = structlog.get_logger("labstack.training")
console = Console(stderr=True, highlight=False)


def on_terminal() -> bool:
    """Return whether standard error is a terminal."""
    return sys.stderr.isatty()


def step(message: str, **figures: object) -> None:
    """Report a finished step with its figures."""
    if on_terminal():
        pairs = "  ".join(f"[dim]{name}[/] {escape(_short(value))}" for name, value in figures.items())
        console.print(f"[green]✓[/] {message}  {pairs}")
    else:
        log.info(message, **figures)


def warn(warning: str) -> None:
    """Show a warning."""
    if on_terminal():
        console.print(f"[yellow]![/] {escape(warning)}")
    else:
        log.warning(warning)


@contextmanager
def trials(metric: str) -> "Iterator[Callable[[Trial, int, int], None]]":
    """Yield a function that shows each trial of a search when it ends."""
    if not on_terminal():
        yield lambda trial, ended, total: log.info(
            "trial",
            number=trial.number,
            ended=ended,
            total=total,
            state=trial.state,
            candidate=trial.candidate.name,
            **{metric: trial.score},
            **trial.chosen,
        )
        return
    columns = (TextColumn("  searching"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(trial: "Trial", ended: int, total: int) -> None:
            score = trial.state if trial.score is None else f"{metric} {trial.score:.4f}"
            bar.update(task, completed=ended, total=total, description=f"{trial.candidate.name} {score}")

        yield show


def verdicts(gates: "list[Gate]") -> None:
    """Show the verdict of every gate."""
    if not on_terminal():
        for gate in gates:
            log.log(20 if gate.passed else 30, "gate", gate=gate.name, passed=gate.passed, said=gate.said)
        return
    table = Table("", "gate", "verdict", box=None, pad_edge=False)
    for gate in gates:
        table.add_row("[green]✓[/]" if gate.passed else "[red]✗[/]", escape(gate.name), escape(gate.said))
    console.print(table)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
