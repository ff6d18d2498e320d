"""Rows of each source become a checked and split table, or a DataError that says why they cannot."""

import os
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import Engine

from labstack.errors import LabError
from labstack.store import datasets
from labstack.training import checks, config, data
from labstack.training.table import FeatureColumn, TrainingTable


def pipeline(task: str = "classification", target: str = "y", **changes: Any) -> config.Pipeline:
    classifies = task == "classification"
    source = changes.pop("data", {"dataset": "table"})
    return config.Pipeline.model_validate(
        {
            "model": "mine",
            "task": task,
            "data": source | {"target": target},
            "candidates": [
                {"estimator": "sklearn.linear_model.LogisticRegression" if classifies else "sklearn.linear_model.Ridge"}
            ],
            "metric": "accuracy" if classifies else "rmse",
        }
        | changes
    )


def load(engine: Engine, tmp_path: Path, text: str, task: str = "classification", **changes: Any) -> TrainingTable:
    (tmp_path / "table.csv").write_text(text)
    datasets.load_csv(engine, tmp_path / "table.csv", "table")
    return data.load(engine, pipeline(task, **changes))


def rows(count: int, template: str) -> str:
    """Lines of a table: `{n}` is the row's number, `{c}` one of two classes, `{r}` one of eleven numbers."""
    return "".join(template.format(n=n, c="ab"[n * 7 % 3 % 2], r=n * 37 % 11) + "\n" for n in range(count))


def test_iris_is_stratified_the_same_way_each_time(engine: Engine) -> None:
    list(datasets.load_bundled(engine))
    iris = pipeline(target="species", data={"dataset": "iris"})
    table = data.load(engine, iris)
    assert (len(table.train), len(table.test)) == (112, 38)
    assert sorted(np.unique(table.target[table.test], return_counts=True)[1].tolist()) == [12, 13, 13]
    again = data.load(engine, iris)
    assert np.array_equal(table.test, again.test)
    assert table.digest == again.digest
    assert table.warnings == ()


def test_numbers_can_be_labels(engine: Engine, tmp_path: Path) -> None:
    table = load(engine, tmp_path, "x,y\n" + "1,0\n2,1\n3,0\n" * 10)
    assert set(table.target) == {"0", "1"}


def test_long_numbers_stay_different_labels(engine: Engine, tmp_path: Path) -> None:
    table = load(engine, tmp_path, "x,y\n" + "1,1234567\n2,1234568\n3,0.5\n" * 10)
    assert set(table.target) == {"1234567", "1234568", "0.5"}


def test_text_is_a_category_and_comes_after_numbers(engine: Engine, tmp_path: Path) -> None:
    text = "colour,size,y\n" + "red,1,a\nblue,,b\n,3,a\ngreen,4,b\n" * 5
    table = load(engine, tmp_path, text)
    assert table.columns == (FeatureColumn("size", (), True), FeatureColumn("colour", ("blue", "green", "red"), True))
    assert table.matrix[:4, 1].tolist() == pytest.approx([2, 0, np.nan, 1], nan_ok=True)
    assert list(table.frame) == ["size", "colour"]


def test_rows_without_features_or_target_are_dropped(engine: Engine, tmp_path: Path) -> None:
    table = load(engine, tmp_path, "x,z,y\n,,a\n1,2,\n" + rows(20, "{r},{n},{c}"))
    assert len(table.target) == 20
    assert table.warnings[:2] == ("1 rows have no feature, and are dropped", "1 rows have no target, and are dropped")


def test_a_pipeline_selects_columns_and_rows(engine: Engine, tmp_path: Path) -> None:
    text = "id,x,z,y\n" + rows(40, "{n},{r},{n},{c}")
    source = {"dataset": "table", "drop": ["id"], "filter": "z >= 10 and x != 3"}
    table = load(engine, tmp_path, text, data=source)
    assert list(table.frame) == ["x", "z"]
    assert table.frame["z"].min() == 10
    assert (table.frame["x"] != 3).all()
    assert list(table.others) == ["id"]
    only = data.load(engine, pipeline(data={"dataset": "table", "features": ["x"]}))
    assert list(only.frame) == ["x"]


