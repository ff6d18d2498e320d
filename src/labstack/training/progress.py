"""How far a training is: tables and bars for a person at a terminal, else one JSON line a step."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from labstack.training.gates import Gate
from labstack.training.search import Trial

log = structlog.get_logger("labstack.training")
console = Console(stderr=True, highlight=False)


def watched() -> bool:
    """Whether a person sees what is written to standard error."""
    return sys.stderr.isatty()


def step(message: str, **figures: object) -> None:
    """Say that a step is done."""
    if watched():
        said = "  ".join(f"[dim]{name}[/] {escape(_short(value))}" for name, value in figures.items())
        console.print(f"[green]✓[/] {message}  {said}")
    else:
        log.info(message, **figures)


def doubt(warning: str) -> None:
    """Say what somebody should look at."""
    if watched():
        console.print(f"[yellow]![/] {escape(warning)}")
    else:
        log.warning(warning)


@contextmanager
def trials(metric: str) -> Iterator[Callable[[Trial, int, int], None]]:
    """What shows each trial of a search as it ends."""
    if not watched():
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

        def show(trial: Trial, ended: int, total: int) -> None:
            score = trial.state if trial.score is None else f"{metric} {trial.score:.4f}"
            bar.update(task, completed=ended, total=total, description=f"{trial.candidate.name} {score}")

        yield show


def verdicts(gates: list[Gate]) -> None:
    """Show every gate's verdict."""
    if not watched():
        for gate in gates:
            log.log(20 if gate.passed else 30, "gate", gate=gate.name, passed=gate.passed, said=gate.said)
        return
    table = Table("", "gate", "verdict", box=None, pad_edge=False)
    for gate in gates:
        table.add_row("[green]✓[/]" if gate.passed else "[red]✗[/]", escape(gate.name), escape(gate.said))
    console.print(table)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
