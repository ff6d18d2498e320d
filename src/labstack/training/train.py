"""One training: rows, search, evaluation, a package, gates, a registered version, and its promotion when it earns it.

What can be killed at any moment leaves nothing half done: the trials of a search lie in their database, a version is
registered by one call, after all that belongs to it was logged and with its gates' verdicts on it, and roles move as
in `registry`.
"""

import json
import math
import re
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from sqlalchemy import Engine

from labstack import api_client
from labstack.model.contract import FILE_NAME
from labstack.registry import eligibility, moves
from labstack.registry.client import MlflowRest, RegistryError, Version
from labstack.registry.roles import FAILED, GATE_TAG, GATES_TAG, PASSED, SCHEMA_CHANGE_TAG, living_production
from labstack.settings import Settings
from labstack.training import card, data, evaluate, fingerprint, gates, package, plots, progress, promotion, tracking
from labstack.training.config import Pipeline
from labstack.training.estimator import make_core
from labstack.training.gates import Gate, JudgedCandidate
from labstack.training.outcome import Outcome
from labstack.training.promotion import TrainingError
from labstack.training.search import SearchResult, search
from labstack.training.table import TrainingTable

FINGERPRINT_TAG = "labstack.fingerprint"
DECISION_TAG = "labstack.decision"  # what became of a version; without one its training was ended before
OF_PRODUCTION = ("schema", "production")  # the gates whose verdicts depend on what is in production
TAG_CHARACTERS = 4900  # of 5,000 that MLflow keeps of a tag


def train(
    pipeline: Pipeline,
    client: MlflowRest,
    engine: Engine,
    settings: Settings,
    *,
    register: bool = True,
    if_changed: bool = False,
    approve: Callable[[list[Gate]], bool] = lambda _: False,
) -> Outcome:
    """Train, register, and promote the version when it passes its gates and is approved of.

    `register` off tracks the run alone. With `if_changed` nothing is done when a version was made of the same rows,
    pipeline and code. `approve` is asked where the pipeline says `ask`. Raises LabError; no role has moved then.
    """
    promotion.require_same_question(pipeline, client, settings)
    table = data.load(engine, pipeline)
    shape = {"train": len(table.train), "test": len(table.test), "features": len(table.columns)}
    progress.step("rows read", model=pipeline.model, **shape)
    for warning in table.warnings:
        progress.warn(warning)
    digest = fingerprint.of_training(pipeline, table)
    same = _same(client, pipeline.model, digest)
    if same is not None:
        progress.step("unchanged", model=pipeline.model, version=same.number)
        if if_changed:
            reason = f"rows, pipeline and code are those of version {same.number}"
            return Outcome(pipeline.model, same.number, None, {}, same.tags.get(GATES_TAG) == PASSED, False, reason)
    with (
        tracking.connect(client) as mlflow_client,
        tracking.run(mlflow_client, pipeline.model, {FINGERPRINT_TAG: digest}) as run_id,
    ):
        folder = settings.lab_outputs / pipeline.model / run_id
        version = None
        try:
            with tracking.explained(client):
                judged = _make(pipeline, client, mlflow_client, table, settings, folder, run_id)
                model_id = tracking.log(pipeline, mlflow_client, table, judged, settings.git_commit)
                if register:
                    # what a version says of itself from its first moment on
                    tags = {FINGERPRINT_TAG: digest} | _verdicts(judged.gates)
                    if pipeline.gates.allow_schema_change:
                        tags[SCHEMA_CHANGE_TAG] = "allowed by its gates"
                    version = tracking.register(mlflow_client, pipeline.model, model_id, run_id, tags)
        except RegistryError as error:
            if (folder / FILE_NAME).exists():
                raise TrainingError(f"{error} The package that was made lies in {folder}.") from error
            raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
    outcome = Outcome(pipeline.model, version, run_id, judged.metrics, judged.passed, False, "tracked, not registered")
    if version is None:
        return outcome
    progress.step("registered", model=pipeline.model, version=version)
    promoted, reason = _decide(pipeline, client, engine, table, judged, version, settings, approve)
    if not judged.passed:
        eligibility.note_refusal(engine, pipeline.model, version, reason)
    with suppress(RegistryError):  # without it a training that was told --if-changed looks at the version again
        client.set_version_tag(pipeline.model, version, DECISION_TAG, reason[:TAG_CHARACTERS])
    progress.step("promoted" if promoted else "not promoted", model=pipeline.model, version=version, reason=reason)
    if promoted and pipeline.after_promotion == "reload":
        progress.step("API", said=api_client.notify_api(settings))
    return replace(outcome, promoted=promoted, reason=reason)


