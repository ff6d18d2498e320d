"""Commands on pipelines: train them, check their files, and write a first one."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from labstack.cli.base import Commands, Lab, exit_on_error, json_option, print_json

if TYPE_CHECKING:
    from labstack.training.config import Pipeline
    from labstack.training.gates import Gate
    from labstack.training.outcome import TrainingOutcome

NOT_PROMOTED = 3  # the exit code when a trained version did not pass its gates


@click.command()
@click.argument("pipelines", nargs=-1, metavar="[PIPELINE]...")
@click.option("--if-missing", is_flag=True, help="Skip pipelines whose model has a production version.")
@click.option("--if-changed", is_flag=True, help="Skip pipelines whose rows, file and code have not changed.")
@click.option("--no-registration", is_flag=True, help="Only log the run: register no version, move no role.")
@json_option
@click.pass_obj
def train(
    lab: Lab, pipelines: tuple[str, ...], if_missing: bool, if_changed: bool, no_registration: bool, as_json: bool
) -> None:
    """Train pipelines and promote the versions that pass their gates.

    A PIPELINE is a name in src/pipelines or the path of a YAML file; without one, all in src/pipelines.
    """
    from labstack.registry.roles import wait
    from labstack.store import datasets
    from labstack.training import config

    model = ""
    outcomes: list[TrainingOutcome] = []
    with exit_on_error(lambda: f"Training{model} stopped: "), _report(lab, outcomes, as_json):
        chosen = [config.read(name) for name in pipelines or config.names()]
        datasets.load_bundled(lab.engine)
        wait(lab.client, lab.settings.startup_timeout_seconds)
        for pipeline in chosen:
            model = f" of {pipeline.model}"
            existing = _production(lab, pipeline.model) if if_missing else None
            outcomes.append(existing or _train(lab, pipeline, not no_registration, if_changed))
        model = ""
    if not all(outcome.passed for outcome in outcomes):
        sys.exit(NOT_PROMOTED)


@click.group(cls=Commands)
def pipeline() -> None:
    """Check pipeline files, or write a first one."""


@pipeline.command("check")
@click.argument("pipelines", nargs=-1, required=True, metavar="PIPELINE...")
@click.pass_obj
def pipeline_check(lab: Lab, pipelines: tuple[str, ...]) -> None:
    """Check pipeline files and the rows they name, without training."""
    from labstack.store import datasets
    from labstack.training import config, progress
    from labstack.training import data as training_data

    with exit_on_error():
        datasets.load_bundled(lab.engine)
        for name in pipelines:
            parsed = config.read(name)
            table = training_data.load(lab.engine, parsed)
            for warning in table.warnings:
                progress.warn(warning)
            if parsed.needs_search:
                training_data.folds(parsed, table)
            split = f"{len(table.train):,} rows for training, {len(table.test):,} held out"
            click.echo(f"{name} is valid: {len(table.columns)} features, {split}")


@pipeline.command("init")
@click.option("--dataset", required=True, help="The name of a dataset; see: labstack data list")
@click.option("--target", required=True, help="The column to predict.")
@click.option("--model", help="The model's name; by default the dataset's.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A file, instead of standard output.")
@click.pass_obj
def pipeline_init(lab: Lab, dataset: str, target: str, model: str | None, output: Path | None) -> None:
    """Write a first pipeline file for a dataset."""
    from labstack.store import datasets
    from labstack.training import draft

    with exit_on_error():
        datasets.load_bundled(lab.engine)
        text = draft.write(lab.engine, dataset, target, model)
        if output is None:
            click.echo(text, nl=False)
            return
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    click.echo(f"{output} is written; train it: labstack train {output}")


def _production(lab: Lab, model: str) -> "TrainingOutcome | None":
    """The outcome for a model that has a production version already; None when it has none."""
    from labstack.registry.roles import living_production
    from labstack.training.outcome import TrainingOutcome

    version = living_production(lab.client, model)
    if version is None:
        return None
    return TrainingOutcome(model, version.number, None, {}, True, True, "it existed already")


def _train(lab: Lab, pipeline: "Pipeline", register: bool, if_changed: bool) -> "TrainingOutcome":
    from labstack import logs
    from labstack.training.train import train

    logs.configure(lab.settings.log_level, sys.stderr)  # again: importing MLflow has added handlers
    return train(
        pipeline,
        lab.client,
        lab.engine,
        lab.settings,
        register=register,
        if_changed=if_changed,
        approve=_approve,
    )


def _approve(gates: "list[Gate]") -> bool:
    """Show the gates and ask the person at the terminal; without a terminal the answer is no."""
    from labstack.training import progress

    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    progress.verdicts(gates)
    return click.confirm("Make it production?", err=True)


@contextmanager
def _report(lab: Lab, outcomes: "list[TrainingOutcome]", as_json: bool) -> Iterator[None]:
    """Print the outcomes and write the manifest, also when a later training failed."""
    from labstack.registry import manifest
    from labstack.training import progress

    try:
        yield
    finally:
        if as_json:
            print_json([asdict(outcome) for outcome in outcomes])
        for outcome in outcomes if not as_json else ():
            click.echo(str(outcome))
        if outcomes:
            path = manifest.write(manifest.make(lab.client, lab.settings), lab.settings.lab_outputs)
            progress.step("manifest", path=str(path))
