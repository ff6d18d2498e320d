"""A search can be resumed and shared, and gives the same result each time."""

import multiprocessing
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest

from labstack.training import data
from labstack.training import search as module
from labstack.training.config import Pipeline
from labstack.training.search import SearchError, SearchResult, Trial, search
from labstack.training.table import TrainingTable
from tests.conftest import environment

FOREST = {"estimator": "sklearn.ensemble.RandomForestClassifier", "params": {"n_estimators": 5, "random_state": 0}}
TREE = {
    "estimator": "sklearn.tree.DecisionTreeClassifier",
    "params": {"random_state": 0},
    "search": {"max_depth": {"low": 1, "high": 10}, "criterion": ["gini", "entropy"]},
}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.normal(size=(200, 3)).round(3), columns=["a", "b", "c"])
    frame["y"] = np.where(frame["a"] + random.normal(size=200) / 2 > 0, "yes", "no")
    frame.to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


def make(table: Path, *candidates: dict[str, Any], **changes: Any) -> tuple[Pipeline, TrainingTable]:
    pipeline = Pipeline.model_validate(
        {
            "model": "mine",
            "task": "classification",
            "data": {"csv": table, "target": "y"},
            "candidates": candidates or (TREE, FOREST),
            "metric": "accuracy",
            "search": {"trials": 8} | changes,
        }
    )
    return pipeline, data.load(None, pipeline)  # type: ignore[arg-type]  # no dataset of a store is read


def run(table: Path, url: str, *candidates: dict[str, Any], **changes: Any) -> tuple[SearchResult, list[Trial]]:
    trials: list[Trial] = []
    pipeline, rows = make(table, *candidates, **changes)
    return search(pipeline, rows, url, "mine", lambda trial, *_: trials.append(trial)), trials


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/made/search.db"


def test_one_candidate_without_parameters_needs_no_search(table: Path, url: str, tmp_path: Path) -> None:
    result, trials = run(table, url, FOREST)
    assert (result.candidate.name, result.chosen, result.trials, trials) == ("RandomForestClassifier", {}, 0, [])
    assert not (tmp_path / "made").exists()


def test_each_candidate_is_tried_and_the_best_is_found(table: Path, url: str) -> None:
    result, trials = run(table, url)
    assert [trial.number for trial in trials] == list(range(8))
    assert {trial.candidate.name for trial in trials} == {"DecisionTreeClassifier", "RandomForestClassifier"}
    assert result.score == max(trial.score for trial in trials if trial.score is not None)
    assert (result.score or 0) > 0.7


def test_without_parameters_each_candidate_is_tried_once(table: Path, url: str) -> None:
    _, trials = run(table, url, FOREST, TREE | {"search": {}})
    assert sorted(trial.candidate.name for trial in trials) == ["DecisionTreeClassifier", "RandomForestClassifier"]


def test_a_search_is_the_same_each_time_and_whether_it_was_interrupted(table: Path, tmp_path: Path) -> None:
    urls = [f"sqlite:///{tmp_path}/{name}.db" for name in "abc"]
    whole, again = (run(table, url)[1] for url in urls[:2])
    parts = run(table, urls[2], trials=3)[1] + run(table, urls[2], trials=8)[1]
    shown = [[(trial.number, trial.chosen, trial.score) for trial in trials] for trials in (whole, again, parts)]
    assert shown[0] == shown[1] == shown[2]


def test_a_search_that_is_done_costs_nothing(table: Path, url: str) -> None:
    first, _ = run(table, url)
    again, trials = run(table, url)
    assert (again, trials) == (first, [])


def test_invalid_parameters_cost_one_trial_each(table: Path, url: str) -> None:
    broken = {"estimator": "sklearn.linear_model.LogisticRegression", "search": {"penalty": ["l1", "l2"]}}
    result, trials = run(table, url, broken)
    assert result.chosen == {"penalty": "l2"}
    failed = [trial for trial in trials if trial.error]
    assert failed
    assert {trial.state for trial in failed} == {"failed"}
    assert "Solver lbfgs supports only" in str(failed[0].error)


def test_a_search_without_a_successful_trial_says_why(table: Path, url: str) -> None:
    broken = {"estimator": "sklearn.linear_model.LogisticRegression", "search": {"penalty": ["l1", "elasticnet"]}}
    with pytest.raises(SearchError, match="None of 8 trials succeeded: Solver lbfgs"):
        run(table, url, broken)


def test_a_search_ends_when_its_time_is_over(table: Path, url: str) -> None:
    _, trials = run(table, url, trials=100_000, seconds=0.5)
    assert 0 < len(trials) < 1000