def _make(
    pipeline: Pipeline,
    client: MlflowRest,
    mlflow_client: MlflowClient,
    table: TrainingTable,
    settings: Settings,
    folder: Path,
    run_id: str,
) -> JudgedCandidate:
    """Search, fit, evaluate, pack and judge a candidate; its files are in the folder then."""
    with tracking.trials(mlflow_client, pipeline, run_id) as watch:
        name = f"{pipeline.model}-{fingerprint.of_search(pipeline, table)}"
        found = search(pipeline, table, settings.search_database_url, name, watch)
    core = _fit(pipeline, table, found)
    scorer, predicted = _score(pipeline, table, core)
    groups = evaluate.groups_of(pipeline, table)
    measured, intervals = scorer.all(), evaluate.intervals(scorer, pipeline.split.seed, groups)
    progress.step("fitted and evaluated", model=pipeline.model, estimator=found.candidate.name, **measured)
    folder.mkdir(parents=True, exist_ok=True)
    packed = package.pack(pipeline, table, core, predicted, folder)
    progress.step("packed", model=pipeline.model, runtime=packed.runtime)
    production = promotion.production(pipeline, client, table, settings)
    verdicts = gates.judge(pipeline, table, packed, scorer, production)
    progress.verdicts(verdicts)
    importance = evaluate.importances(pipeline, core, table)
    curve = evaluate.learning_curve(pipeline, core, table)
    for file, figure in plots.draw(pipeline, table.target[table.test], predicted, importance, curve).items():
        (folder / "plots").mkdir(exist_ok=True)
        figure.savefig(folder / "plots" / file)
    text = card.write(pipeline, table, found, packed, measured, intervals, importance, verdicts)
    (folder / "model_card.md").write_text(text, encoding="utf-8")
    (folder / "gates.json").write_text(json.dumps([vars(gate) for gate in verdicts], indent=2) + "\n")
    return JudgedCandidate(found, packed, predicted, scorer, production, measured, intervals, verdicts)


def _fit(pipeline: Pipeline, table: TrainingTable, found: SearchResult) -> Any:
    """The chosen core, fitted on all training rows. Raises TrainingError."""
    core = make_core(pipeline, table.columns, found.candidate, found.chosen)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            core.fit(table.matrix[table.train], table.target[table.train])
        except Exception as error:  # an estimator may fail in any way
            raise TrainingError(f"{found.candidate.estimator} does not fit these rows: {error}") from error
    for text in dict.fromkeys(str(warning.message).partition("\n")[0] for warning in heard):
        progress.warn(f"{found.candidate.name}: {text}")
    return core


def _score(pipeline: Pipeline, table: TrainingTable, core: Any) -> tuple[evaluate.Scorer, evaluate.Predictions]:
    try:
        predicted = evaluate.predict(core, table.matrix[table.test])
    except Exception as error:
        raise TrainingError(f"{type(core[-1]).__name__} does not predict these rows: {error}") from error
    scorer = evaluate.Scorer(pipeline.task, table.target[table.test], predicted)
    if math.isnan(scorer(pipeline.metric)):
        text = f"{pipeline.metric} is not defined for the held-out rows, as when all are of one class; split otherwise."
        raise TrainingError(text)
    return scorer, predicted


def _decide(
    pipeline: Pipeline,
    client: MlflowRest,
    engine: Engine,
    table: TrainingTable,
    judged: JudgedCandidate,
    version: int,
    settings: Settings,
    approve: Callable[[list[Gate]], bool],
) -> tuple[bool, str]:
    """Promote the version if it may be: whether it was, and why.

    It is judged again whenever another training has moved production meanwhile.
    """
    verdicts, production = judged.gates, judged.production
    while True:
        now = living_production(client, pipeline.model)
        if (now and now.number) != (production and production.number):
            production = promotion.production(pipeline, client, table, settings)
        if production is not judged.production:
            verdicts = [gate for gate in judged.gates if gate.name not in OF_PRODUCTION]
            if production is not None:
                verdicts += gates.beside(pipeline, table, judged.package, judged.scorer, production)
            for tag, said in _verdicts(verdicts).items():
                client.set_version_tag(pipeline.model, version, tag, said)
        if failed := [gate for gate in verdicts if not gate.passed]:
            return False, "; ".join(gate.said for gate in failed)
        if production is not None and evaluate.agree(judged.predicted, production.predicted):
            return False, f"version {production.number}, in production, predicts the same of all held-out rows"
        if pipeline.approval == "manual":
            return False, f"it awaits: labstack promote {pipeline.model} {version}"
        if pipeline.approval == "ask" and not approve(verdicts):
            return False, f"nobody approved of it; later: labstack promote {pipeline.model} {version}"
        why = verdicts[-1].said if production else f"the model had no production version, {_metric(pipeline, judged)}"
        eligibility.require_servable(client, pipeline.model, version, settings)
        try:
            judged_by = production.number if production else None
            moves.promote(client, engine, pipeline.model, version, reason=why, instead_of=judged_by)
            return True, why
        except moves.ProductionMovedError:
            continue


def _metric(pipeline: Pipeline, judged: JudgedCandidate) -> str:
    return f"{pipeline.metric} {judged.metrics[pipeline.metric]:.4f}"


def _same(client: MlflowRest, model: str, fingerprint: str) -> Version | None:
    """The newest version that was made of the same and came to its end, if there is one."""
    decided = (one for one in client.versions(model) if DECISION_TAG in one.tags)
    return next((one for one in decided if one.tags.get(FINGERPRINT_TAG) == fingerprint), None)


def _verdicts(found: list[Gate]) -> dict[str, str]:
    """Tags of a version for its gates' verdicts; MLflow takes few characters in a tag's name."""
    told = {GATES_TAG: PASSED if all(gate.passed for gate in found) else FAILED}
    for gate in found:
        name = GATE_TAG + re.sub(r"[^\w ./:-]", "_", gate.name, flags=re.ASCII)[:200]
        while name in told:
            name += "_"
        told[name] = f"{PASSED if gate.passed else FAILED}: {gate.said}"[:TAG_CHARACTERS]
    return told
