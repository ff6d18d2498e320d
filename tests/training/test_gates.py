"""Each gate: what passes, what fails, and the reason it gives."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression

from labstack.training import config, data, evaluate, gates, package
from labstack.training.config import Pipeline
from labstack.training.estimator import make_core
from labstack.training.evaluate import HeldOutPredictions, Scorer
from labstack.training.gates import Gate, Production
from labstack.training.package import Package
from labstack.training.table import TrainingTable


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two tables: `b` lowers y, `a` raises it, `c` does nothing, and the third `group` is noise."""
    folder = tmp_path_factory.mktemp("tables")
    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.normal(size=(600, 3)).round(3), columns=["a", "b", "c"])
    frame["group"] = np.array(["x", "y", "z"])[np.arange(600) % 3]
    value = np.where(frame["group"] != "z", 2 * frame["a"] - frame["b"], 3 * random.normal(size=600))
    frame.assign(y=value).to_csv(folder / "regression.csv", index=False)
    frame.assign(y=np.where(value > 0, "high", "low")).to_csv(folder / "classification.csv", index=False)
    return {task: folder / f"{task}.csv" for task in ("regression", "classification")}


def judged(
    tables: dict[str, Path], folder: Path, task: str = "regression", estimator: str = "", **options: Any
) -> tuple[Pipeline, TrainingTable, Package, Scorer]:
    classifies = task == "classification"
    default = "sklearn.linear_model.LogisticRegression" if classifies else "sklearn.linear_model.LinearRegression"
    pipeline = Pipeline.model_validate(
        {
            "model": "mine",
            "task": task,
            "data": {"csv": tables[task], "target": "y"},
            "candidates": [{"estimator": estimator or default}],
            "metric": "accuracy" if classifies else "rmse",
            "gates": options,
        }
    )
    table = data.load(None, pipeline)  # type: ignore[arg-type]  # no dataset of a store is read
    core = make_core(pipeline, table.columns, pipeline.candidates[0], {})
    core.fit(table.matrix[table.train], table.target[table.train])
    predictions = evaluate.predict(core, table.matrix[table.test])
    packed = package.pack(pipeline, table, core, predictions, folder)
    return pipeline, table, packed, Scorer(task, table.target[table.test], predictions)


def verdicts(tables: dict[str, Path], folder: Path, task: str = "regression", **options: Any) -> dict[str, Gate]:
    return {gate.name: gate for gate in gates.judge(*judged(tables, folder, task, **options), None)}


def test_without_rules_only_parity_and_latency_are_judged(tables: dict[str, Path], tmp_path: Path) -> None:
    results = verdicts(tables, tmp_path)
    assert list(results) == ["parity", "latency"]
    assert all(gate.passed for gate in results.values())


@pytest.mark.parametrize(
    ("task", "metric", "limit", "passed", "reason"),
    [
        ("regression", "rmse", 100, True, "≤ 100"),
        ("regression", "rmse", 0.1, False, "> 0.1"),
        ("regression", "r2", 0.1, True, "≥ 0.1"),
        ("regression", "r2", 0.99, False, "< 0.99"),
        ("classification", "log_loss", 0.01, False, "> 0.01"),
    ],
)
def test_thresholds(
    tables: dict[str, Path], tmp_path: Path, task: str, metric: str, limit: float, passed: bool, reason: str
) -> None:
    gate = verdicts(tables, tmp_path, task, thresholds={metric: limit})[f"threshold {metric}"]
    assert (gate.passed, reason in gate.said, gate.figures["limit"]) == (passed, True, limit)


def test_a_metric_that_the_estimator_does_not_give_fails_its_threshold(tables: dict[str, Path], tmp_path: Path) -> None:
    options = {"estimator": "sklearn.svm.LinearSVC", "thresholds": {"log_loss": 1}}
    gate = verdicts(tables, tmp_path, "classification", **options)["threshold log_loss"]
    assert (gate.passed, gate.said) == (False, "the estimator gives no log_loss")


