"""The folder of a version holds an estimator, a contract with references, and parts that agree with each other."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from labstack.model import predictor, skops_file
from labstack.model.contract import Contract, Plan
from labstack.training import data, package
from labstack.training.config import Pipeline
from labstack.training.estimator import make_core
from labstack.training.evaluate import predict
from labstack.training.package import Package
from labstack.training.table import TrainingTable


def frame() -> pd.DataFrame:
    random = np.random.default_rng(0)
    made = pd.DataFrame(
        {
            "colour": random.choice(["red", "green", "blue"], 400),
            "size": random.normal(10, 2, 400).round(2),
            "maker": np.array(["A", "B", None], object)[random.integers(0, 3, 400)],
            "age": np.where(random.random(400) < 0.2, np.nan, random.integers(1, 50, 400)),
        }
    )
    shift = made["colour"].map({"red": 3.0, "green": 0.0, "blue": -3.0}) + made["age"].fillna(20) / 10
    shift += made["size"] - 10
    made["y"] = np.where(shift + random.normal(size=400) > 2, "yes", "no")
    return made


def packed(folder: Path, estimator: str, **preprocessing: str) -> tuple[TrainingTable, Package]:
    frame().to_csv(folder / "table.csv", index=False)
    pipeline = Pipeline.model_validate(
        {
            "model": "mine",
            "task": "classification",
            "data": {"csv": folder / "table.csv", "target": "y"},
            "preprocessing": preprocessing,
            "candidates": [{"estimator": estimator}],
            "metric": "accuracy",
        }
    )
    table = data.load(None, pipeline)  # type: ignore[arg-type]  # no dataset of a store is read
    core = make_core(pipeline, table.columns, pipeline.candidates[0], {})
    core.fit(table.matrix[table.train], table.target[table.train])
    return table, package.pack(pipeline, table, core, predict(core, table.matrix[table.test]), folder)


@pytest.mark.parametrize(
    ("estimator", "runtime", "preprocessing"),
    [
        ("sklearn.linear_model.LogisticRegression", "onnx", {}),
        ("sklearn.linear_model.LogisticRegression", "onnx", {"impute": "mean", "scale": "robust"}),
        ("sklearn.linear_model.LogisticRegression", "onnx", {"scale": "none"}),
        ("sklearn.ensemble.RandomForestClassifier", "onnx", {"scale": "none", "encode": "ordinal"}),
        ("sklearn.ensemble.RandomForestClassifier", "onnx", {"encode": "ordinal", "scale": "minmax"}),
        ("sklearn.ensemble.HistGradientBoostingClassifier", "sklearn", {"impute": "none"}),
    ],
)
def test_all_that_is_served_predicts_as_the_estimator_did(
    tmp_path: Path, estimator: str, runtime: str, preprocessing: dict[str, str]
) -> None:
    table, made = packed(tmp_path, estimator, **preprocessing)
    assert made.runtime == runtime
    contract = Contract.read(tmp_path)
    served = predictor.load(tmp_path, contract, predictor.Limits(10, 1 << 30))  # as the API does
    assert served.runtime == runtime
    rows = [
        {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in row.items()}
        for row in table.frame.iloc[table.test].to_dict("records")
    ]
    matrix, _ = Plan(contract).parse(rows, "rows")
    predictions = served.predict(matrix)
    assert predictions.probabilities is not None
    loaded = skops_file.load(tmp_path, 1 << 30)  # takes a frame, as for users of MLflow
    assert predictions.outputs == loaded.predict(table.frame.iloc[table.test]).tolist()
    np.testing.assert_allclose(predictions.probabilities, loaded.predict_proba(table.frame.iloc[table.test]), atol=1e-5)


def test_the_contract_says_what_the_rows_were_like(tmp_path: Path) -> None:
    table, made = packed(tmp_path, "sklearn.linear_model.LogisticRegression")
    size, age, colour, maker = made.contract.features
    train = table.frame.iloc[table.train]
    assert (size.name, size.missing, size.minimum) == ("size", False, train["size"].min())
    assert (age.name, age.missing) == ("age", True)
    assert (colour.categories, colour.missing) == (("blue", "green", "red"), False)
    assert (maker.categories, maker.missing) == (("A", "B"), True)
    assert age.reference is not None
    assert age.reference.missing == train["age"].isna().sum()
    assert colour.reference is not None
    assert colour.reference.counts == tuple((train["colour"] == name).sum() for name in colour.categories)
    assert made.contract.reference is not None
    assert sum(made.contract.reference.counts) == len(table.test)
    assert made.contract.sample.input == json.loads((tmp_path / "contract.json").read_text())["sample"]["input"]


def test_bins_hold_about_as_many_rows_each_and_all_of_them() -> None:
    values = np.append(np.random.default_rng(0).lognormal(size=1000), [np.nan] * 7)
    reference = package.reference_of_numbers(values)
    assert (len(reference.counts), len(reference.edges), reference.missing) == (20, 19, 7)
    assert sum(reference.counts) == 1000
    assert set(reference.counts) == {50}
    assert reference.mean == pytest.approx(np.nanmean(values))
    assert reference.std == pytest.approx(np.nanstd(values))


@pytest.mark.parametrize(
    ("values", "edges", "counts"),
    [([1.0, 1.0, 1.0], (1.0,), (3, 0)), ([0.0, 0.0, 1.0, 1.0], None, None), ([np.nan, np.nan], (), (0,))],
)
def test_values_that_repeat_make_fewer_bins(
    values: list[float], edges: tuple[float, ...] | None, counts: tuple[int, ...] | None
) -> None:
    reference = package.reference_of_numbers(np.array(values))
    assert sum(reference.counts) + reference.missing == len(values)
    assert len(reference.counts) == len(reference.edges) + 1
    assert list(reference.edges) == sorted(set(reference.edges))
    if edges is not None:
        assert (reference.edges, reference.counts) == (edges, counts)


def test_an_unseen_category_is_for_mlflows_users_a_missing_one(tmp_path: Path) -> None:
    table, made = packed(tmp_path, "sklearn.linear_model.LogisticRegression")
    rows = table.frame.head(3)
    strange = rows.assign(maker="Z")
    missing = rows.assign(maker=None)
    np.testing.assert_array_equal(made.whole.predict_proba(strange), made.whole.predict_proba(missing))
