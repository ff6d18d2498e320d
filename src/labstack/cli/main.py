"""The `labstack` command: what a person, a script or the training container asks of the lab."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Engine

from labstack import api_client, logs
from labstack import settings as settings_module
from labstack.errors import LabError
from labstack.registry import eligibility, moves
from labstack.registry.client import MlflowRest, RegistryError, Version
from labstack.registry.roles import ROLES, Roles, Rollout, living_production, read_all_roles, read_roles, wait
from labstack.settings import Settings
from labstack.store import audit, datasets
from labstack.store.database import connect, migrate

AUDIT_ENTRIES = 100

NOT_PROMOTED = 3  # the exit code of a training whose version did not pass its gates

reason_option = click.option("--reason", default="", help="Why, for the audit.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON value, for scripts.")


@dataclass(frozen=True)
class Lab:
    """The lab that a command is about; what it needs of it is opened when it is first asked for."""

    settings: Settings

    @cached_property
    def engine(self) -> Engine:
        engine = connect(self.settings.lab_database_url)
        migrate(engine)
        return engine

    @cached_property
    def client(self) -> MlflowRest:
        return MlflowRest(self.settings.mlflow_tracking_uri, timeout_seconds=20)


class Commands(click.Group):
    """Commands in the order in which they are defined."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def main(context: click.Context) -> None:
    """A lab's models: train them, move them into production and back, and see what became of them.

    \b
    A pipeline file says how a model is made:  labstack pipeline init --dataset iris --target species
    Train it, and promote what is better:      labstack train iris
    See what is in production, and why:        labstack status
    Take it back:                              labstack rollback iris

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a trained version did not pass its gates.
    """
    # ended in the middle, a training still closes its run, and a move puts half-moved roles back
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))
    configured = settings_module.load()
    logs.configure(configured.log_level, sys.stderr)
    context.obj = Lab(configured)


@main.command()
@click.argument("pipelines", nargs=-1, metavar="[PIPELINE]...")
@click.option("--if-missing", is_flag=True, help="Only the pipelines whose model has no production version.")
@click.option("--if-changed", is_flag=True, help="Only those whose rows, pipeline file or code are new.")
@click.option("--no-registration", is_flag=True, help="Track the run alone: register no version, move no role.")
@json_option
@click.pass_obj
def train(
    lab: Lab, pipelines: tuple[str, ...], if_missing: bool, if_changed: bool, no_registration: bool, as_json: bool
) -> None:
    """Train pipelines, register the new versions, and promote those that pass their gates.

    A PIPELINE is a name in src/pipelines or the path of a YAML file; without one, all in src/pipelines.
    """
    from labstack.training import config, progress
    from labstack.training.train import Outcome

    model = ""
    outcomes: list[Outcome] = []
    with _told(lambda: f"Training{model} stopped: "), _closing(lab, outcomes, as_json):
        chosen = [config.read(name) for name in pipelines or config.names()]
        datasets.load_bundled(lab.engine)
        wait(lab.client, lab.settings.startup_timeout_seconds)
        for pipeline in chosen:
            model = f" of {pipeline.model}"
            production = living_production(lab.client, pipeline.model)
            if if_missing and production is not None:
                reason = "it is there already"
                outcomes.append(Outcome(pipeline.model, production.number, None, {}, True, True, reason))
                continue
            from labstack.training.train import train as run  # seconds of imports, which nothing above needs

            logs.configure(lab.settings.log_level, sys.stderr)  # anew: MLflow brought handlers of its own
            outcomes.append(
                run(
                    pipeline,
                    lab.client,
                    lab.engine,
                    lab.settings,
                    register=not no_registration,
                    if_changed=if_changed,
                    approve=lambda gates: _approves(progress.verdicts, gates),
                )
            )
        model = ""
    if not all(outcome.passed for outcome in outcomes):
        sys.exit(NOT_PROMOTED)


@main.command()
@click.argument("model")
@click.argument("version", type=click.IntRange(1))
@click.option("--force", is_flag=True, help="Also a version that did not pass its gates.")
@reason_option
@click.pass_obj
def promote(lab: Lab, model: str, version: int, force: bool, reason: str) -> None:
    """Make a VERSION of MODEL production; the one it takes the place of becomes `previous`."""
    with _told():
        if not force:
            _or_noted(lab, model, version, eligibility.require_passed)
        promotable = partial(eligibility.require_promotable, settings=lab.settings, force=force)
        _or_noted(lab, model, version, promotable)
        moves.promote(lab.client, lab.engine, model, version, reason=reason or "promoted by hand")
    _moved(lab, f"{model} version {version} is production")