def test_a_group_below_its_floor_fails_and_is_named(tables: dict[str, Path], tmp_path: Path) -> None:
    options = {"slices": [{"column": "group", "limit": 0.8}]}
    gate = verdicts(tables, tmp_path, "classification", **options)["slice group"]
    assert not gate.passed
    assert "of group z" in gate.said
    assert "of group x" not in gate.said
    assert set(gate.figures) == {"x", "y", "z"}
    easy = verdicts(tables, tmp_path, "classification", slices=[{"column": "group", "limit": 0.1}])["slice group"]
    assert (easy.passed, "the worst of 3 groups" in easy.said) == (True, True)
    few = verdicts(tables, tmp_path, "classification", slices=[{"column": "group", "limit": 0.9, "min_rows": 999}])
    assert (few["slice group"].passed, "no group has 999 rows" in few["slice group"].said) == (True, True)


@pytest.mark.parametrize(
    ("task", "rule", "passed"),
    [
        ("regression", {"raise": "a", "must": "not fall"}, True),
        ("regression", {"raise": "a", "must": "not rise"}, False),
        ("regression", {"raise": "b", "by": 1, "must": "not rise"}, True),
        ("regression", {"raise": "a", "must": "not change"}, False),
        ("regression", {"raise": "a", "by": 1, "must": "not change", "tolerance": 50}, True),
        ("regression", {"swap": "group", "must": "not change", "tolerance": 50}, True),
        ("regression", {"swap": "group", "must": "not change"}, False),
        ("classification", {"raise": "a", "must": "not fall", "class": "high"}, True),
        ("classification", {"raise": "a", "must": "not fall", "class": "low"}, False),
        ("classification", {"raise": "c", "by": 1e-9, "must": "not change"}, True),
        ("classification", {"swap": "group", "must": "not change", "share": 0.01}, True),
        ("regression", {"raise": "group", "must": "not fall"}, False),
        ("regression", {"swap": "a", "must": "not change"}, False),
    ],
)
def test_expectations(tables: dict[str, Path], tmp_path: Path, task: str, rule: dict[str, Any], passed: bool) -> None:
    name = f"expectation {rule.get('raise') or rule.get('swap')}"
    assert verdicts(tables, tmp_path, task, expectations=[rule])[name].passed is passed


def test_an_onnx_model_can_be_required_or_off(tables: dict[str, Path], tmp_path: Path) -> None:
    svc = "sklearn.svm.SVC"  # whose labels are not those of its largest probabilities
    required = verdicts(tables, tmp_path, "classification", estimator=svc, onnx="required")["parity"]
    assert (required.passed, "no ONNX model predicts the same" in required.said) == (False, True)
    assert verdicts(tables, tmp_path, "classification", estimator=svc)["parity"].passed
    pipeline, table, packed, scorer = judged(tables, tmp_path, onnx="off")
    assert packed.runtime == "sklearn"
    assert gates.judge(pipeline, table, packed, scorer, None)[0].passed


def test_a_slow_prediction_fails(tables: dict[str, Path], tmp_path: Path) -> None:
    assert verdicts(tables, tmp_path, latency_ms=0.00001)["latency"].passed is False


def production(
    table: TrainingTable, packed: Package, predictions: HeldOutPredictions | None, **more: Any
) -> Production:
    return Production(7, packed.contract, np.arange(len(table.test)), predictions, **more)


def rival(table: TrainingTable, estimator: BaseEstimator) -> HeldOutPredictions:
    estimator.fit(table.matrix[table.train], table.target[table.train])
    return evaluate.predict(estimator, table.matrix[table.test])


def test_a_better_or_equal_candidate_passes_and_a_worse_one_fails(tables: dict[str, Path], tmp_path: Path) -> None:
    pipeline, table, packed, scorer = judged(tables, tmp_path)
    same = HeldOutPredictions(packed.core.predict(table.matrix[table.test]))
    worse = HeldOutPredictions(same.outputs + 3)
    better = HeldOutPredictions(table.target[table.test] + 0.01)
    rounded = HeldOutPredictions(same.outputs * (1 + 1e-15))
    cases = [(same, True, "equal to"), (rounded, True, "equal to")]
    cases += [(worse, True, "better than"), (better, False, "worse than")]
    for theirs, passed, relation in cases:
        gate = gates.not_worse(pipeline, table, scorer, production(table, packed, theirs))
        assert (gate.passed, relation in gate.said, "of version 7" in gate.said) == (passed, True, True)
        assert gate.figures["low"] <= gate.figures["difference"] <= gate.figures["high"]


