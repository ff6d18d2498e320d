"""A first pipeline is one that trains, and a table's description says what it holds."""

from pathlib import Path

import pytest
from sqlalchemy import Engine

from labstack.store import datasets
from labstack.training import config, data, draft
from labstack.training.table import DataError


def drafted(engine: Engine, folder: Path, text: str, target: str = "y") -> config.Pipeline:
    (folder / "mine.csv").write_text(text)
    datasets.load_csv(engine, folder / "mine.csv", "mine")
    (folder / "mine.yaml").write_text(draft.write(engine, "mine", target, None))
    pipeline = config.read(str(folder / "mine.yaml"))
    data.folds(pipeline, data.load(engine, pipeline))
    return pipeline


def test_classes_and_what_looks_like_an_id_are_seen(engine: Engine, tmp_path: Path) -> None:
    rows = "".join(f"{n},p{n},{n * 37 % 11},1,{'ab'[n % 3 % 2]}\n" for n in range(60))
    pipeline = drafted(engine, tmp_path, "row,name,x,constant,y\n" + rows)
    assert (pipeline.task, pipeline.metric, pipeline.split_by) == ("classification", "accuracy", "stratified")
    assert pipeline.data.drop == ("row", "name", "constant")


def test_numbers_are_a_regression_unless_they_are_few(engine: Engine, tmp_path: Path) -> None:
    rows = "".join(f"{n * 37 % 11},{n * n}\n" for n in range(60))
    assert drafted(engine, tmp_path, "x,y\n" + rows).task == "regression"


def test_few_numbers_are_classes(engine: Engine, tmp_path: Path) -> None:
    rows = "".join(f"{n * 37 % 11},{n % 2}\n" for n in range(60))
    assert drafted(engine, tmp_path, "x,y\n" + rows).task == "classification"


def test_a_column_that_is_not_there_is_named(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'z'; it has: x, y"):
        drafted(engine, tmp_path, "x,y\n1,2\n", "z")


def test_columns_are_described(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("a,b,c\n1,x,\n3,x,\n,y,\n")
    datasets.load_csv(engine, tmp_path / "mine.csv", "mine")
    a, b, c = draft.describe(datasets.read(engine, "mine"))
    assert a == {"column": "a", "type": "number", "missing": 1, "different": 2, "min": 1, "mean": 2, "max": 3, "std": 1}
    assert b == {"column": "b", "type": "text", "missing": 0, "different": 2, "most": {"x": 2, "y": 1}}
    assert c == {"column": "c", "type": "number", "missing": 3, "different": 0}
