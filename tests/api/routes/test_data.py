"""The datasets over HTTP: pages, CSV, and rows appended by operators."""

import io
from typing import Any

import pandas as pd
import pytest

from labstack.store import datasets
from tests.conftest import Lab

ROW = {"a": 1.5, "b": "x"}


@pytest.fixture
def client(app: Any, lab: Lab, tmp_path: Any) -> Any:
    (tmp_path / "t.csv").write_text("# A table.\na,b\n" + "".join(f"{number},\n" for number in range(249)) + ",x\n")
    service = app.extensions["labstack"]
    if "t" not in [known.name for known in datasets.summaries(service.engine)]:
        datasets.load_csv(service.engine, tmp_path / "t.csv", "t")
    return app.test_client()


def test_datasets_are_listed(client: Any) -> None:
    listed = {dataset["dataset"]: dataset for dataset in client.get("/data").json["datasets"]}
    assert listed["t"]["columns"] == [{"name": "a", "type": "number"}, {"name": "b", "type": "text"}]
    assert (listed["t"]["description"], listed["t"]["rows"] >= 250) == ("A table.", True)


def test_rows_come_in_pages(client: Any) -> None:
    first = client.get("/data/t").json
    assert (len(first["data"]), first["data"][3]) == (100, {"a": 3.0, "b": None})
    assert client.get("/data/t?offset=249&limit=1").json["data"] == [{"a": None, "b": "x"}]
    assert client.get("/data/t?offset=99999").json["data"] == []


def test_rows_come_as_csv(client: Any) -> None:
    answer = client.get("/data/t", headers={"Accept": "text/csv"})
    assert answer.text.startswith("a,b\n0,\n1,\n")
    assert list(pd.read_csv(io.StringIO(answer.text))) == ["a", "b"]
    assert answer.text == client.get("/data/t?format=csv").text
    assert answer.content_type == "text/csv; charset=utf-8"


def test_rows_are_appended(client: Any) -> None:
    before = client.get("/data/t").json["rows"]
    answer = client.post("/data/t", json=[ROW, {"a": None, "b": None}])
    assert answer.json == {"dataset": "t", "appended": 2, "rows": before + 2}
    assert client.post("/data/t", json=ROW).json["rows"] == before + 3
    last = client.get(f"/data/t?offset={before}").json["data"]
    assert last == [ROW, {"a": None, "b": None}, ROW]


@pytest.mark.parametrize(
    ("path", "sent", "status", "message"),
    [
        ("/data/none", ROW, 404, "There is no dataset 'none' in the database; there are: "),
        ("/data/t", [], 422, "a list of rows"),
        ("/data/t", [ROW, 1], 422, "a list of rows"),
        ("/data/t", {"a": "1", "b": "x"}, 422, "[0].a is no finite number"),
        ("/data/t", [ROW] * 10_001, 413, "MAX_REQUEST_ROWS"),
    ],
)
def test_what_cannot_be_appended_is_refused(client: Any, path: str, sent: object, status: int, message: str) -> None:
    before = client.get("/data/t").json["rows"]
    answer = client.post(path, json=sent)
    assert (answer.status_code, message in answer.text) == (status, True), answer.text
    assert client.get("/data/t").json["rows"] == before


@pytest.mark.parametrize("query", ["offset=-1", "limit=0", "limit=10001", "limit=x", "offset=²", "format=xml"])
def test_a_wrong_query_parameter_is_named(client: Any, query: str) -> None:
    answer = client.get(f"/data/t?{query}")
    assert (answer.status_code, query.partition("=")[0] in answer.json["detail"]) == (422, True)


def test_an_unknown_dataset_is_404(client: Any) -> None:
    assert client.get("/data/none").status_code == 404
    assert client.get("/data/none?format=csv").status_code == 404


def test_only_operators_read_and_write(client: Any) -> None:
    foreign = {"Host": "lab.example"}
    answers = [client.get("/data", headers=foreign), client.get("/data/t", headers=foreign)]
    answers.append(client.post("/data/t", json=ROW, headers=foreign))
    assert [answer.status_code for answer in answers] == [403] * 3