def test_the_latest_rows_are_held_out(engine: Engine, tmp_path: Path) -> None:
    text = "day,x,y\n" + "".join(f"{100 - n},{n * 37 % 11},{n}\n" for n in range(100))
    table = load(engine, tmp_path, text, "regression", split={"by": "time", "column": "day"})
    days = table.others["day"]
    assert days.iloc[table.train].max() < days.iloc[table.test].min()
    assert "day" not in table.frame
    for fit, score in data.folds(pipeline("regression", split={"by": "time", "column": "day"}), table):
        assert fit.max() < score.min()


def test_groups_are_held_out_whole(engine: Engine, tmp_path: Path) -> None:
    split = {"by": "group", "column": "who"}
    table = load(engine, tmp_path, "who,x,y\n" + rows(100, "p{r},{n},{c}"), split=split)
    who = table.others["who"]
    assert not set(who.iloc[table.train]) & set(who.iloc[table.test])
    train = who.iloc[table.train].to_numpy()
    for fit, score in data.folds(pipeline(split=split), table):
        assert not set(train[fit]) & set(train[score])


FRAME = pd.DataFrame(
    {
        "whole": pd.array([1, None, 3, 4] * 6, "Int64"),
        "yes": [True, False] * 12,
        "colour": pd.Categorical(["red", "blue", None, "red"] * 6),
        "x": np.arange(24.0) ** 2,
        "y": ["a", "b", "b"] * 8,
    }
)


def check(table: TrainingTable) -> None:
    assert [column.name for column in table.columns] == ["whole", "yes", "x", "colour"]
    assert table.columns[0].missing
    assert table.columns[3] == FeatureColumn("colour", ("blue", "red"), True)
    assert table.frame["yes"].tolist()[:2] == [1.0, 0.0]


def test_rows_come_from_parquet(engine: Engine, tmp_path: Path) -> None:
    FRAME.to_parquet(tmp_path / "t.parquet")
    check(data.load(engine, pipeline(data={"parquet": str(tmp_path / "t.parquet")})))


def test_rows_come_from_a_query(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sqlite3.connect(tmp_path / "t.db") as connection:
        FRAME.astype({"whole": float, "colour": object}).to_sql("t", connection, index=False)
    connection.close()
    monkeypatch.setenv("WHERE", str(tmp_path))
    source = {"sql": {"url": "sqlite:///$WHERE/t.db", "query": "SELECT * FROM t WHERE x >= 0"}}
    check(data.load(engine, pipeline(data=source)))


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM t",
        "DROP TABLE t",
        "CREATE TABLE u (a)",
        "INSERT INTO t (x) VALUES (1) RETURNING x",
        "WITH s AS (SELECT 1) UPDATE t SET x = 0 RETURNING x",
        "ATTACH '{folder}/other.db' AS other",
        "VACUUM INTO '{folder}/copy.db'",
        "PRAGMA journal_mode = OFF",
        "SELECT load_extension('{folder}/t.so') AS x, 1 AS y",
        "BEGIN IMMEDIATE",
        "SELECT 1 AS x, 2 AS y; DROP TABLE t",
    ],
)
def test_a_query_changes_nothing(engine: Engine, tmp_path: Path, query: str) -> None:
    with sqlite3.connect(tmp_path / "t.db") as connection:
        FRAME.astype({"whole": float, "colour": object}).to_sql("t", connection, index=False)
    connection.close()
    before = {path: path.read_bytes() for path in tmp_path.glob("*.db")}
    source = {"sql": {"url": f"sqlite:///{tmp_path}/t.db", "query": query.format(folder=tmp_path)}}
    with pytest.raises(LabError, match="An SQL query cannot be read: "):
        data.load(engine, pipeline(data=source))
    assert {path: path.read_bytes() for path in tmp_path.glob("*.db")} == before


def test_a_query_reads_a_database_during_writes(engine: Engine, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "t.db", isolation_level=None) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        FRAME.astype({"whole": float, "colour": object}).to_sql("t", connection, index=False)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM t")
        source = pipeline(data={"sql": {"url": f"sqlite:///{tmp_path}/t.db", "query": "SELECT * FROM t"}})
        check(data.load(engine, source))
        connection.execute("ROLLBACK")
    connection.close()
    check(data.load(engine, source))