@main.command()
@click.argument("model")
@click.option("--to", type=click.IntRange(1), help="A version that once was production, instead of `previous`.")
@reason_option
@click.pass_obj
def rollback(lab: Lab, model: str, to: int | None, reason: str) -> None:
    """Make the previous version of MODEL production again."""
    with _told():
        back = to or read_roles(lab.client, model).previous
        if back is not None:
            _or_noted(lab, model, back, partial(eligibility.require_servable, settings=lab.settings))
        roles = moves.rollback(lab.client, lab.engine, model, to, reason=reason or "rolled back by hand")
    _moved(lab, f"{model} version {roles.production} is production again")


@main.group(cls=Commands)
def canary() -> None:
    """Try a version on a share of the requests before it becomes production."""


@canary.command("start")
@click.argument("model")
@click.argument("version", type=click.IntRange(1))
@click.option("--weight", type=click.FloatRange(0, 1), help="Its share of the requests; CANARY_PROBABILITY by default.")
@click.option(
    "--mode",
    type=click.Choice(["split", "shadow"]),
    default="split",
    help="Whether it answers its share, or predicts beside production, which answers.",
)
@reason_option
@click.pass_obj
def canary_start(lab: Lab, model: str, version: int, weight: float | None, mode: Any, reason: str) -> None:
    """Make a VERSION of MODEL the canary beside production, and give it a share of the requests."""
    share = lab.settings.canary_probability if weight is None else weight
    with _told():
        _or_noted(lab, model, version, partial(eligibility.require_canary, settings=lab.settings))
        rollout = Rollout(share, mode)
        moves.start_canary(lab.client, lab.engine, model, version, rollout, reason=reason or f"canary, {rollout}")
    _moved(lab, f"{model} version {version} is the canary, {rollout}")


@canary.command("weight")
@click.argument("model")
@click.argument("weight", type=click.FloatRange(0, 1))
@reason_option
@click.pass_obj
def canary_weight(lab: Lab, model: str, weight: float, reason: str) -> None:
    """Give the canary of MODEL another share of the requests, from 0 to 1."""
    with _told():
        roles = read_roles(lab.client, model)
        if roles.canary is None:
            raise LabError(f"The model {model!r} has no canary.")
        rollout = Rollout(weight, roles.rollout.mode if roles.rollout else "split")
        why = reason or f"canary, {rollout}"
        moves.start_canary(lab.client, lab.engine, model, roles.canary, rollout, reason=why)
    _moved(lab, f"{model} version {roles.canary} is the canary, {rollout}")


@canary.command("stop")
@click.argument("model")
@reason_option
@click.pass_obj
def canary_stop(lab: Lab, model: str, reason: str) -> None:
    """Take the canary of MODEL out; production answers everything again."""
    with _told():
        moves.stop_canary(lab.client, lab.engine, model, reason=reason or "canary stopped by hand")
    _moved(lab, f"{model} has no canary any more")


@main.command()
@click.argument("model", required=False)
@click.option("--audit", "as_audit", is_flag=True, help="Show all that happened instead: moves, reloads, refusals.")
@json_option
@click.pass_obj
def status(lab: Lab, model: str | None, as_audit: bool, as_json: bool) -> None:
    """What is in which role, of MODEL or of all models, and who moved it there last, when and why."""
    if as_audit:
        with _told():
            entries = [_happened(entry, as_json) for entry in audit.history(lab.engine, model, limit=AUDIT_ENTRIES)]
        _print(entries, as_json, "Nothing has happened yet.")
        return
    with _told():
        found = read_all_roles(lab.client)
        if model is not None and model not in found:
            raise LabError(f"The registry has no model {model!r}; it has: {', '.join(sorted(found)) or 'none'}.")
        moves = audit.role_moves(lab.engine, model)
        shown = [
            _held(name, role, found[name], moves)
            for name in (sorted(found) if model is None else [model])
            for role in ROLES
            if getattr(found[name], role) is not None
        ]
    _print(shown, as_json, "No version has a role yet. Train a pipeline: labstack train")