def test_a_file_that_is_no_database_is_reported(table: Path, tmp_path: Path) -> None:
    (tmp_path / "search.db").write_text("Dear diary, " * 1000)
    with pytest.raises(SearchError, match="SEARCH_DATABASE_URL: file is not a database"):
        run(table, f"sqlite:///{tmp_path}/search.db")


@pytest.mark.usefixtures("group_writable")
def test_its_database_is_group_writable(table: Path, url: str, tmp_path: Path) -> None:
    run(table, url, trials=2)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "made").iterdir()}
    assert modes == {"search.db": 0o664, "search.db-wal": 0o664, "search.db-shm": 0o664}


def test_a_folder_that_cannot_be_created_is_reported(table: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SearchError, match=r"SEARCH_DATABASE_URL: .*/file/search.db cannot be created: "):
        run(table, f"sqlite:///{tmp_path}/file/search.db")


def test_processes_share_a_search(table: Path, url: str) -> None:
    result, trials = run(table, url, processes=2, trials=20)
    assert sorted(trial.number for trial in trials) == list(range(20))
    assert result.trials == 20
    assert result.score == max(trial.score for trial in trials if trial.score is not None)


def _join(table: Path, url: str) -> int:
    return len(run(table, url, trials=30)[1])


def test_trainings_that_run_at_once_share_a_search(table: Path, url: str) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        numbers = pool.starmap(_join, [(table, url)] * 2)
    assert min(numbers) > 0
    assert 30 <= sum(numbers) <= 31  # one may have begun when the last was counted


def test_a_trial_that_another_process_has_finished_is_left_to_it(
    table: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, rows = make(table, trials=6)
    study = module._create(pipeline, url, "mine")
    taken = study.ask()
    study.tell(taken, state=optuna.trial.TrialState.PRUNED)
    monkeypatch.setattr(module, "_ask", lambda study: optuna.Trial(study, taken._trial_id))
    matrix, target = rows.matrix[rows.train], rows.target[rows.train]
    folds = data.folds(pipeline, rows)
    assert module._trial(pipeline, rows.columns, matrix, target, folds, url, "mine", 0, time.time() + 60) is None


def test_a_killed_search_resumes(table: Path, url: str, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.training.test_search import make, search\n"
        "pipeline, rows = make(Path(sys.argv[1]), trials=500)\n"
        "search(pipeline, rows, sys.argv[2], 'mine', lambda trial, *_: print(trial.number, flush=True))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(table), url],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=Path.cwd(),
    )
    with process:
        for line in process.stdout or ():
            if int(line) >= 10:
                process.send_signal(signal.SIGKILL)
                break
    with sqlite3.connect(tmp_path / "made" / "search.db") as connection:
        (before,) = connection.execute("SELECT COUNT(*) FROM trials WHERE state IN ('COMPLETE', 'PRUNED')").fetchone()
    connection.close()
    _, trials = run(table, url, trials=20)
    assert before >= 10
    assert 0 < len(trials) <= 10


def test_a_locked_database_is_reported(table: Path, url: str, tmp_path: Path) -> None:
    run(table, url, trials=1)
    holder = sqlite3.connect(tmp_path / "made" / "search.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    module._storage.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BUSY_TIMEOUT_SECONDS", 0.1)
        with pytest.raises(SearchError, match="SEARCH_DATABASE_URL: database is locked"):
            run(table, url, trials=3)
    holder.close()
    module._storage.cache_clear()
    assert len(run(table, url, trials=3)[1]) == 2


def test_each_candidate_is_tried_after_its_trials_were_killed(table: Path, url: str) -> None:
    pipeline, rows = make(table, trials=6)
    study = module._create(pipeline, url, "mine")
    for place in range(2):
        study.enqueue_trial({"candidate": place})
        study.ask()  # as a process does that is killed then
    trials: list[Trial] = []
    search(pipeline, rows, url, "mine", lambda trial, *_: trials.append(trial))
    assert {trial.candidate.name for trial in trials} == {"DecisionTreeClassifier", "RandomForestClassifier"}


def test_an_estimator_that_raises_another_type_costs_a_trial(table: Path, url: str) -> None:
    lda = "sklearn.discriminant_analysis.LinearDiscriminantAnalysis"
    searched = {"solver": ["svd", "lsqr"], "shrinkage": [None, 0.1]}
    _, trials = run(table, url, {"estimator": lda, "search": searched}, trials=12)
    assert len(trials) == 12
    assert any("shrinkage not supported" in str(trial.error) for trial in trials)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql+nodriver://u:TOPSECRET@h/d", "SEARCH_DATABASE_URL"),
        ("http://u:TOP:SECRET@h:x/", "is no URL of a database"),
    ],
)
def test_an_invalid_url_is_reported_without_its_password(table: Path, url: str, reason: str) -> None:
    with pytest.raises(SearchError, match=reason) as raised:
        run(table, url)
    assert "SECRET" not in str(raised.value)
