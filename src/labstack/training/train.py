"""One training: rows, search, evaluation, package, gates, a registered version, and its promotion if it passes.

A training may be killed at any moment: the trials of its search are in their database, one call registers the version
together with its gates' verdicts, after everything that belongs to it was logged, and role moves are undone or
finished as in `registry.moves`.
"""

import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from sqlalchemy import Engine

from labstack import api_client
from labstack.model.contract import FILE_NAME
from labstack.registry import eligibility
from labstack.registry.client import MlflowRest, RegistryError, Version
from labstack.registry.roles import GATES_TAG, PASSED, SCHEMA_CHANGE_TAG
from labstack.settings import Settings
from labstack.training import card, data, evaluate, fingerprint, gates, package, plots, progress, promotion, tracking
from labstack.training.config import Pipeline
from labstack.training.estimator import make_core
from labstack.training.gates import Gate, JudgedCandidate
from labstack.training.outcome import TrainingOutcome
from labstack.training.promotion import TAG_CHARACTERS, TrainingError
from labstack.training.search import SearchResult, search
from labstack.training.table import TrainingTable

FINGERPRINT_TAG = "labstack.fingerprint"
DECISION_TAG = "labstack.decision"  # why a version was promoted or not; without it the training did not finish


def train(
    pipeline: Pipeline,
    client: MlflowRest,
    engine: Engine,
    settings: Settings,
    *,
    register: bool = True,
    if_changed: bool = False,
    approve: Callable[[list[Gate]], bool] = lambda _: False,
) -> TrainingOutcome:
    """Train a version, register it, and promote it when it passes its gates and is approved.

    `register=False` only logs the run. `if_changed` skips a training when a version with the same rows, pipeline and
    code exists. `approve` decides when the pipeline says `approval: ask`. Raises LabError before any role has moved.
    """
    promotion.require_same_target(pipeline, client, settings)
    table = _load(pipeline, engine)
    digest = fingerprint.of_training(pipeline, table)
    existing = _version_with(client, pipeline.model, digest)
    if existing is not None:
        progress.step("unchanged", model=pipeline.model, version=existing.number)
        if if_changed:
            passed = existing.tags.get(GATES_TAG) == PASSED
            reason = f"rows, pipeline and code are those of version {existing.number}"
            return TrainingOutcome(pipeline.model, existing.number, None, {}, passed, False, reason)
    with (
        tracking.connect(client) as mlflow_client,
        tracking.run(mlflow_client, pipeline.model, {FINGERPRINT_TAG: digest}) as run_id,
        _package_folder(settings.lab_outputs / pipeline.model / run_id) as folder,
        tracking.registry_errors(client),
    ):
        judged = _make(pipeline, client, mlflow_client, table, settings, folder, run_id)
        model_id = tracking.log(pipeline, mlflow_client, table, judged, settings.git_commit)
        version = _register(pipeline, mlflow_client, judged, model_id, run_id, digest) if register else None
    outcome = TrainingOutcome(
        pipeline.model, version, run_id, judged.metrics, judged.passed, False, "tracked, not registered"
    )
    if version is None:
        return outcome
    progress.step("registered", model=pipeline.model, version=version)
    promoted, reason = promotion.decide(pipeline, client, engine, table, judged, version, settings, approve)
    if not judged.passed:
        eligibility.note_refusal(engine, pipeline.model, version, reason)
    with suppress(RegistryError):  # without this tag, the next training with --if-changed trains again
        client.set_version_tag(pipeline.model, version, DECISION_TAG, reason[:TAG_CHARACTERS])
    progress.step("promoted" if promoted else "not promoted", model=pipeline.model, version=version, reason=reason)
    if promoted and pipeline.after_promotion == "reload":
        progress.step("API", said=api_client.notify_api(settings))
    return replace(outcome, promoted=promoted, reason=reason)


def _load(pipeline: Pipeline, engine: Engine) -> TrainingTable:
    table = data.load(engine, pipeline)
    shape = {"train": len(table.train), "test": len(table.test), "features": len(table.columns)}
    progress.step("rows read", model=pipeline.model, **shape)
    for warning in table.warnings:
        progress.warn(warning)
    return table


def _version_with(client: MlflowRest, model: str, digest: str) -> Version | None:
    """Return the newest version with this fingerprint whose training finished; None when there is none."""
    finished = (version for version in client.versions(model) if DECISION_TAG in version.tags)
    return next((version for version in finished if version.tags.get(FINGERPRINT_TAG) == digest), None)


