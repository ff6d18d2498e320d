"""The OpenAPI document, and answers checked against it by schemathesis, which generates the requests."""

import html
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from labstack.api.http import queries
from labstack.registry import moves
from labstack.store import datasets
from labstack.store.database import connect, migrate
from tests.conftest import IRIS_ROW, Lab, Process, ask, run_api

WRITES_ROLES = "/update-model|/accept-next-model|/reject-next-model|/rollback"


@pytest.fixture(scope="module")
def api(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("api")
    engine = connect(f"sqlite:///{folder}/lab.db")
    migrate(engine)
    list(datasets.load_bundled(engine))
    with run_api(folder, mlflow_tracking_uri=lab.tracking_uri) as process:
        yield process


def test_the_document_describes_every_route(app: Any) -> None:
    document = app.test_client().get("/openapi.json").json
    assert document["openapi"] == "3.1.0"
    described = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert ("/models/iris/predict", "post") in described
    assert ("/models/student_exam/predict", "post") in described
    rules = [r.endpoint for r in app.url_map.iter_rules() if not r.endpoint.startswith(("console.", "assets."))]
    assert len(described) == len(rules) + 1, rules  # one path for each model's predict
    row = document["components"]["schemas"]["1.iris.row"]
    assert set(row["properties"]) == set(IRIS_ROW)
    operations = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(set(operations)) == len(operations)
    assert all(operation.get("summary") for methods in document["paths"].values() for operation in methods.values())


def test_a_route_that_declares_no_operation_is_refused() -> None:
    app = Flask(__name__, static_folder=None)
    app.add_url_rule("/new", view_func=lambda: "")
    with pytest.raises(TypeError, match="The route /new has no operation"):
        queries.register(app)


def test_the_document_follows_what_is_served(lab: Lab, app: Any, model: str) -> None:
    client = app.test_client()
    assert f"/models/{model}/predict" not in client.get("/openapi.json").json["paths"]
    moves.promote(lab.registry, lab.engine, model, 1, reason="first")
    app.extensions["labstack"].follower.sync()
    assert f"/models/{model}/predict" in client.get("/openapi.json").json["paths"]


def test_a_model_whose_name_is_escaped_in_paths_and_keys_is_described(lab: Lab, app: Any) -> None:
    name = "my model, für alle"
    original = lab.client.get_model_version("iris", "1")
    lab.client.create_registered_model(name)
    lab.client.create_model_version(name, str(original.source), original.run_id, await_creation_for=0)
    lab.registry.set_alias(name, "production", 1)
    app.extensions["labstack"].follower.sync()
    client = app.test_client()
    document = client.get("/openapi.json").json
    [path] = [path for path in document["paths"] if "my%20model" in path]
    assert client.post(path, json=IRIS_ROW).status_code == 200
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", key) for key in document["components"]["schemas"])
    assert client.get("/docs").status_code == 200
    lab.client.delete_registered_model(name)


@pytest.mark.parametrize(
    "chosen",
    [
        ["--exclude-path-regex", f"/infer$|{WRITES_ROLES}"],
        # no schema can say that a tensor's shape fits its data
        ["--include-path-regex", "/infer$", "--exclude-checks", "positive_data_acceptance"],
    ],
    ids=["all but tensors", "tensors"],
)
def test_answers_follow_the_document(api: Process, chosen: list[str]) -> None:
    command = ["run", f"{api.url}/openapi.json", "--checks", "all", "--max-examples", "20", "--seed", "1"]
    command += ["--phases", "examples,coverage,fuzzing", *chosen]
    result = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", *command],
        capture_output=True,
        text=True,
        cwd=api.log.parent,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_page_shows_every_endpoint_and_the_models_fields(app: Any) -> None:
    client = app.test_client()
    answer = client.get("/docs")
    assert answer.status_code == 200
    assert "script-src 'self';" in answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    document = client.get("/openapi.json").json
    assert all(path in html.unescape(answer.text) for path in document["paths"])
    assert all(name in answer.text for name in IRIS_ROW)


def test_the_curl_lines_of_the_page_work(api: Process) -> None:
    page = html.unescape(ask(f"{api.url}/docs").text)
    lines = [line for line in re.findall(r"<pre[^>]*>(.*?)</pre>", page) if "/hooks/" not in line]
    assert len(lines) > 15
    for line in lines:
        command = [*shlex.split(line), "-o", "/dev/null", "-w", "%{http_code}"]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        moves = re.search(WRITES_ROLES, line)  # with no canary and no previous version
        expected = ("404", "409") if moves or "/feedback" in line else ("200",)
        assert result.stdout in expected, (result.stdout, line)
