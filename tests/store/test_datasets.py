"""Datasets: loaded once, typed, and refused with the position of the error."""

import csv
import io
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import make_student_exam_scores
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, select

from labstack.store import datasets
from labstack.store.database import reading
from labstack.store.datasets import Dataset
from labstack.store.rows import Column, DatasetError, Rows


def load(engine: Engine, tmp_path: Path, text: str) -> Rows:
    path = tmp_path / "table.csv"
    path.write_text(text)
    datasets.load_csv(engine, path, "table")
    return datasets.read(engine, "table")


def test_the_bundled_datasets_are_loaded_once(engine: Engine) -> None:
    expected = [("iris", 150), ("student_exam_scores", 200)]
    assert list(datasets.load_bundled(engine)) == expected
    assert list(datasets.load_bundled(engine)) == expected


def test_iris_is_the_classic_one(engine: Engine) -> None:
    list(datasets.load_bundled(engine))
    iris = datasets.read(engine, "iris")
    names = ("sepal_length", "sepal_width", "petal_length", "petal_width")
    assert iris.columns == (*(Column(name, "number") for name in names), Column("species", "text"))
    rows = list(iris.dicts())
    assert list(rows[0].values()) == [5.1, 3.5, 1.4, 0.2, "setosa"]
    assert list(rows[149].values()) == [5.9, 3.0, 5.1, 1.8, "virginica"]
    # the sums of the columns as published with the data set
    assert [round(float(column.sum()), 1) for column in iris.cells[:4]] == [876.5, 458.6, 563.7, 179.9]


def test_the_students_are_what_their_generator_makes() -> None:
    made = io.StringIO()
    make_student_exam_scores.write(made)
    bundled = (datasets.BUNDLED / "student_exam_scores.csv").read_text()
    assert made.getvalue() == bundled
    assert "Synthetic" in bundled.splitlines()[0]


def test_leading_comments_are_the_description(engine: Engine, tmp_path: Path) -> None:
    load(engine, tmp_path, "# Two lines,\n# one text.\na,b\n1,2\n")
    with reading(engine) as session:
        assert session.scalars(select(Dataset.description)).one() == "Two lines, one text."


def test_types_come_from_the_cells(engine: Engine, tmp_path: Path) -> None:
    rows = load(engine, tmp_path, 'number,text,gaps,large,quoted,ids\n1,x,,inf,"a,\nb",1_2\n2.5e3,7,4,1,c,3\n')
    assert [column.type for column in rows.columns] == ["number", "text", "number", "text", "text", "text"]
    assert [list(row.values()) for row in rows.dicts()] == [
        [1.0, "x", None, "inf", "a,\nb", "1_2"],
        [2500.0, "7", 4.0, "1", "c", "3"],
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "header line and at least one row"),
        ("a,b\n", "header line and at least one row"),
        ("# only words\n", "header line and at least one row"),
        ("a,a\n1,2\n", "a name of its own"),
        ("a,\n1,2\n", "a name of its own"),
        ("# words\na,b\n1,2\n3\n", "line 4: 1 cells under 2 columns"),
        ('a,b\n1,"2', "line 2"),
    ],
)
def test_a_file_that_is_no_table_is_refused(engine: Engine, tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(DatasetError, match=fault):
        load(engine, tmp_path, text)
    with reading(engine) as session:
        assert session.scalars(select(Dataset)).all() == []


def test_a_file_that_is_no_text_is_refused(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "image.csv").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    with pytest.raises(DatasetError, match=r"image\.csv"):
        datasets.load_csv(engine, tmp_path / "image.csv", "image")


def test_an_unknown_dataset_is_refused_with_the_names_of_those_there_are(engine: Engine) -> None:
    list(datasets.load_bundled(engine))
    with pytest.raises(DatasetError, match="there are: iris, student_exam_scores"):
        datasets.read(engine, "irish")


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "CHUNK_ROWS", 10)
    monkeypatch.setattr(datasets, "SMALL_ROWS", 4)


TABLE = "a,b\n" + "".join(f"{number / 2},{'x' * (number % 3)}\n" for number in range(35))


@pytest.mark.usefixtures("small_chunks")
def test_a_table_in_several_chunks_is_read_whole_and_in_parts(engine: Engine, tmp_path: Path) -> None:
    rows = load(engine, tmp_path, TABLE)
    assert len(rows) == datasets.summary(engine, "table").rows == 35
    assert [row["a"] for row in rows.dicts()] == [number / 2 for number in range(35)]
    for offset, limit in ((0, 5), (8, 15), (30, 99), (35, 5), (99, 1)):
        part = datasets.read(engine, "table", offset, limit)
        assert list(part.dicts()) == list(rows.dicts())[offset : offset + limit]


