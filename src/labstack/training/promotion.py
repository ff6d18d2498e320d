"""Promotion: production as the comparison for a candidate, and the decision whether the candidate replaces it."""

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sqlalchemy import Engine

from labstack.errors import LabError
from labstack.model import skops_file
from labstack.model.contract import Contract
from labstack.registry import eligibility, moves, trial
from labstack.registry.client import MlflowRest, NotThereError, TooLargeError, Version
from labstack.registry.roles import FAILED, GATE_TAG, GATES_TAG, PASSED, living_production
from labstack.settings import Settings
from labstack.training import evaluate, gates
from labstack.training.config import Pipeline
from labstack.training.gates import Gate, JudgedCandidate, Production
from labstack.training.table import TrainingTable

TAG_CHARACTERS = 4900  # of a tag's value; MLflow keeps 5,000
GATE_NAME_CHARACTERS = 200  # of a tag's name; MLflow keeps 250


class TrainingError(LabError):
    """A training run cannot go on; the text says why. No role was moved."""


@dataclass(frozen=True)
class Incumbent:
    """Today's production version, with its files in a folder."""

    record: Version
    contract: Contract
    folder: Path


def require_same_target(pipeline: Pipeline, client: MlflowRest, settings: Settings) -> None:
    """Raise TrainingError when the production version of this model has another target or task."""
    with _incumbent(client, pipeline.model, settings) as incumbent:
        if incumbent is None:
            return
        contract = incumbent.contract
        if (pipeline.task, pipeline.data.target) != (contract.task, contract.target):
            raise TrainingError(
                f"The model {pipeline.model!r} predicts {contract.target} ({contract.task}) in "
                f"production; a pipeline for {pipeline.data.target} ({pipeline.task}) needs another model name."
            )


def production(pipeline: Pipeline, client: MlflowRest, table: TrainingTable, settings: Settings) -> Production | None:
    """Return today's production with its predictions of the held-out rows; None without one. Raises TrainingError."""
    with _incumbent(client, pipeline.model, settings) as incumbent:
        if incumbent is None:
            return None
        number, contract = incumbent.record.number, incumbent.contract
        no_rows = np.empty(0, np.intp)
        names = [feature.name for feature in contract.features]
        known = {*table.frame, *table.others}
        if missing := [name for name in names if name not in known]:
            why = f"version {number} also takes {', '.join(missing)}, which these rows do not have"
            return Production(number, contract, no_rows, None, why)
        rows = table.frame.join(table.others).iloc[table.test][names]
        required = [feature.name for feature in contract.features if not feature.missing]
        accepted = np.flatnonzero(~rows[required].isna().any(axis=1))
        try:
            if not len(accepted):
                raise ValueError("it takes none of these rows, which have missing values")
            estimator = skops_file.load(incumbent.folder, settings.model_memory_bytes)
            predictions = evaluate.predict(estimator, rows.iloc[accepted])
        except (TypeError, ValueError) as error:
            why = f"version {number} does not predict these rows: {error}"
            return Production(number, contract, no_rows, None, why)
        held_out = _held_out(pipeline, client, incumbent, table)
        doubt = "" if held_out else "it may have been trained on some of these rows"
        return Production(number, contract, accepted, predictions, doubt=doubt)


def decide(
    pipeline: Pipeline,
    client: MlflowRest,
    engine: Engine,
    table: TrainingTable,
    judged: JudgedCandidate,
    version: int,
    settings: Settings,
    approve: Callable[[list[Gate]], bool],
) -> tuple[bool, str]:
    """Promote the version if it passed its gates and is approved: whether it was promoted, and the reason.

    When another training has moved production meanwhile, the version is judged again.
    """
    verdicts, baseline = judged.gates, judged.production
    while True:
        current = living_production(client, pipeline.model)
        if (current and current.number) != (baseline and baseline.number):
            baseline = production(pipeline, client, table, settings)
        if baseline is not judged.production:
            verdicts = gates.judge_again(pipeline, table, judged, baseline)
            for tag, value in verdict_tags(verdicts).items():
                client.set_version_tag(pipeline.model, version, tag, value)
        if refusal := _refusal(pipeline, judged, version, verdicts, baseline, approve):
            return False, refusal
        metric = f"{pipeline.metric} {judged.metrics[pipeline.metric]:.4f}"
        reason = verdicts[-1].said if baseline else f"the model had no production version, {metric}"
        eligibility.require_servable(client, pipeline.model, version, settings)
        try:
            expected = baseline.number if baseline else None
            moves.promote(client, engine, pipeline.model, version, reason=reason, instead_of=expected)
            return True, reason
        except moves.ProductionMovedError:
            continue


def _refusal(
    pipeline: Pipeline,
    judged: JudgedCandidate,
    version: int,
    verdicts: list[Gate],
    baseline: Production | None,
    approve: Callable[[list[Gate]], bool],
) -> str:
    """The reason why a version is not promoted; empty when it is."""
    if failed := [gate for gate in verdicts if not gate.passed]:
        return "; ".join(gate.said for gate in failed)
    if baseline is not None and evaluate.agree(judged.predictions, baseline.predictions):
        return f"version {baseline.number}, in production, predicts the same of all held-out rows"
    command = f"labstack promote {pipeline.model} {version}"
    if pipeline.approval == "manual":
        return f"it awaits approval: {command}"
    if pipeline.approval == "ask" and not approve(verdicts):
        return f"it was not approved; to promote it later: {command}"
    return ""


def verdict_tags(verdicts: list[Gate]) -> dict[str, str]:
    """Return the verdicts of gates as tags of a version; MLflow allows few characters in a tag's name."""
    tags = {GATES_TAG: PASSED if all(gate.passed for gate in verdicts) else FAILED}
    for gate in verdicts:
        name = GATE_TAG + re.sub(r"[^\w ./:-]", "_", gate.name, flags=re.ASCII)[:GATE_NAME_CHARACTERS]
        while name in tags:
            name += "_"
        tags[name] = f"{PASSED if gate.passed else FAILED}: {gate.said}"[:TAG_CHARACTERS]
    return tags


def split_params(pipeline: Pipeline, table: TrainingTable) -> dict[str, str]:
    """Return what decides which rows are held out, as parameters of a run."""
    return {
        "data": str(pipeline.data),
        "data_digest": table.digest,
        "split": " ".join(filter(None, (pipeline.split_by, pipeline.split.column))),
        "seed": str(pipeline.split.seed),
        "test_fraction": str(pipeline.split.test_fraction),
    }


def _held_out(pipeline: Pipeline, client: MlflowRest, incumbent: Incumbent, table: TrainingTable) -> bool:
    """Return whether the rows that production is judged on were also held out from its own training."""
    return split_params(pipeline, table).items() <= client.run_of(incumbent.record).params.items()


@contextmanager
def _incumbent(client: MlflowRest, model: str, settings: Settings) -> Iterator[Incumbent | None]:
    """Yield today's production with its files, which exist inside the context; None when there is no production."""
    record = living_production(client, model)
    if record is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            contract = trial.fetch(client, record, folder, settings, skops_file.FILE_NAME)
        except (NotThereError, TooLargeError, OSError, ValueError) as error:
            raise TrainingError(f"Production version {record.number} of {model!r} cannot be read: {error}") from error
        yield Incumbent(record, contract, folder)
