"""Commands on roles: promote, rollback, canary, status, versions, manifest."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from labstack.cli.base import Commands, Lab, exit_on_error, json_option, print_rows, reason_option
from labstack.errors import LabError

if TYPE_CHECKING:
    from labstack.registry.client import MlflowRest, Version
    from labstack.registry.roles import Roles
    from labstack.store.audit import Entry

AUDIT_ENTRIES = 100  # that `status --audit` shows, the newest


@click.command()
@click.argument("model")
@click.argument("version", type=click.IntRange(1))
@click.option("--force", is_flag=True, help="Promote it even if it did not pass its gates.")
@reason_option
@click.pass_obj
def promote(lab: Lab, model: str, version: int, force: bool, reason: str) -> None:
    """Make VERSION of MODEL production. The version it replaces becomes `previous`."""
    from labstack.registry import eligibility, moves

    with exit_on_error():
        if not force:
            _require(lab, model, version, eligibility.require_passed)
        promotable = partial(eligibility.require_promotable, settings=lab.settings, force=force)
        _require(lab, model, version, promotable)
        moves.promote(lab.client, lab.engine, model, version, reason=reason or "promoted by hand")
    _report_move(lab, f"{model} version {version} is production")


@click.command()
@click.argument("model")
@click.option("--to", type=click.IntRange(1), help="An earlier production version, instead of `previous`.")
@reason_option
@click.pass_obj
def rollback(lab: Lab, model: str, to: int | None, reason: str) -> None:
    """Make the previous version of MODEL production again."""
    from labstack.registry import eligibility, moves
    from labstack.registry.roles import read_roles

    with exit_on_error():
        target = to or read_roles(lab.client, model).previous
        if target is not None:
            _require(lab, model, target, partial(eligibility.require_servable, settings=lab.settings))
        roles = moves.rollback(lab.client, lab.engine, model, to, reason=reason or "rolled back by hand")
    _report_move(lab, f"{model} version {roles.production} is production again")


@click.group(cls=Commands)
def canary() -> None:
    """Try a version on a share of the requests."""


@canary.command("start")
@click.argument("model")
@click.argument("version", type=click.IntRange(1))
@click.option("--weight", type=click.FloatRange(0, 1), help="Its share of the requests; CANARY_PROBABILITY by default.")
@click.option(
    "--mode",
    type=click.Choice(["split", "shadow"]),
    default="split",
    help="split: the canary answers its share. shadow: production answers; the canary's predictions are compared.",
)
@reason_option
@click.pass_obj
def canary_start(lab: Lab, model: str, version: int, weight: float | None, mode: Any, reason: str) -> None:
    """Make VERSION of MODEL the canary, with a share of the requests."""
    from labstack.registry import eligibility, moves
    from labstack.registry.roles import Rollout

    share = lab.settings.canary_probability if weight is None else weight
    with exit_on_error():
        _require(lab, model, version, partial(eligibility.require_canary, settings=lab.settings))
        rollout = Rollout(share, mode)
        moves.start_canary(lab.client, lab.engine, model, version, rollout, reason=reason or f"canary, {rollout}")
    _report_move(lab, f"{model} version {version} is the canary, {rollout}")


@canary.command("weight")
@click.argument("model")
@click.argument("weight", type=click.FloatRange(0, 1))
@reason_option
@click.pass_obj
def canary_weight(lab: Lab, model: str, weight: float, reason: str) -> None:
    """Change the canary's share of the requests to MODEL, from 0 to 1."""
    from labstack.registry import moves
    from labstack.registry.roles import Rollout, read_roles

    with exit_on_error():
        roles = read_roles(lab.client, model)
        if roles.canary is None:
            raise LabError(f"The model {model!r} has no canary.")
        rollout = Rollout(weight, roles.rollout.mode if roles.rollout else "split")
        reason = reason or f"canary, {rollout}"
        moves.start_canary(lab.client, lab.engine, model, roles.canary, rollout, reason=reason)
    _report_move(lab, f"{model} version {roles.canary} is the canary, {rollout}")