@contextmanager
def _package_folder(folder: Path) -> Iterator[Path]:
    """Remove the folder at the end, unless the registry failed after the package was complete.

    Raises TrainingError that names the folder then.
    """
    try:
        yield folder
    except RegistryError as error:
        if (folder / FILE_NAME).exists():
            raise TrainingError(f"{error} The package that was made lies in {folder}.") from error
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _register(
    pipeline: Pipeline, client: MlflowClient, judged: JudgedCandidate, model_id: str, run_id: str, digest: str
) -> int:
    """Register the logged model with all its tags in one call; return the version's number."""
    tags = {FINGERPRINT_TAG: digest} | promotion.verdict_tags(judged.gates)
    if pipeline.gates.allow_schema_change:
        tags[SCHEMA_CHANGE_TAG] = "allowed by its gates"
    return tracking.register(client, pipeline.model, model_id, run_id, tags)


def _make(
    pipeline: Pipeline,
    client: MlflowRest,
    mlflow_client: MlflowClient,
    table: TrainingTable,
    settings: Settings,
    folder: Path,
    run_id: str,
) -> JudgedCandidate:
    """Search, fit, evaluate, pack and judge a candidate, and write its files to the folder."""
    with tracking.trials(mlflow_client, pipeline, run_id) as watch:
        name = f"{pipeline.model}-{fingerprint.of_search(pipeline, table)}"
        result = search(pipeline, table, settings.search_database_url, name, watch)
    core = _fit(pipeline, table, result)
    scorer, predictions = _score(pipeline, table, core)
    groups = evaluate.groups_of(pipeline, table)
    metrics, intervals = scorer.all(), evaluate.intervals(scorer, pipeline.split.seed, groups)
    progress.step("fitted and evaluated", model=pipeline.model, estimator=result.candidate.name, **metrics)
    folder.mkdir(parents=True, exist_ok=True)
    packed = package.pack(pipeline, table, core, predictions, folder)
    progress.step("packed", model=pipeline.model, runtime=packed.runtime)
    production = promotion.production(pipeline, client, table, settings)
    verdicts = gates.judge(pipeline, table, packed, scorer, production)
    progress.verdicts(verdicts)
    importance = evaluate.importances(pipeline, core, table)
    _write_plots(pipeline, table, core, predictions, importance, folder / "plots")
    text = card.write(pipeline, table, result, packed, metrics, intervals, importance, verdicts)
    (folder / "model_card.md").write_text(text, encoding="utf-8")
    (folder / "gates.json").write_text(json.dumps([vars(gate) for gate in verdicts], indent=2) + "\n")
    return JudgedCandidate(result, packed, predictions, scorer, production, metrics, intervals, verdicts)


def _write_plots(
    pipeline: Pipeline,
    table: TrainingTable,
    core: Any,
    predictions: evaluate.HeldOutPredictions,
    importance: dict[str, tuple[float, float]],
    folder: Path,
) -> None:
    folder.mkdir(exist_ok=True)
    curve = evaluate.learning_curve(pipeline, core, table)
    for name, figure in plots.draw(pipeline, table.target[table.test], predictions, importance, curve).items():
        figure.savefig(folder / name)


def _fit(pipeline: Pipeline, table: TrainingTable, result: SearchResult) -> Any:
    """Fit the best core on all training rows. Raises TrainingError."""
    core = make_core(pipeline, table.columns, result.candidate, result.chosen)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            core.fit(table.matrix[table.train], table.target[table.train])
        except Exception as error:  # an estimator may raise any type
            raise TrainingError(f"{result.candidate.estimator} does not fit these rows: {error}") from error
    for text in dict.fromkeys(str(warning.message).partition("\n")[0] for warning in caught):
        progress.warn(f"{result.candidate.name}: {text}")
    return core


def _score(pipeline: Pipeline, table: TrainingTable, core: Any) -> tuple[evaluate.Scorer, evaluate.HeldOutPredictions]:
    """Predict the held-out rows. Raises TrainingError, also when the pipeline's metric is not defined for them."""
    try:
        predictions = evaluate.predict(core, table.matrix[table.test])
    except Exception as error:
        raise TrainingError(f"{type(core[-1]).__name__} does not predict these rows: {error}") from error
    scorer = evaluate.Scorer(pipeline.task, table.target[table.test], predictions)
    if math.isnan(scorer(pipeline.metric)):
        raise TrainingError(
            f"{pipeline.metric} is not defined for the held-out rows, for example because all are of one class; "
            "change the split."
        )
    return scorer, predictions