def test_a_margin_passes_a_candidate_that_is_slightly_worse(tables: dict[str, Path], tmp_path: Path) -> None:
    for margin, passed in ((0.0, False), (5.0, True)):
        pipeline, table, packed, scorer = judged(tables, tmp_path, margin=margin)
        target, mine = table.target[table.test], packed.core.predict(table.matrix[table.test])
        theirs = HeldOutPredictions(mine + (target - mine) / 10)
        gate = gates.not_worse(pipeline, table, scorer, production(table, packed, theirs))
        assert gate.passed is passed
        assert ("within the margin" if passed else "beyond the margin") in gate.said


def test_a_candidate_that_cannot_be_compared_fails(tables: dict[str, Path], tmp_path: Path) -> None:
    pipeline, table, packed, scorer = judged(tables, tmp_path, "classification")
    gate = gates.not_worse(pipeline, table, scorer, production(table, packed, None, why="version 7 takes d too"))
    assert (gate.passed, gate.said) == (False, "version 7 takes d too, so the two cannot be compared")
    by_loss = pipeline.model_copy(update={"metric": "log_loss"})
    labels = HeldOutPredictions(np.full(len(table.test), "high"), ("high", "low"))
    gate = gates.not_worse(by_loss, table, scorer, production(table, packed, labels))
    assert (gate.passed, "version 7 gives no log_loss" in gate.said) == (False, True)


def test_a_doubt_about_the_comparison_is_reported(tables: dict[str, Path], tmp_path: Path) -> None:
    pipeline, table, packed, scorer = judged(tables, tmp_path)
    theirs = rival(table, LinearRegression())
    gate = gates.not_worse(pipeline, table, scorer, production(table, packed, theirs, doubt="it knew some rows"))
    assert gate.said.endswith("; it knew some rows")


def test_a_candidate_must_serve_the_callers_of_production(tables: dict[str, Path], tmp_path: Path) -> None:
    pipeline, table, packed, scorer = judged(tables, tmp_path, "classification")
    theirs = rival(table, LogisticRegression()) if not np.isnan(table.matrix).any() else None
    features = packed.contract.features[1:]
    now = replace(production(table, packed, theirs), contract=packed.contract.model_copy(update={"features": features}))
    [schema] = [gate for gate in gates.judge(pipeline, table, packed, scorer, now) if gate.name == "schema"]
    assert (schema.passed, "it needs the field 'a', unlike version 7" in schema.said) == (False, True)
    lenient = config.Pipeline.model_validate(
        pipeline.model_dump(by_alias=True) | {"gates": {"allow_schema_change": True}}
    )
    [schema] = [gate for gate in gates.judge(lenient, table, packed, scorer, now) if gate.name == "schema"]
    assert schema.passed


def test_rows_that_production_cannot_take_are_not_compared(tables: dict[str, Path], tmp_path: Path) -> None:
    pipeline, table, packed, scorer = judged(tables, tmp_path)
    taken = np.arange(0, len(table.test), 3)
    theirs = HeldOutPredictions(packed.core.predict(table.matrix[table.test][taken]) + 3)
    gate = gates.not_worse(pipeline, table, scorer, Production(7, packed.contract, taken, theirs))
    assert (gate.passed, "; on 50 of 150 rows, as version 7 takes no others" in gate.said) == (True, True)
    assert gate.figures["candidate"] == scorer("rmse", taken)


def test_gates_of_one_feature_are_numbered(tables: dict[str, Path], tmp_path: Path) -> None:
    rules = [{"raise": "a", "must": "not fall"}, {"raise": "a", "must": "not rise"}]
    results = verdicts(tables, tmp_path, expectations=rules)
    assert [(name, gate.passed) for name, gate in results.items()][:2] == [
        ("expectation a 1", True),
        ("expectation a 2", False),
    ]


def test_gates_of_probabilities_fail_without_them(tables: dict[str, Path], tmp_path: Path) -> None:
    options = {
        "estimator": "sklearn.linear_model.RidgeClassifier",
        "expectations": [{"raise": "a", "must": "not fall", "class": "high"}],
        "slices": [{"column": "group", "metric": "log_loss", "limit": 1}],
    }
    results = verdicts(tables, tmp_path, "classification", **options)
    assert results["expectation a"].said == "the estimator gives no probabilities"
    assert results["slice group"].said == "the estimator gives no log_loss"
    assert [results[name].passed for name in ("expectation a", "slice group")] == [False, False]
