"""Metrics: their values, and their list in the docs."""

import json
import os
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from flask import Flask
from prometheus_client import Counter
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import mmap_key
from sqlalchemy import Engine

from labstack.api import health, metrics
from labstack.api.rollout import gauges
from labstack.settings import ROOT, Settings
from tests.conftest import IRIS_ROW, fill, small_disk, wait_until
from tests.docs.pages import page


def test_the_docs_list_every_metric(engine: Engine) -> None:
    own = [value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)]
    assert all(metric.__class__.__name__ in ("Counter", "Gauge", "Histogram") for metric in own)
    names = {metric._name + ("_total" if isinstance(metric, Counter) else "") for metric in own}
    names |= {metric.name for metric in [*gauges.compute(engine, Settings(), {}), health.gauge("", True)]}
    assert set(re.findall(r"^\| `(labstack_\w+)` \|", page("metrics-and-logs"), re.MULTILINE)) == names


def test_gauges_are_those_of_now_or_the_last_ones_while_the_database_is_slow() -> None:
    is_free, computed = threading.Event(), 0

    def compute() -> list[Metric]:
        nonlocal computed
        computed += 1
        is_free.wait(30)
        return [Metric(f"number_{computed}", "", "gauge")]

    cached = gauges.Gauges(compute)
    assert cached.latest() == []
    assert cached.latest() == []
    is_free.set()
    assert [metric.name for metric in cached.latest()] == ["number_1"], "both calls shared one computation"
    assert [metric.name for metric in cached.latest()] == ["number_2"]
    is_free.clear()
    assert [metric.name for metric in cached.latest()] == ["number_2"]
    is_free.set()


def test_every_failure_is_counted_by_its_kind(app: Flask) -> None:
    client = app.test_client()

    def counted(kind: str) -> float:
        return metrics.total(metrics.problems, kind=kind).get((), 0)

    requests: dict[str, dict[str, Any]] = {
        "contract": {"json": {}},
        "json": {"data": "{", "content_type": "application/json"},
        "content-type": {"data": "{}"},
        "too-many-rows": {"json": [{}] * 10_001},
    }
    for kind, request in requests.items():
        before = counted(kind)
        client.post("/predict", **request)
        assert counted(kind) == before + 1, kind


def test_values_out_of_training_s_range_are_counted_and_named(app: Flask) -> None:
    service = app.extensions["labstack"]
    service.recorder.start()
    labels = {"model": "iris", "version": "1", "role": "production"}
    before = metrics.total(metrics.out_of_range, **labels).get((), 0)
    answer = (
        app.test_client().post("/predict", json=[IRIS_ROW, IRIS_ROW | {"petal_width": 99, "petal_length": -1}]).json
    )
    fields = [warning["field"] for warning in answer["warnings"]]
    assert fields == ["rows[1].petal_length", "rows[1].petal_width"]
    wait_until(lambda: metrics.total(metrics.out_of_range, **labels).get((), 0) == before + 2, 10, "both are counted")
    service.recorder.stop()


def known_metrics(engine: Engine) -> set[str]:
    """Every series that `/metrics` may hold."""
    own = [value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)]
    names = {metric.name for metric in gauges.compute(engine, Settings(), {})}
    names.add(health.gauge("http://registry", True).name)
    for metric in own:
        kind = metric.__class__.__name__
        names |= {metric._name + end for end in {"Counter": ("_total",), "Gauge": ("",)}.get(kind, ("_bucket",))}
    return names


def test_the_dashboard_and_the_alerts_use_existing_metrics_and_labels(engine: Engine) -> None:
    known = known_metrics(engine)
    labels = {label for value in vars(metrics).values() for label in getattr(value, "_labelnames", ())}
    labels |= {"column", "verdict", "le", "instance", "job", "url"}
    dashboard = json.loads((ROOT / "docker/monitoring/dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = yaml.safe_load((ROOT / "docker/monitoring/alerts.yml").read_text())["groups"][0]["rules"]
    expressions += [rule["expr"] for rule in rules]
    assert len(expressions) > 25
    for expression in expressions:
        assert set(re.findall(r"\blabstack_\w+", expression)) <= known, expression
        grouped = ",".join(re.findall(r"(?:by|on|ignoring) \(([^)]*)\)", expression)).split(",")
        matched = re.findall(r"[{,](\w+)(?:=~|!=|=)", expression)
        assert {name.strip() for name in (*grouped, *matched)} - {""} <= labels, expression
    for rule in rules:
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("critical", "warning")
    used = {name for expression in expressions for name in re.findall(r"\blabstack_\w+", expression)}
    assert used == known, "every metric is used somewhere"


def key(number: int) -> str:
    return mmap_key("things", "things_total", ["number"], [str(number)], "Things that are counted.")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that `/metrics` reads."""
    path = tmp_path / "metrics"
    monkeypatch.setenv(metrics.FOLDER_VARIABLE, str(path))
    return path


def counted() -> dict[int, float]:
    return {int(sample.labels["number"]): sample.value for metric in metrics.collect() for sample in metric.samples}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk of its own")
@pytest.mark.parametrize("before", [0, 10])
def test_what_a_full_disk_has_no_room_for_is_counted_and_written_later(
    folder: Path, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "RETRY_SECONDS", 0)
    with small_disk(folder, "512k"):
        counts = metrics.WorkerValues(str(folder / "counter_0.db"))
        for number in range(before):
            assert counts.read_value(key(number)) == (0, 0)
        ballast = fill(folder)
        for number in range(1000):  # more than a new file has room for
            counts.read_value(key(number))
            counts.write_value(key(number), number, 0)
        assert len(counted()) < 1000
        assert "No space left on device" in (metrics.fault() or "")
        assert counts.read_value(key(999)) == (999, 0)
        for number in range(before):  # which had room before
            assert counted()[number] == number
        ballast.unlink()
        counts.write_value(key(0), 5000, 0)
        assert counted() == {number: number or 5000 for number in range(1000)}
        assert metrics.fault() is None
        counts.close()


def test_a_removed_folder_is_reported(folder: Path, app: Flask) -> None:
    folder.mkdir()
    assert metrics.fault() is None
    counts = metrics.WorkerValues(str(folder / "counter_0.db"))
    counts.read_value(key(1))
    shutil.rmtree(folder)
    counts.write_value(key(1), 1, 0)
    assert str(folder) in (metrics.fault() or "")
    assert app.test_client().get("/metrics").status_code == 200
    counts.close()


def test_a_file_that_is_just_being_made_is_left_out(folder: Path) -> None:
    folder.mkdir()
    (folder / "counter_0.db").touch()
    assert metrics.collect() == []