def test_a_missing_database_is_reported_and_not_created(engine: Engine, tmp_path: Path) -> None:
    for name in ("none.db", "."):
        source = {"sql": {"url": f"sqlite:///{tmp_path}/{name}", "query": "SELECT 1 AS x, 2 AS y"}}
        with pytest.raises(LabError, match=r"data\.sql\.url: there is no file "):
            data.load(engine, pipeline(data=source))
    assert not (tmp_path / "none.db").exists()


def test_the_labs_own_databases_are_no_source(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {
        name: f"sqlite:///{tmp_path}/{name.lower()}.db" for name in ("MLFLOW_BACKEND_STORE_URI", "SEARCH_DATABASE_URL")
    }
    for name, url in own.items():
        monkeypatch.setenv(name, url)
        Path(url.removeprefix("sqlite:///")).touch()
    (tmp_path / "link.db").symlink_to(str(engine.url.database))
    os.link(str(engine.url.database), tmp_path / "hard.db")
    urls = [*own.items(), ("LAB_DATABASE_URL", f"sqlite:///{engine.url.database}")]
    urls += [("LAB_DATABASE_URL", f"sqlite:///{tmp_path}/{name}.db") for name in ("link", "hard", "sub/../hard")]
    (tmp_path / "sub").mkdir()
    monkeypatch.setenv("OWN", str(engine.url.database))
    urls.append(("LAB_DATABASE_URL", "sqlite+pysqlite:///$OWN"))
    for name, url in urls:
        with pytest.raises(LabError, match=rf"the lab's own database \({name}\).*data\.dataset"):
            data.load(engine, pipeline(data={"sql": {"url": url, "query": "SELECT 1 AS x, 2 AS y"}}))
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "postgresql://a:hush@localhost/mlruns")
    for url in ("postgresql+psycopg://b@127.0.0.1:5432/mlruns", "postgresql+psycopg:///mlruns?host=/run/postgresql"):
        with pytest.raises(LabError, match=r"own database \(MLFLOW_BACKEND_STORE_URI\)") as raised:
            data.load(engine, pipeline(data={"sql": {"url": url, "query": "SELECT 1 AS x, 2 AS y"}}))
        assert "hush" not in str(raised.value)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_pipes_and_devices_are_no_source(engine: Engine, tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(LabError, match=f"{path} is n"):
            data.load(engine, pipeline(data={kind: str(path)}))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ({"parquet": "none.parquet"}, r"none\.parquet cannot be read"),
        ({"csv": "none.csv"}, r"none\.csv: cannot be read"),
        (
            {"sql": {"url": "sqlite://", "query": "SELECT * FROM none"}},
            "An SQL query cannot be read: no such table: none",
        ),
        ({"sql": {"url": "nonsense", "query": ""}}, "data.sql.url: this is no URL"),
        ({"sql": {"url": "sqlite://", "query": "SELECT 1 AS x, 2 AS x, 3 AS y"}}, "names must be unique.*: x"),
        ({"sql": {"url": "sqlite://", "query": "SELECT 1 AS x, 2 AS y WHERE 1 = 0"}}, "no rows to train on"),
    ],
)
def test_a_source_that_cannot_be_read_is_reported(engine: Engine, source: dict[str, Any], reason: str) -> None:
    with pytest.raises(LabError, match=reason):
        data.load(engine, pipeline(data=source))


