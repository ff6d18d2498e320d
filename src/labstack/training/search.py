"""The search for the best candidate and its parameters, by cross-validation on the training rows, with optuna.

The trials are in a database, SEARCH_DATABASE_URL, which every process that runs a trial writes. A killed search
resumes, and trainings of the same rows and pipeline share their trials, also between containers.
"""

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np
import optuna
from joblib import Parallel, delayed
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event, make_url
from sqlalchemy.exc import SQLAlchemyError

from labstack import sqlite_files
from labstack.errors import LabError
from labstack.model.contract import Matrix
from labstack.store.sqlite import write_ahead
from labstack.training import data
from labstack.training.config import Candidate, Pipeline, Range
from labstack.training.estimator import make_core
from labstack.training.evaluate import Target, score
from labstack.training.table import FeatureColumn, Indices, TrainingTable

optuna.logging.set_verbosity(optuna.logging.ERROR)

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
BUSY_TIMEOUT_SECONDS = 60


class SearchError(LabError):
    """No candidate could be fitted, or the trials cannot be stored; the text says why."""


@dataclass(frozen=True)
class Trial:
    """A finished trial: its candidate, its parameters, and the mean metric of its folds unless pruned or failed."""

    number: int
    candidate: Candidate
    chosen: dict[str, Any]
    state: str
    score: float | None
    began: datetime
    ended: datetime
    error: str | None


@dataclass(frozen=True)
class SearchResult:
    """The best candidate, its parameters, its cross-validation score, and the number of finished trials."""

    candidate: Candidate
    chosen: dict[str, Any]
    score: float | None
    trials: int


def search(
    pipeline: Pipeline, table: TrainingTable, url: str, name: str, watch: Callable[[Trial, int, int], None]
) -> SearchResult:
    """Run trials up to the pipeline's number or time limit, and return the best.

    `watch` is called with each trial that finished here, the number of finished trials and the total. Searches with the
    same `name` share their trials. Raises SearchError, and DataError for too few rows.
    """
    if not pipeline.needs_search:
        return SearchResult(pipeline.candidates[0], {}, None, 0)
    folds = data.folds(pipeline, table)
    total = _total(pipeline)
    try:
        study = _create(pipeline, url, name)
        before = len(study.get_trials(deepcopy=False, states=FINISHED))
        _enqueue(study, len(pipeline.candidates))
        rows = table.matrix[table.train], table.target[table.train]
        deadline = time.time() + (pipeline.search.seconds or float("inf"))
        run = Parallel(n_jobs=min(pipeline.search.processes, total), return_as="generator_unordered")
        seeds = range(pipeline.split.seed + before, pipeline.split.seed + total)
        jobs = (delayed(_trial)(pipeline, table.columns, *rows, folds, url, name, seed, deadline) for seed in seeds)
        _watch(pipeline, study, run(jobs), watch, total)
        return _best(pipeline, study)
    except BrokenProcessPool as error:
        text = "A process of the search was killed, probably for lack of memory; reduce search.processes."
        raise SearchError(text) from error
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, SQLAlchemyError) else error
        reason = " ".join(str(getattr(cause, "orig", None) or cause).split())
        raise SearchError(f"The trials cannot be stored in SEARCH_DATABASE_URL: {reason}") from error


def _enqueue(study: optuna.Study, candidates: int) -> None:
    """Enqueue each candidate without a finished or waiting trial; trials of killed processes stay "running" forever."""
    known = study.get_trials(deepcopy=False, states=(*FINISHED, TrialState.WAITING))
    fixed = [trial.params | trial.system_attrs.get("fixed_params", {}) for trial in known]
    for index in set(range(candidates)) - {params.get("candidate") for params in fixed}:
        study.enqueue_trial({"candidate": index})


def _total(pipeline: Pipeline) -> int:
    """Return the number of trials to run; without parameters to search, one for each candidate."""
    if any(candidate.search for candidate in pipeline.candidates):
        return pipeline.search.trials
    return len(pipeline.candidates)


def _watch(
    pipeline: Pipeline,
    study: optuna.Study,
    results: Iterable[int | None],
    watch: Callable[[Trial, int, int], None],
    total: int,
) -> None:
    for number in results:
        if number is not None:
            trials = study.get_trials(deepcopy=False)
            ended = sum(trial.state in FINISHED for trial in trials)
            watch(_shown(pipeline, trials[number]), min(ended, total), total)


def _best(pipeline: Pipeline, study: optuna.Study) -> SearchResult:
    ended = study.get_trials(deepcopy=False, states=FINISHED)
    try:
        best = study.best_trial
    except ValueError:
        reason = next((error for trial in ended if (error := trial.user_attrs.get("error"))), "the time was too short")
        raise SearchError(f"None of {len(ended)} trials succeeded: {reason}") from None
    return SearchResult(*_choice(pipeline, best), best.value, len(ended))


