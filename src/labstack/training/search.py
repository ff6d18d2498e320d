"""The search of the best candidate and its parameters, by cross-validation on the training rows, with optuna.

The trials lie in a database, SEARCH_DATABASE_URL: a search that was killed goes on where it ended, and trainings of
the same rows and pipeline, in whatever process or container, share theirs. Who writes: whoever runs a trial.
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
from labstack.store.database import write_ahead
from labstack.training import data
from labstack.training.config import Candidate, Pipeline, Range
from labstack.training.data import Column, Indices, Table
from labstack.training.estimator import make_core
from labstack.training.evaluate import Target, score

optuna.logging.set_verbosity(optuna.logging.ERROR)

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
BUSY_TIMEOUT_SECONDS = 60


class SearchError(LabError):
    """No candidate could be fitted, or the trials cannot be kept; the text says why."""


@dataclass(frozen=True)
class Trial:
    """A trial that ended: what was tried, the mean of the metric over its folds unless it was pruned or failed."""

    number: int
    candidate: Candidate
    chosen: dict[str, Any]
    state: str
    score: float | None
    began: datetime
    ended: datetime
    error: str | None


@dataclass(frozen=True)
class Found:
    """The best candidate with its parameters, its score by cross-validation, and how many trials there were."""

    candidate: Candidate
    chosen: dict[str, Any]
    score: float | None
    trials: int


def needs_search(pipeline: Pipeline) -> bool:
    """Whether there is anything to choose between."""
    return len(pipeline.candidates) > 1 or any(candidate.search for candidate in pipeline.candidates)


def search(pipeline: Pipeline, table: Table, url: str, name: str, watch: Callable[[Trial, int, int], None]) -> Found:
    """The best of the pipeline's trials, which are run until there are as many as it says, or its time is over.

    `watch` is called with each trial that ended here, how many ended so far and how many there will be. `name` names
    the search: others of that name, at once or before, count. Raises SearchError, and DataError for too few rows.
    """
    if not needs_search(pipeline):
        return Found(pipeline.candidates[0], {}, None, 0)
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
        text = "A process of the search was ended, as for want of memory; fewer search.processes need less."
        raise SearchError(text) from error
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, SQLAlchemyError) else error
        reason = " ".join(str(getattr(cause, "orig", None) or cause).split())
        raise SearchError(f"The trials cannot be kept in SEARCH_DATABASE_URL: {reason}") from error


def _enqueue(study: optuna.Study, candidates: int) -> None:
    """Have each candidate tried that no trial tried to its end, and none is about to; killed ones stay "running"."""
    known = study.get_trials(deepcopy=False, states=(*FINISHED, TrialState.WAITING))
    fixed = [trial.params | trial.system_attrs.get("fixed_params", {}) for trial in known]
    for place in set(range(candidates)) - {params.get("candidate") for params in fixed}:
        study.enqueue_trial({"candidate": place})


def _total(pipeline: Pipeline) -> int:
    """How many trials there are to be; without parameters to search, one of each candidate."""
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


def _best(pipeline: Pipeline, study: optuna.Study) -> Found:
    ended = study.get_trials(deepcopy=False, states=FINISHED)
    try:
        best = study.best_trial
    except ValueError:
        reason = next((error for trial in ended if (error := trial.user_attrs.get("error"))), "the time was too short")
        raise SearchError(f"No trial of {len(ended)} came to its end: {reason}") from None
    return Found(*_choice(pipeline, best), best.value, len(ended))


def _create(pipeline: Pipeline, url: str, name: str) -> optuna.Study:
    """The study, made unless there is one. Two processes that make the first tables at once: one is asked again."""
    try:
        parsed = make_url(url)
        parsed.get_dialect().import_dbapi()
    except ImportError as error:
        raise SearchError(f"SEARCH_DATABASE_URL: the driver of this database is not installed: {error}") from error
    except (SQLAlchemyError, ValueError):  # whose text may hold a part of a password
        raise SearchError("SEARCH_DATABASE_URL is no URL of a database, such as sqlite:///path/to/file.db") from None
    try:
        sqlite_files.prepare(parsed)
    except OSError as error:
        raise SearchError(f"SEARCH_DATABASE_URL: {parsed.database} cannot be made: {error.strerror}") from error
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
    """One for each process."""
    sqlite = url.startswith("sqlite")
    options = {"connect_args": {"timeout": BUSY_TIMEOUT_SECONDS}} if sqlite else {"pool_pre_ping": True}
    storage = RDBStorage(url, engine_kwargs=options)
    if sqlite:
        event.listen(storage.engine, "connect", write_ahead)
        storage.engine.dispose()  # the connections that were made before
    return storage


def _trial(
    pipeline: Pipeline,
    columns: Sequence[Column],
    matrix: Matrix,
    target: Target,
    folds: list[tuple[Indices, Indices]],
    url: str,
    name: str,
    seed: int,
    deadline: float,
) -> int | None:
    """Run a trial, in whatever process; its number, or None when the time is over or there are enough."""
    if time.time() > deadline:
        return None
    study = _study(url, name, pipeline.more_is_better, pipeline.search.prune, seed)
    if len(study.get_trials(deepcopy=False, states=FINISHED)) >= _total(pipeline):
        return None
    trial = _ask(study)
    try:
        value = _cross_validate(pipeline, columns, matrix, target, folds, trial)
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
    except Exception as error:  # parameters that do not go together; estimators say so in many ways
        trial.set_user_attr("error", " ".join(str(error).split())[:500])
        study.tell(trial, state=TrialState.PRUNED)  # of the states that one from which the sampler learns
    else:
        study.tell(trial, value)
    return trial.number


def _ask(study: optuna.Study) -> optuna.Trial:
    while True:
        with suppress(optuna.exceptions.UpdateFinishedTrialError):  # another process was quicker with one that waited
            return study.ask()


def _cross_validate(
    pipeline: Pipeline,
    columns: Sequence[Column],
    matrix: Matrix,
    target: Target,
    folds: list[tuple[Indices, Indices]],
    trial: optuna.Trial,
) -> float:
    """The mean of the metric over the folds. Raises TrialPruned when it is not going to be among the better half."""
    place = trial.suggest_categorical("candidate", list(range(len(pipeline.candidates))))
    candidate = pipeline.candidates[place]
    chosen = {name: _suggest(trial, f"{place}.{name}", choices) for name, choices in candidate.search.items()}
    scores: list[float] = []
    for step, (learn, judge) in enumerate(folds):
        core = make_core(pipeline, columns, candidate, chosen)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of parameters that nobody will choose
            core.fit(matrix[learn], target[learn])
            scores.append(score(pipeline, core, matrix[judge], target[judge]))
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
    """What a trial tried."""
    place = trial.params.get("candidate", 0)
    chosen = {name.partition(".")[2]: value for name, value in trial.params.items() if name != "candidate"}
    return pipeline.candidates[place], chosen


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