@pytest.mark.parametrize(
    ("text", "task", "reason"),
    [
        ("x,z\n1,2\n", "classification", "no column 'y'; it has: x, z"),
        ("x,y\n1,a\n2,a\n", "classification", "only one class"),
        ("x,y\n1,a\n2,b\n", "classification", "too small"),
        ("x,y\n1,2\n3,4\n", "regression", "too small"),
        ("x,y\n1,2\n3,2\n", "regression", "'y' is the same in every row"),
        ("x,y\n1,high\n2,low\n", "regression", "'y' holds text"),
        ("y\n1\n2\n", "regression", "no column besides"),
        ("x,y\n,a\n,b\n", "classification", "no rows to train on"),
        ("x,y\n" + rows(40, "1,{c}"), "classification", "no feature that carries information: 'x' is 1 in every row"),
        ("name,x,y\n" + rows(40, "p{n},{r},{c}"), "classification", "'name' is a different text in nearly every row"),
        (
            "x,y\n" + rows(40, "{r},{c}") + "n/a,a\n",
            "classification",
            "except for 1 cells such as 'n/a'",
        ),
        ("x,y\n" + rows(40, "{r},p{n}"), "classification", "40 classes in 40 rows"),
        (
            "x,z,y\n" + rows(1100, "{r},c{n},{c}") * 2,
            "classification",
            "'z' has 1,100 categories, more than",
        ),
    ],
)
def test_rows_that_cannot_be_used_for_training_are_rejected(
    engine: Engine, tmp_path: Path, text: str, task: str, reason: str
) -> None:
    with pytest.raises(LabError, match=reason):
        load(engine, tmp_path, text, task)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data": {"dataset": "gone"}}, "there are: table"),
        ({"data": {"dataset": "table", "features": ["z", "q"]}}, "data.features: .* no column 'q'; it has: x, z, y"),
        ({"data": {"dataset": "table", "drop": ["q"]}}, "data.drop: .* no column 'q'"),
        ({"data": {"dataset": "table", "filter": "q > 1"}}, "data.filter: character 1, 'q': there is no such column"),
        ({"data": {"dataset": "table", "filter": "x == 'a'"}}, "data.filter: .*'x': this is a number and 'a' is text"),
        ({"data": {"dataset": "table", "filter": "x > 1e9"}}, "no rows to train on"),
        ({"split": {"by": "time", "column": "when"}}, "split.column: .* no column 'when'"),
        ({"gates": {"slices": [{"column": "q", "limit": 1}]}}, "gates.slices: .* no column 'q'"),
        ({"gates": {"expectations": [{"raise": "q", "must": "not change"}]}}, "gates.expectations: 'q' is no feature"),
    ],
)
def test_columns_named_in_the_pipeline_must_exist(
    engine: Engine, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(LabError, match=reason):
        load(engine, tmp_path, "x,z,y\n" + rows(40, "{r},{n},{c}"), **changes)


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("x,z,y\n" + rows(40, "{r},7,{c}"), "'z' is 7 in every row, carries no information, and is dropped"),
        ("x,z,y\n" + rows(40, "{r},,{c}"), "'z' has no values, carries no information, and is dropped"),
        ("x,z,y\n" + rows(40, "{r},{n},{c}"), "'z' counts the rows and looks like an id; data.drop drops it"),
        ("x,z,y\n" + rows(40, "{r},{r},{c}"), "'z' equals 'x' in every row"),
        ("x,z,y\n" + rows(40, "{r},is {c},{c}"), "'z' alone predicts the target"),
        (
            "x,z,y\n" + "1,k,a\n2,l,b\n3,k,a\n" * 13 + "4,rare,b\n",
            "'z' has categories that only held-out rows have: rare",
        ),
    ],
)
def test_warnings_do_not_stop_a_load(engine: Engine, tmp_path: Path, text: str, warning: str) -> None:
    (tmp_path / "table.csv").write_text(text)
    datasets.load_csv(engine, tmp_path / "table.csv", "table")
    tables = [data.load(engine, pipeline(split={"seed": seed})) for seed in range(20)]
    assert any(warning in text for table in tables for text in table.warnings), tables[0].warnings


def test_a_leak_into_a_regression_is_a_warning(engine: Engine, tmp_path: Path) -> None:
    text = "x,leak,y\n" + "".join(f"{n * 37 % 11},{3 * n * n + 1},{n * n}\n" for n in range(60))
    assert any(
        "'leak' alone predicts the target" in warning for warning in load(engine, tmp_path, text, "regression").warnings
    )


def test_a_class_smaller_than_its_folds_is_rejected(engine: Engine, tmp_path: Path) -> None:
    table = load(engine, tmp_path, "x,y\n" + rows(40, "{r},{c}") + "1,rare\n2,rare\n3,rare\n")
    with pytest.raises(LabError, match="A class has 2 training rows, too few"):
        data.folds(pipeline(), table)


