"""From rows to a split, or to what keeps the rows from being learnt from."""

from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine

from labstack.errors import LabError
from labstack.store import datasets
from labstack.training import config, data


def pipeline(task: str = "classification", target: str = "y", dataset: str = "table") -> config.Pipeline:
    classifies = task == "classification"
    return config.Pipeline.model_validate(
        {
            "model": "mine",
            "task": task,
            "data": {"dataset": dataset, "target": target},
            "estimator": "sklearn.linear_model.LogisticRegression" if classifies else "sklearn.linear_model.Ridge",
            "metric": "accuracy" if classifies else "rmse",
        }
    )


def test_iris_splits_by_class_and_the_same_way_each_time(engine: Engine) -> None:
    list(datasets.load_bundled(engine))
    split = data.load(engine, pipeline(dataset="iris", target="species"))
    assert (len(split.train_features), len(split.test_features)) == (112, 38)
    assert sorted(np.unique(split.test_target, return_counts=True)[1].tolist()) == [12, 13, 13]
    again = data.load(engine, pipeline(dataset="iris", target="species"))
    assert split.test_features.equals(again.test_features)


def test_numbers_can_be_labels(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("x,y\n" + "1,0\n2,1\n" * 10)
    datasets.load_csv(engine, tmp_path / "table.csv", "table")
    assert set(data.load(engine, pipeline()).test_target) == {"0", "1"}


def test_long_numbers_stay_different_labels(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("x,y\n" + "1,1234567\n2,1234568\n3,0.5\n" * 10)
    datasets.load_csv(engine, tmp_path / "table.csv", "table")
    assert set(data.load(engine, pipeline()).test_target) == {"1234567", "1234568", "0.5"}


@pytest.mark.parametrize(
    ("rows", "task", "fault"),
    [
        ("x,z\n1,2\n", "classification", "no column 'y'; it has: x, z"),
        ("x,y\nred,a\nblue,b\n", "classification", "hold text: x"),
        ("x,y\n1,a\n,b\n", "classification", "empty cells: x"),
        ("x,y\n1,a\n2,\n", "classification", "empty cells: y"),
        ("x,y\n1,a\n2,a\n", "classification", "one class only"),
        ("x,y\n1,a\n2,b\n", "classification", "too small"),
        ("x,y\n1,2\n", "regression", "too small"),
        ("x,y\n1,high\n2,low\n", "regression", "'y' holds text"),
        ("y\n1\n2\n", "regression", "no column besides"),
    ],
)
def test_rows_that_cannot_be_learnt_from_are_refused(
    engine: Engine, tmp_path: Path, rows: str, task: str, fault: str
) -> None:
    (tmp_path / "table.csv").write_text(rows)
    datasets.load_csv(engine, tmp_path / "table.csv", "table")
    with pytest.raises(LabError, match=fault):
        data.load(engine, pipeline(task))
