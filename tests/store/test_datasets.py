"""Datasets: loaded once, typed, and refused with the place of the fault."""

import io
from pathlib import Path

import make_student_exam_scores
import pytest
from sqlalchemy import Engine, select

from labstack.store import datasets
from labstack.store.database import reading
from labstack.store.datasets import Column, Dataset, DatasetError


def load(engine: Engine, tmp_path: Path, text: str) -> datasets.Rows:
    path = tmp_path / "table.csv"
    path.write_text(text)
    datasets.load_csv(engine, path, "table")
    return datasets.read(engine, "table")


def test_the_bundled_datasets_are_loaded_once(engine: Engine) -> None:
    expected = [("iris", 150), ("student_exam_scores", 200)]
    assert list(datasets.load_bundled(engine)) == [(name, rows, True) for name, rows in expected]
    assert list(datasets.load_bundled(engine)) == [(name, rows, False) for name, rows in expected]


def test_iris_is_the_classic_one(engine: Engine) -> None:
    list(datasets.load_bundled(engine))
    iris = datasets.read(engine, "iris")
    names = ("sepal_length", "sepal_width", "petal_length", "petal_width")
    assert iris.columns == (*(Column(name, "number") for name in names), Column("species", "text"))
    assert iris.cells[0] == [5.1, 3.5, 1.4, 0.2, "setosa"]
    assert iris.cells[149] == [5.9, 3.0, 5.1, 1.8, "virginica"]
    # the sums of the columns as published with the data set
    assert [round(sum(float(row[i] or 0) for row in iris.cells), 1) for i in range(4)] == [876.5, 458.6, 563.7, 179.9]


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
    assert rows.cells == [[1.0, "x", None, "inf", "a,\nb", "1_2"], [2500.0, "7", 4.0, "1", "c", "3"]]


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