@pytest.mark.usefixtures("small_chunks")
def test_a_column_may_turn_out_late_to_be_of_text(engine: Engine, tmp_path: Path) -> None:
    rows = load(engine, tmp_path, "a,b\n" + "1.50,2\n" * 25 + "many,\n")
    assert [column.type for column in rows.columns] == ["text", "number"]
    assert [list(row.values()) for row in rows.dicts()] == [["1.50", 2.0]] * 25 + [["many", None]]


@pytest.mark.usefixtures("small_chunks")
def test_a_row_too_short_in_a_late_chunk_is_named(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="line 27: 1 cells under 2 columns"):
        load(engine, tmp_path, "a,b\n" + "1,2\n" * 25 + "3\n" + "1,2\n" * 5)


@pytest.mark.usefixtures("small_chunks")
def test_what_is_written_is_what_was_read(engine: Engine, tmp_path: Path) -> None:
    text = '# Of two kinds.\nnumber,words\n1,"a, ""b"""\n0.1,\n,x\n-2e+300,"two\nlines"\n' + "7,y\n" * 20
    before = load(engine, tmp_path, text)
    assert "".join(datasets.csv_lines(engine, "table")) == text.removeprefix("# Of two kinds.\n")
    with (tmp_path / "out.csv").open("w", newline="") as file:
        file.writelines(datasets.csv_lines(engine, "table"))
    datasets.load_csv(engine, tmp_path / "out.csv", "again")
    assert list(datasets.read(engine, "again").dicts()) == list(before.dicts())


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8) | st.sampled_from(
    ["#id", "# a", "a,b", 'say "x"', "two\nlines", "\ufeffx", "1", "NA", "a#b", "\rx\ry"]
)
CELLS = st.one_of(
    st.none(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(
        ["#", "# x", "007", "1_0", "NA", "nan", '"', '""', "a,b", "a\nb", "a\rb", "a\r\nb", " ", "-0", "0x1"]
    ),
    st.sampled_from(["1", "2.50", "1e300", "12345678901234567891", "+1", "1e-5", "9007199254740993"]),
)


@given(st.data())
@settings(suppress_health_check=list(HealthCheck), deadline=None)
def test_what_is_exported_is_loaded_as_it_was(engine: Engine, tmp_path: Path, drawn: st.DataObject) -> None:
    """Any rows, names and types are read back; pandas reads the same names and number of rows."""
    names = drawn.draw(st.lists(NAMES.map(str.strip).filter(bool), min_size=1, max_size=4, unique=True))
    rows = drawn.draw(st.lists(st.tuples(*[CELLS] * len(names)), min_size=1, max_size=6))
    token = uuid.uuid4().hex
    with (tmp_path / "in.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([names, *rows])
    datasets.load_csv(engine, tmp_path / "in.csv", token)
    with (tmp_path / "out.csv").open("w", newline="", encoding="utf-8") as file:
        file.writelines(datasets.csv_lines(engine, token))
    datasets.load_csv(engine, tmp_path / "out.csv", f"{token} again")
    before, after = datasets.read(engine, token), datasets.read(engine, f"{token} again")
    assert [column.name for column in before.columns] == names
    assert after.columns == before.columns
    assert list(after.dicts()) == list(before.dicts())
    if not any("\0" in text for row in [names, *rows] for text in row if text):  # which ends a text of pandas' parser
        frame = pd.read_csv(tmp_path / "out.csv", dtype=str, keep_default_na=False)
        assert list(frame) == names
        assert len(frame) == len(before)


def test_an_export_begins_with_the_header(engine: Engine, tmp_path: Path) -> None:
    load(engine, tmp_path, '# Described.\n"#id",b\n1,x\n,#y\n')
    assert "".join(datasets.csv_lines(engine, "table")) == '"#id","b"\n1,x\n,#y\n'
    assert datasets.summary(engine, "table").description == "Described."


@pytest.mark.usefixtures("small_chunks")
def test_rows_are_appended_behind_those_there_are(engine: Engine, tmp_path: Path) -> None:
    rows = list(load(engine, tmp_path, TABLE).dicts())
    for number in range(15):
        more: list[dict[str, float | str | None]] = [{"a": number, "b": None}, {"b": "new", "a": None}]
        assert datasets.append(engine, "table", more) == 37 + 2 * number
        rows += [{"a": float(number), "b": None}, {"a": None, "b": "new"}]
    assert list(datasets.read(engine, "table").dicts()) == rows
    with reading(engine) as session:
        assert max(session.scalars(select(datasets.Chunk.rows))) == 10
        assert len(session.scalars(select(datasets.Chunk)).all()) < 14  # small ones grow


def test_a_file_is_appended_by_the_names_of_its_columns(engine: Engine, tmp_path: Path) -> None:
    load(engine, tmp_path, "a,b,c\n1,x,\n")
    (tmp_path / "more.csv").write_text("c,b,a\n4,,3\n")
    assert datasets.load_csv(engine, tmp_path / "more.csv", "table", append=True) == 1
    assert list(datasets.read(engine, "table").dicts()) == [
        {"a": 1.0, "b": "x", "c": None},
        {"a": 3.0, "b": None, "c": 4.0},
    ]
    for text, fault in (
        ("a,b\n1,x\n", "needs a column 'c' of numbers"),
        ("a,b,c\nmany,x,1\n", "needs a column 'a' of numbers"),
        ("a,b,c,d\n1,x,1,1\n", "has no column d"),
    ):
        (tmp_path / "more.csv").write_text(text)
        with pytest.raises(DatasetError, match=fault):
            datasets.load_csv(engine, tmp_path / "more.csv", "table", append=True)
    with pytest.raises(DatasetError, match="already"):
        datasets.load_csv(engine, tmp_path / "more.csv", "table")
    assert datasets.summary(engine, "table").rows == 2


def test_what_numbers_would_not_give_back_is_text(engine: Engine, tmp_path: Path) -> None:
    text = "zip,account,large,plain\n00501,12345678901234567891,1e300,0.5\n10001,2,1,0\n"
    rows = load(engine, tmp_path, text)
    assert [column.type for column in rows.columns] == ["text", "text", "number", "number"]
    assert "".join(datasets.csv_lines(engine, "table")).splitlines()[1] == "00501,12345678901234567891,1e+300,0.5"


def test_text_that_looks_like_numbers_is_appended_as_text(engine: Engine, tmp_path: Path) -> None:
    load(engine, tmp_path, "code,a\nx1,1\n")
    (tmp_path / "more.csv").write_text("code,a\n17,2\n")
    datasets.load_csv(engine, tmp_path / "more.csv", "table", append=True)
    datasets.append(engine, "table", [{"code": "", "a": 3}, {"code": "two\r\nlines", "a": 4}])
    assert [row["code"] for row in datasets.read(engine, "table").dicts()] == ["x1", "17", None, "two\nlines"]
    for text in ("x" * 131_073, "\ud800"):
        with pytest.raises(datasets.RowsError, match="is no text of at most 131,072 characters"):
            datasets.append(engine, "table", [{"code": text, "a": 5}])
    with pytest.raises(datasets.RowsError, match="kept exactly"):
        datasets.append(engine, "table", [{"code": "x", "a": 2**53 + 1}])


def test_all_faults_of_rows_are_named_and_none_is_appended(engine: Engine, tmp_path: Path) -> None:
    load(engine, tmp_path, "a,b\n1,x\n")
    records: list[dict[str, object]] = [
        {"a": 1, "b": "y"},
        {"a": "1", "b": 2},
        {"a": True},
        {"a": float("nan"), "b": None, **dict.fromkeys("zyxwv", 1)},
    ]
    with pytest.raises(datasets.RowsError) as raised:
        datasets.append(engine, "table", records)
    assert [field for field, _ in raised.value.faults] == [
        "[1].a",
        "[1].b",
        "[2].a",
        "[2].b",
        "[3].a",
        *(f"[3].{name}" for name in "zyxwv"),
    ]
    assert len(datasets.read(engine, "table")) == 1


def test_unknown_columns_are_named_in_their_order(engine: Engine, tmp_path: Path) -> None:
    load(engine, tmp_path, "a,b\n1,x\n")
    names = [f"column_{number}" for number in range(20)]
    with pytest.raises(datasets.RowsError) as raised:
        datasets.append(engine, "table", [{"a": 1, "b": "y"} | dict.fromkeys(names, 1)])
    assert [place for place, _ in raised.value.faults] == [f"[0].{name}" for name in names]
    (tmp_path / "more.csv").write_text(f"{','.join(['a', 'b', *names])}\n1,x{',1' * 20}\n")
    with pytest.raises(DatasetError, match=f"has no column {', '.join(names)}\\."):
        datasets.load_csv(engine, tmp_path / "more.csv", "table", append=True)


def test_writers_that_append_at_once_lose_nothing(engine: Engine, tmp_path: Path) -> None:
    load(engine, tmp_path, "a,b\n1,x\n")

    def write(number: int) -> None:
        for _ in range(20):
            datasets.append(engine, "table", [{"a": number, "b": None}])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    numbers = datasets.read(engine, "table").cells[0][1:]
    assert sorted(numbers.tolist()) == sorted([0.0, 1.0, 2.0, 3.0] * 20)