@main.command()
@click.argument("model")
@json_option
@click.pass_obj
def versions(lab: Lab, model: str, as_json: bool) -> None:
    """The versions of MODEL, newest first: their roles, gates and metrics."""
    with _told():
        roles = read_roles(lab.client, model)
        found = lab.client.versions(model)
        if not found:
            raise LabError(f"The registry has no version of a model {model!r}.")
        shown = [_shown(lab, version, roles) for version in found]
    _print(shown, as_json, "")


@main.command()
@click.option("--output", type=click.Path(path_type=Path), help="A folder to write it into, instead of printing it.")
@click.pass_obj
def manifest(lab: Lab, output: Path | None) -> None:
    """What is in production and how to serve it, as JSON: outputs/deployment_manifest.json, made anew."""
    from labstack.registry import manifest as module

    with _told():
        made = module.make(lab.client, lab.settings)
        if output is not None:
            click.echo(module.write(made, output))
            return
        click.echo(module.text(made), nl=False)


@main.group(cls=Commands)
def data() -> None:
    """The datasets that pipelines learn from."""


@data.command("load")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", help="The dataset's name; by default the file's.")
@click.option("--append", is_flag=True, help="To a dataset that is there, with the same columns.")
@click.pass_obj
def data_load(lab: Lab, file: Path, name: str | None, append: bool) -> None:
    """Load a CSV FILE as a dataset. Lines that begin with # before its header describe it."""
    with _told():
        rows = datasets.load_csv(lab.engine, file, name or file.stem, append)
        known = datasets.summary(lab.engine, name or file.stem)
    click.echo(f"{known.name}: {rows:,} rows loaded, {known.rows:,} in all, {len(known.columns)} columns")


@data.command("list")
@json_option
@click.pass_obj
def data_list(lab: Lab, as_json: bool) -> None:
    """The datasets there are."""
    with _told():
        found = datasets.summaries(lab.engine)
    shown = [
        {
            "dataset": one.name,
            "rows": one.rows,
            "columns": len(one.columns),
            "changed": one.changed_at.isoformat(timespec="seconds"),
            "description": one.description,
        }
        for one in found
    ]
    _print(shown, as_json, "There is no dataset yet. Load one: labstack data load table.csv")


@data.command("describe")
@click.argument("name")
@json_option
@click.pass_obj
def data_describe(lab: Lab, name: str, as_json: bool) -> None:
    """What the columns of a dataset hold."""
    from labstack.training import draft

    with _told():
        shown = draft.describe(datasets.read(lab.engine, name))
    _print(shown, as_json, "")


@data.command("export")
@click.argument("name")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A file, instead of standard output.")
@click.pass_obj
def data_export(lab: Lab, name: str, output: Path | None) -> None:
    """Write a dataset as CSV, its header first, as `data load` and other programs read it; without its description."""
    with _told():
        lines = datasets.csv_lines(lab.engine, name)
        if output is None:
            for line in lines:
                click.echo(line, nl=False)
            return
        part = output.with_name(f"{output.name}.part")
        with part.open("w", encoding="utf-8", newline="") as file:
            file.writelines(lines)
        part.replace(output)


@main.group(cls=Commands)
def pipeline() -> None:
    """The files that say how models are made."""


@pipeline.command("check")
@click.argument("pipelines", nargs=-1, required=True, metavar="PIPELINE...")
@click.pass_obj
def pipeline_check(lab: Lab, pipelines: tuple[str, ...]) -> None:
    """Check pipelines and the rows they name, and train nothing."""
    from labstack.training import config, progress
    from labstack.training import data as rows
    from labstack.training.search import needs_search

    with _told():
        datasets.load_bundled(lab.engine)
        for name in pipelines:
            read = config.read(name)
            table = rows.load(lab.engine, read)
            for warning in table.warnings:
                progress.doubt(warning)
            if needs_search(read):
                rows.folds(read, table)
            split = f"{len(table.train):,} rows to learn from, {len(table.test):,} held out"
            click.echo(f"{name} is in order: {len(table.columns)} features, {split}")


@pipeline.command("init")
@click.option("--dataset", required=True, help="A dataset of the store; see: labstack data list")
@click.option("--target", required=True, help="The column to predict.")
@click.option("--model", help="The model's name; by default the dataset's.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A file, instead of standard output.")
@click.pass_obj
def pipeline_init(lab: Lab, dataset: str, target: str, model: str | None, output: Path | None) -> None:
    """Write a first pipeline from a look at a dataset."""
    from labstack.training import draft

    with _told():
        datasets.load_bundled(lab.engine)
        text = draft.write(lab.engine, dataset, target, model)
        if output is None:
            click.echo(text, nl=False)
            return
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    click.echo(f"{output} is written; train it: labstack train {output}")


