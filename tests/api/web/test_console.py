"""The console, read from its HTML: counts after moves of roles, and the table of versions."""

import json
import re
from html.parser import HTMLParser

import pytest
from flask import Flask
from flask.testing import FlaskClient

from labstack.registry import moves
from tests.conftest import IRIS_ROW, Lab, wait_until

NONE = "\N{EN DASH}"


class Page(HTMLParser):
    """A page's tables by label, as rows of texts; its links by text; the text of each section."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.links: dict[str, str] = {}
        self.sections: dict[str, str] = {}
        self._rows: list[list[str]] = []
        self._section = self._link = ""
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        if tag == "section":
            self._section = given["aria-labelledby"]
        elif given.get("class") == "wide":
            self._rows = self.tables[given["aria-label"].partition(",")[0]] = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("th", "td"):
            self._rows[-1].append("")
            self._in_cell = True
        elif tag == "a":
            self._link = given["href"]

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("th", "td")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self._rows[-1][-1] = f"{self._rows[-1][-1]} {data}".strip()
        if data.strip() and self._link:
            self.links.setdefault(data.strip(), self._link)
            self._link = ""
        self.sections[self._section] = " ".join(f"{self.sections.get(self._section, '')} {data}".split())


@pytest.fixture
def client(running: Flask) -> FlaskClient:
    return running.test_client()


def console(client: FlaskClient, address: str = "/console") -> Page:
    answer = client.get(address)
    assert answer.status_code == 200, answer.text
    return Page(answer.text)


def counted(client: FlaskClient, rows: int) -> Page:
    """Return the page when it counts this many rows."""

    def complete() -> Page | None:
        page = console(client)
        return page if sum(int(row[3]) for row in page.tables["Traffic"][1:] if row[1] != "all") == rows else None

    page: Page = wait_until(complete, 10, f"{rows} rows are counted")
    return page


def predict(client: FlaskClient, number: int) -> None:
    for _ in range(number):
        assert client.post("/predict", json=IRIS_ROW).status_code == 200


def traffic(page: Page) -> list[list[str]]:
    """Return role, version, requests and rows of each line of the table."""
    return [row[:4] for row in page.tables["Traffic"][1:]]


def test_requests_are_counted_by_role_across_versions(client: FlaskClient, model: str) -> None:
    predict(client, 7)
    assert client.post("/update-model", json={"version": 2, "weight": 1}).status_code == 200
    predict(client, 3)
    assert traffic(counted(client, 10)) == [["production", "1", "7", "7"], ["canary", "2", "3", "3"]]
    assert client.post("/accept-next-model").status_code == 200
    page = counted(client, 10)
    assert traffic(page) == [
        ["production", "all", "7", "7"],
        ["production", "1", "7", "7"],
        ["production", "2", "0", "0"],
        ["canary", "2", "3", "3"],
    ]
    assert "7 requests to production 7 by version 1, 0 by version 2" in page.sections["how"]
    predict(client, 2)
    page = counted(client, 12)
    assert traffic(page)[:3] == [
        ["production", "all", "9", "9"],
        ["production", "1", "7", "7"],
        ["production", "2", "2", "2"],
    ]
    assert "9 requests to production 7 by version 1, 2 by version 2" in page.sections["how"]
    assert "5 rows that version 2 predicted" in page.sections["drift"]
    assert client.get("/drift").json["versions"][0]["rows"] == 5


def test_the_chart_counts_by_role(client: FlaskClient, model: str) -> None:
    predict(client, 4)
    assert client.post("/update-model", json={"version": 2, "weight": 1}).status_code == 200
    predict(client, 2)
    assert client.post("/accept-next-model").status_code == 200
    predict(client, 1)
    counted(client, 7)
    [data] = re.findall(r'id="traffic-data">(.*?)</script>', client.get("/console").text)
    series = {line["name"]: line for line in json.loads(data)["series"]}
    assert set(series) == {"production (versions 1, 2)", "canary (version 2)"}
    rates = [sum(line["requests"]) for line in series.values()]
    assert rates[0] / rates[1] == pytest.approx(5 / 2, rel=0.2)  # all within a period or two
    assert "version 1: 4" in "".join(series["production (versions 1, 2)"]["shares"])
    assert any(value is not None for value in series["canary (version 2)"]["p99"])


def test_versions_with_a_role_are_on_every_page(client: FlaskClient, lab: Lab, model: str) -> None:
    original = lab.client.get_model_version("iris", "1")
    for _ in range(21):
        lab.client.create_model_version(model, str(original.source), original.run_id, await_creation_for=0)
    moves.promote(lab.registry, lab.engine, model, 3, reason="second")
    assert client.post("/update-model", json={"version": 2}).status_code == 200
    page = console(client)
    rows = page.tables["Versions"]
    assert [row[:2] for row in rows[1:4]] == [["3", "production"], ["2", "canary"], ["1", "previous"]]
    assert [row[0] for row in rows[4:]] == [str(number) for number in range(24, 14, -1)]
    assert "Newest versions" not in page.links
    page = console(client, page.links["Older versions"])
    assert [row[0] for row in page.tables["Versions"][1:]] == ["3", "2", "1", *map(str, range(14, 4, -1))]
    page = console(client, page.links["Older versions"])
    assert [row[0] for row in page.tables["Versions"][1:]] == ["3", "2", "1", "4"]
    assert "Older versions" not in page.links
    assert console(client, page.links["Newest versions"]).tables["Versions"] == rows
    assert client.get("/console?versions_before=x").status_code == 422


def test_every_version_shows_the_same_metrics_first_the_one_that_judged_it(
    client: FlaskClient, lab: Lab, model: str
) -> None:
    judged, bare = (lab.client.create_run("0").info.run_id for _ in range(2))
    lab.client.log_param(judged, "metric", "zeta")
    lab.client.log_param(bare, "metric", "minkowski")  # a parameter of another training
    for name, value in {"zeta": 0.25, "accuracy": 0.5, "accuracy_low": 0.4, "cv_zeta": 0.3, "onnx_parity": 0}.items():
        lab.client.log_metric(judged, name, value)
    source = str(lab.client.get_model_version("iris", "1").source)
    for run in (judged, bare):
        lab.client.create_model_version(model, source, run, await_creation_for=0)
    moves.promote(lab.registry, lab.engine, model, 4, reason="second")
    answer = client.get("/console").text
    head, *rows = Page(answer).tables["Versions"]
    first, end = head.index("Created, UTC") + 1, head.index("Run")
    assert head[first:end] == ["zeta", "accuracy", "balanced_accuracy", "f1_macro"]
    cells = {row[0]: row[first:end] for row in rows}
    assert {number: len(row) for number, row in cells.items()} == dict.fromkeys("41532", 4)
    assert cells["4"] == ["0.25", "0.5", NONE, NONE]
    assert cells["5"] == [NONE] * 4
    assert cells["1"][0] == NONE
    assert all(float(cell) > 0.8 for cell in cells["1"][1:])
    assert "<b>0.25</b>" in answer


@pytest.mark.parametrize(
    "version", [pytest.param("9" * 5000, id="long"), "²", "\N{ARABIC-INDIC DIGIT ONE}", "-1", "1.5"]
)
def test_a_version_that_is_no_number_is_not_found(client: FlaskClient, version: str) -> None:
    assert client.get("/console/confirm", query_string={"move": "canary", "version": version}).status_code == 404