@canary.command("stop")
@click.argument("model")
@reason_option
@click.pass_obj
def canary_stop(lab: Lab, model: str, reason: str) -> None:
    """Remove the canary of MODEL; production answers all requests again."""
    from labstack.registry import moves

    with exit_on_error():
        moves.stop_canary(lab.client, lab.engine, model, reason=reason or "canary stopped by hand")
    _report_move(lab, f"{model} has no canary any more")


@click.command()
@click.argument("model", required=False)
@click.option("--audit", "as_audit", is_flag=True, help="Show the audit instead: moves, reloads, refusals.")
@json_option
@click.pass_obj
def status(lab: Lab, model: str | None, as_audit: bool, as_json: bool) -> None:
    """Show which version has which role, since when, by whom and why."""
    from labstack.registry.roles import ROLES, read_all_roles
    from labstack.store import audit

    if as_audit:
        with exit_on_error():
            entries = audit.history(lab.engine, model, limit=AUDIT_ENTRIES)
        print_rows([_audit_row(entry, as_json) for entry in entries], as_json, "The audit has no entry yet.")
        return
    with exit_on_error():
        models = read_all_roles(lab.client)
        if model is not None and model not in models:
            raise LabError(f"The registry has no model {model!r}; it has: {', '.join(sorted(models)) or 'none'}.")
        moves = audit.role_moves(lab.engine, model)
        rows = [
            _role_row(name, role, models[name], moves)
            for name in (sorted(models) if model is None else [model])
            for role in ROLES
            if getattr(models[name], role) is not None
        ]
    print_rows(rows, as_json, "No version has a role yet. Train a pipeline: labstack train")


@click.command()
@click.argument("model")
@json_option
@click.pass_obj
def versions(lab: Lab, model: str, as_json: bool) -> None:
    """List the versions of MODEL, newest first: roles, gates, metrics."""
    from labstack.registry.roles import read_roles

    with exit_on_error():
        roles = read_roles(lab.client, model)
        records = lab.client.versions(model)
        if not records:
            raise LabError(f"The registry has no version of a model {model!r}.")
        rows = [_version_row(lab, record, roles) for record in records]
    print_rows(rows, as_json)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), help="A folder to write it to, instead of printing it.")
@click.pass_obj
def manifest(lab: Lab, output: Path | None) -> None:
    """Print what is in production and how to serve it, as JSON."""
    from labstack.registry import manifest as module

    with exit_on_error():
        current = module.make(lab.client, lab.settings)
        if output is not None:
            click.echo(module.write(current, output))
            return
        click.echo(module.text(current), nl=False)


def _report_move(lab: Lab, message: str) -> None:
    """Notify the API of a move, and print the result of both."""
    from labstack import api_client

    click.echo(f"{message}; {api_client.notify_api(lab.settings)}")


def _require(lab: Lab, model: str, version: int, require: "Callable[[MlflowRest, str, int], object]") -> None:
    """Check that a version is eligible for a role; record a refusal in the audit."""
    from labstack.registry import eligibility
    from labstack.registry.client import RegistryError

    try:
        require(lab.client, model, version)
    except LabError as error:
        if not isinstance(error, RegistryError):
            eligibility.note_refusal(lab.engine, model, version, str(error))
        raise


def _audit_row(entry: "Entry", with_evidence: bool) -> dict[str, Any]:
    change = f"{entry.role}: {entry.from_version or 'none'} → {entry.to_version or 'none'}"
    row = {
        "at": entry.at.isoformat(timespec="seconds"),
        "model": entry.model,
        "what": change if entry.action == "move" else entry.action,
        "by": entry.actor,
        "why": entry.reason,
    }
    return row | ({"evidence": entry.evidence} if with_evidence else {})


def _role_row(model: str, role: str, roles: "Roles", moves: "list[Entry]") -> dict[str, Any]:
    """The version that has a role of a model, and the move that gave it the role, when the audit has it."""
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


def _version_row(lab: Lab, version: "Version", roles: "Roles") -> dict[str, Any]:
    from labstack.registry.roles import GATES_TAG, ROLES

    metrics = lab.client.run_of(version).metrics
    return {
        "version": version.number,
        "role": next((role for role in ROLES if getattr(roles, role) == version.number), None),
        "gates": version.tags.get(GATES_TAG),
        "created": version.created,
        "metrics": {name: value for name, value in metrics.items() if not name.endswith(("_low", "_high"))},
        "run_id": version.run_id,
    }