def _create(pipeline: Pipeline, url: str, name: str) -> optuna.Study:
    """Create the study, or open it if it exists.

    Retries, as two processes may create the first tables at once, and one of them fails.
    """
    try:
        parsed = make_url(url)
        parsed.get_dialect().import_dbapi()
    except ImportError as error:
        raise SearchError(f"SEARCH_DATABASE_URL: the driver of this database is not installed: {error}") from error
    except (SQLAlchemyError, ValueError):  # its text may contain a part of the password
        raise SearchError("SEARCH_DATABASE_URL is no URL of a database, such as sqlite:///path/to/file.db") from None
    try:
        sqlite_files.prepare(parsed)
    except OSError as error:
        raise SearchError(f"SEARCH_DATABASE_URL: {parsed.database} cannot be created: {error.strerror}") from error
    for attempt in range(5):
        try:
            return _study(url, name, pipeline.more_is_better, pipeline.search.prune, pipeline.split.seed)
        except SQLAlchemyError:
            if attempt == 4:
                raise
            time.sleep(0.5 * (attempt + 1))
    raise AssertionError


def _study(url: str, name: str, more_is_better: bool, prune: bool, seed: int) -> optuna.Study:
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1) if prune else optuna.pruners.NopPruner()
    return optuna.create_study(
        storage=_storage(url),
        study_name=name,
        direction="maximize" if more_is_better else "minimize",
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=pruner,
        load_if_exists=True,
    )


@lru_cache(maxsize=2)
def _storage(url: str) -> RDBStorage:
    """Open the storage, once for each process."""
    sqlite = url.startswith("sqlite")
    options = {"connect_args": {"timeout": BUSY_TIMEOUT_SECONDS}} if sqlite else {"pool_pre_ping": True}
    storage = RDBStorage(url, engine_kwargs=options)
    if sqlite:
        event.listen(storage.engine, "connect", write_ahead)
        storage.engine.dispose()  # close connections from before the listener
    return storage


def _trial(
    pipeline: Pipeline,
    columns: Sequence[FeatureColumn],
    matrix: Matrix,
    target: Target,
    folds: list[tuple[Indices, Indices]],
    url: str,
    name: str,
    seed: int,
    deadline: float,
) -> int | None:
    """Run one trial in this process; return its number, or None when the time is over or enough trials exist."""
    if time.time() > deadline:
        return None
    study = _study(url, name, pipeline.more_is_better, pipeline.search.prune, seed)
    if len(study.get_trials(deepcopy=False, states=FINISHED)) >= _total(pipeline):
        return None
    trial = _ask(study)
    try:
        value = _cross_validate(pipeline, columns, matrix, target, folds, trial)
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
    except optuna.exceptions.UpdateFinishedTrialError:
        return None  # another process took the same waiting trial, and has finished it
    except Exception as error:  # for parameters that do not fit each other, estimators raise many types
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            trial.set_user_attr("error", " ".join(str(error).split())[:500])
        study.tell(
            trial, state=TrialState.PRUNED, skip_if_finished=True
        )  # the sampler learns from pruned trials, not from failed ones
    else:
        study.tell(trial, value, skip_if_finished=True)
    return trial.number


def _ask(study: optuna.Study) -> optuna.Trial:
    while True:
        with suppress(optuna.exceptions.UpdateFinishedTrialError):  # another process took the waiting trial first
            return study.ask()


def _cross_validate(
    pipeline: Pipeline,
    columns: Sequence[FeatureColumn],
    matrix: Matrix,
    target: Target,
    folds: list[tuple[Indices, Indices]],
    trial: optuna.Trial,
) -> float:
    """Return the mean of the metric over the folds. Raises TrialPruned when the trial is worse than the median."""
    index = trial.suggest_categorical("candidate", list(range(len(pipeline.candidates))))
    candidate = pipeline.candidates[index]
    chosen = {name: _suggest(trial, f"{index}.{name}", choices) for name, choices in candidate.search.items()}
    scores: list[float] = []
    for step, (fit, test) in enumerate(folds):
        core = make_core(pipeline, columns, candidate, chosen)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # most parameters tried here are not chosen
            core.fit(matrix[fit], target[fit])
            scores.append(score(pipeline, core, matrix[test], target[test]))
        trial.report(float(np.mean(scores)), step)
        if step < len(folds) - 1 and trial.should_prune():
            raise optuna.TrialPruned
    if np.isnan(scores).any():
        raise ValueError(f"{pipeline.metric} is not defined for a fold's rows")
    return float(np.mean(scores))


def _suggest(trial: optuna.Trial, name: str, choices: Range | tuple[Any, ...]) -> Any:
    if not isinstance(choices, Range):
        return trial.suggest_categorical(name, choices)
    low, high, step = choices.low, choices.high, choices.step
    if isinstance(low, int) and isinstance(high, int) and isinstance(step, int | None):
        return trial.suggest_int(name, low, high, log=choices.log, step=step or 1)
    return trial.suggest_float(name, low, high, log=choices.log, step=step)


def _choice(pipeline: Pipeline, trial: FrozenTrial) -> tuple[Candidate, dict[str, Any]]:
    """Return the candidate and the parameters of a trial."""
    index = trial.params.get("candidate", 0)
    chosen = {name.partition(".")[2]: value for name, value in trial.params.items() if name != "candidate"}
    return pipeline.candidates[index], chosen


def _shown(pipeline: Pipeline, trial: FrozenTrial) -> Trial:
    began = trial.datetime_start or datetime.now()  # noqa: DTZ005  # as Optuna has it
    score = trial.value if trial.state == TrialState.COMPLETE else None
    return Trial(
        trial.number,
        *_choice(pipeline, trial),
        "failed" if "error" in trial.user_attrs else trial.state.name.lower(),
        score,
        began,
        trial.datetime_complete or began,
        trial.user_attrs.get("error"),
    )