def test_rows_of_a_table_with_an_index_stay_together(engine: Engine, tmp_path: Path) -> None:
    frame = pd.DataFrame({"n": np.arange(60.0), "t": [f"t{n % 7}" for n in range(60)], "y": np.arange(60.0) ** 2})
    frame.sample(frac=1, random_state=0).to_parquet(tmp_path / "t.parquet")
    table = data.load(engine, pipeline("regression", data={"parquet": str(tmp_path / "t.parquet")}))
    assert len(table.frame) == 60
    assert [f"t{int(n) % 7}" for n in table.frame["n"]] == table.frame["t"].tolist()
    np.testing.assert_array_equal(table.frame["n"] ** 2, table.target)


def test_integers_that_floats_would_merge_are_names(engine: Engine, tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": np.arange(40) * 37 % 11, "y": [2**53, 2**53 + 1] * 20})
    frame.to_parquet(tmp_path / "t.parquet")
    table = data.load(engine, pipeline(data={"parquet": str(tmp_path / "t.parquet")}))
    assert set(table.target) == {str(2**53), str(2**53 + 1)}


def test_text_dates_order_rows_and_other_text_is_rejected(engine: Engine, tmp_path: Path) -> None:
    dates = pd.date_range("2025-12-01", periods=60)
    split = {"by": "time", "column": "day"}
    text = "day,x,y\n" + "".join(f"{day:%Y-%m-%d},{n * 37 % 11},{n}\n" for n, day in enumerate(dates[::-1]))
    table = load(engine, tmp_path, text, "regression", split=split)
    assert table.target[table.test].max() < table.target[table.train].min()
    (tmp_path / "us.csv").write_text(text.replace("2025-12-0", "12/0"))
    with pytest.raises(LabError, match=r"split.column: 'day' holds '12/0.', no date"):
        data.load(engine, pipeline("regression", data={"csv": str(tmp_path / "us.csv")}, split=split))


def test_a_password_comes_from_the_environment_and_is_never_shown(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBPW", "p@TOP:SEC/RET")
    source = {"sql": {"url": "sqlite://me:$DBPW@localhost:x/y", "query": "SELECT 1"}}
    with pytest.raises(LabError) as raised:
        data.load(engine, pipeline(data=source))
    assert "SEC" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gates": {"slices": [{"column": "y", "limit": 1}]}}, "neither split the rows nor slice them"),
        (
            {"gates": {"expectations": [{"raise": "x", "must": "not fall", "class": "B"}]}},
            "the target has no class 'B'; it has: a, b",
        ),
        (
            {"gates": {"expectations": [{"raise": "k", "must": "not change"}]}},
            "'k' carries no information, and is no feature",
        ),
    ],
)
def test_gates_must_fit_the_columns(engine: Engine, tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(LabError, match=reason):
        load(engine, tmp_path, "x,k,y\n" + rows(40, "{r},7,{c}"), **changes)


def test_rare_classes_and_noise_are_no_leak(engine: Engine, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    target = np.where(np.arange(6000) % 1000 < 5, "rare", "common")
    text = "".join(f"{value:.4f},{label}\n" for value, label in zip(random.normal(size=6000), target, strict=True))
    assert load(engine, tmp_path, "x,y\n" + text).warnings == ()


def test_categories_that_predict_the_target_are_a_leak(engine: Engine, tmp_path: Path) -> None:
    text = "code,x,y\n" + "".join(f"k{n % 6},{n * 37 % 11},{'ab'[n % 6 in (0, 2, 5)]}\n" for n in range(120))
    assert any("'code' alone predicts the target" in warning for warning in load(engine, tmp_path, text).warnings)


def test_numbers_that_no_prediction_takes_are_rejected(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="'x' holds numbers above 1e"):
        load(engine, tmp_path, "x,y\n1e39,a\n" + rows(40, "{r},{c}"))


def test_categories_too_many_for_memory_are_rejected(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "ENCODED_BYTES", 1000)
    text = "k,y\n" + rows(40, "k{r},{c}")
    with pytest.raises(LabError, match="11 categories in 40 rows are too many to be one-hot encoded"):
        load(engine, tmp_path, text)
    assert data.load(engine, pipeline(preprocessing={"encode": "ordinal"}))