@contextmanager
def _told(prefix: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Exit with 1 and one line on standard error when what is asked for cannot be done."""
    try:
        yield
    except FileExistsError as error:
        sys.exit(f"{prefix()}{error.filename} exists already. Nothing was written.")
    except BrokenPipeError:  # whoever read standard output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (LabError, OSError) as error:
        sys.exit(f"{prefix()}{error}")


@contextmanager
def _closing(lab: Lab, outcomes: list[Any], as_json: bool) -> Iterator[None]:
    """Print what trainings came to, and write the manifest, also when a later one failed."""
    from labstack.registry import manifest
    from labstack.training import progress

    try:
        yield
    finally:
        if as_json:
            _print_json([asdict(outcome) for outcome in outcomes])
        for outcome in outcomes if not as_json else ():
            click.echo(_sentence(outcome))
        if outcomes:
            path = manifest.write(manifest.make(lab.client, lab.settings), lab.settings.lab_outputs)
            progress.step("manifest", path=str(path))


def _approves(show: Callable[[list[Any]], None], gates: list[Any]) -> bool:
    """Ask the person at the terminal; without one the answer is no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    show(gates)
    return click.confirm("Make it production?", err=True)


def _sentence(outcome: Any) -> str:
    name = outcome.model if outcome.version is None else f"{outcome.model} version {outcome.version}"
    if outcome.run_id is None:
        return f"{name} is {'production' if outcome.promoted else 'unchanged'}: {outcome.reason}"
    return f"{name} {'is production' if outcome.promoted else 'was not promoted'}: {outcome.reason}"


def _moved(lab: Lab, said: str) -> None:
    """Say what was moved, and tell the API."""
    click.echo(f"{said}; {api_client.tell_api(lab.settings)}")


def _or_noted(lab: Lab, model: str, version: int, require: Callable[[MlflowRest, str, int], object]) -> None:
    """Require something of a version; a refusal goes into the audit."""
    try:
        require(lab.client, model, version)
    except LabError as error:
        if not isinstance(error, RegistryError):
            eligibility.note_refusal(lab.engine, model, version, str(error))
        raise


def _happened(entry: audit.Entry, whole: bool) -> dict[str, Any]:
    """An entry of the audit; `whole` with the evidence."""
    change = f"{entry.role}: {entry.from_version or 'none'} → {entry.to_version or 'none'}"
    shown = {
        "at": entry.at.isoformat(timespec="seconds"),
        "model": entry.model,
        "what": change if entry.action == "move" else entry.action,
        "by": entry.actor,
        "why": entry.reason,
    }
    return shown | ({"evidence": entry.evidence} if whole else {})


def _held(model: str, role: str, roles: Roles, moves: list[audit.Entry]) -> dict[str, Any]:
    """A role of a model that a version has, and who gave it to it, as far as the audit knows."""
    number = getattr(roles, role)
    last = next((move for move in moves if (move.model, move.role) == (model, role)), None)
    move = last if last and last.to_version == number else None
    return {
        "model": model,
        "role": f"{role}, {roles.rollout}" if role == "canary" and roles.rollout else role,
        "version": number,
        "since": move and move.at.isoformat(timespec="seconds"),
        "by": move and move.actor,
        "why": move.reason if move else "moved without a recorded move",
    }


def _shown(lab: Lab, version: Version, roles: Roles) -> dict[str, Any]:
    from labstack.registry.eligibility import GATES_TAG

    metrics = lab.client.run_of(version).metrics
    return {
        "version": version.number,
        "role": next((role for role in ROLES if getattr(roles, role) == version.number), None),
        "gates": version.tags.get(GATES_TAG),
        "created": version.created,
        "metrics": {name: value for name, value in metrics.items() if not name.endswith(("_low", "_high"))},
        "run_id": version.run_id,
    }


def _print(rows: list[dict[str, Any]], as_json: bool, if_none: str) -> None:
    """Print rows as one JSON value, or as a table for people."""
    if as_json:
        _print_json(rows)
        return
    if not rows:
        click.echo(if_none)
        return
    from rich.console import Console
    from rich.table import Table

    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*names, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in names))
    width = None if sys.stdout.isatty() else 250
    Console(highlight=False, markup=False, width=width).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(one)}" for name, one in value.items())
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, default=str))


if __name__ == "__main__":
    main(prog_name="labstack")
