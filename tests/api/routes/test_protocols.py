"""MLflow's scoring protocol and the Open Inference Protocol, with the clients of MLflow and Triton."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tritonclient.http as triton
from flask.testing import FlaskClient
from mlflow.pyfunc.scoring_server.client import ScoringServerClient
from tritonclient.utils import InferenceServerException

import labstack
from labstack import api_client
from labstack.registry import moves
from labstack.registry.roles import Rollout
from tests.conftest import IRIS_ROW, Lab, Process, ask, run_api

FRAME = pd.DataFrame([IRIS_ROW, {"sepal_length": 7.4, "sepal_width": 2.8, "petal_length": 6.1, "petal_width": 1.9}])
CLASSES = ["setosa", "virginica"]
ROWS = FRAME.to_numpy().tolist()
NAMES = list(IRIS_ROW)
AS_CSV = {"Content-Type": "text/csv"}
MATRIX = {"inputs": [{"name": "m", "shape": [1, 4], "datatype": "FP64", "data": [1, 2, 3, 4]}]}


@pytest.fixture(scope="module")
def api(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with run_api(tmp_path_factory.mktemp("api"), mlflow_tracking_uri=lab.tracking_uri) as process:
        yield process


@pytest.fixture(scope="module")
def client(api: Process) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(api.url.removeprefix("http://")) as client:
        yield client


def test_mlflows_client_is_served(api: Process) -> None:
    client = ScoringServerClient("localhost", int(api.url.rpartition(":")[2]))
    client.wait_server_ready(5)
    assert client.get_version() == labstack.__version__
    for data in (FRAME, FRAME.to_numpy()):
        assert client.invoke(data).get_predictions("ndarray").tolist() == CLASSES
    assert client.invoke(FRAME, params={"temperature": 1}).get_predictions("ndarray").tolist() == CLASSES


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": FRAME.to_dict("split")},
        {"dataframe_split": {"data": ROWS}},
        {"dataframe_split": {"columns": NAMES[::-1], "data": [row[::-1] for row in ROWS]}},
        {"dataframe_records": FRAME.to_dict("records")},
        {"instances": FRAME.to_dict("records")},
        {"instances": ROWS},
        {"inputs": FRAME.to_dict("list")},
        {"inputs": {name: [[value] for value in FRAME[name]] for name in NAMES}},
        {"inputs": ROWS},
        {"inputs": ROWS, "params": None},
    ],
)
def test_every_form_of_a_table_is_read(api: Process, body: Any) -> None:
    answer = ask(f"{api.url}/invocations", body)
    assert (answer.status, answer.json and answer.json["predictions"]) == (200, CLASSES), answer.text
    assert answer.json["model"]["version"] == 1


def csv(frame: pd.DataFrame = FRAME, **options: Any) -> bytes:
    text = io.StringIO()
    frame.to_csv(text, index=False, **options)
    return text.getvalue().encode()


@pytest.mark.parametrize("content_type", ["text/csv", "text/csv; charset=utf-8"])
@pytest.mark.parametrize(
    "body", [csv(), csv(FRAME[NAMES[::-1]]), csv().replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + csv()]
)
def test_csv_is_read(api: Process, body: bytes, content_type: str) -> None:
    answer = ask(f"{api.url}/invocations", body, headers={"Content-Type": content_type})
    assert (answer.status, answer.json["predictions"]) == (200, CLASSES)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], "body"),
        ({}, "body"),
        ({"instances": ROWS, "inputs": ROWS}, "body"),
        ({"instances": ROWS, "more": 1}, "more"),
        ({"instances": ROWS, "params": 1}, "params"),
        ({"instances": []}, "instances"),
        ({"instances": 1}, "instances"),
        ({"instances": [[1, 2]]}, "instances[0]"),
        ({"instances": [IRIS_ROW, 3]}, "instances[1]"),
        ({"inputs": {"petal_width": 1}}, "inputs.petal_width"),
        ({"inputs": {"petal_width": [1], "petal_length": [1, 2]}}, "inputs"),
        ({"inputs": {}}, "inputs"),
        ({"dataframe_split": {"columns": ["a", "a"], "data": [[1, 2]]}}, "dataframe_split.data"),
        ({"dataframe_split": {"columns": [1], "data": [[1]]}}, "dataframe_split.columns"),
        ({"dataframe_split": {"columns": NAMES, "data": [ROWS[0][:3]]}}, "dataframe_split.data[0]"),
        ({"dataframe_split": {"data": ROWS, "more": 1}}, "dataframe_split.more"),
        ({"dataframe_split": ROWS}, "dataframe_split"),
        ({"dataframe_records": [IRIS_ROW | {"petal_width": None}]}, "dataframe_records[0].petal_width"),
    ],
)
def test_a_wrong_table_is_refused(api: Process, body: Any, field: str) -> None:
    answer = ask(f"{api.url}/invocations", body)
    assert (answer.status, answer.json["errors"][0]["field"]) == (422, field)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"\xff", 400, "UTF-8"),
        (b'a"b,"c\n1', 400, "unexpected end of data"),
        (b"", 422, "at least one row"),
        (csv().replace(b"1.4", b"long"), 422, "csv[0].petal_length is text"),
        (csv().replace(b"1.4", b""), 422, "csv[0].petal_length is null"),
        (csv().replace(b"1.4", b"nan"), 422, "csv[0].petal_length is nan"),
        (csv().replace(b"petal_width", b"colour"), 422, "petal_width is missing"),
    ],
)
def test_wrong_csv_is_refused(api: Process, body: bytes, status: int, message: str) -> None:
    answer = ask(f"{api.url}/invocations", body, headers={"Content-Type": "text/csv"})
    assert (answer.status, message in answer.text) == (status, True), answer.text


STUDENT = {"hours_studied": 2, "sleep_hours": 7, "attendance_percent": 60, "previous_scores": 50}


def test_the_model_of_a_query_is_the_one_that_answers(api: Process) -> None:
    answer = ask(f"{api.url}/invocations?model=student_exam", {"instances": [STUDENT]})
    assert (answer.status, answer.json["model"]["name"]) == (200, "student_exam"), answer.text
    head, values = ",".join(STUDENT), ",".join(map(str, STUDENT.values()))
    answer = ask(f"{api.url}/invocations?model=student_exam", f"{head}\n{values}\n".encode(), headers=AS_CSV)
    assert answer.json["model"]["name"] == "student_exam"
    assert ask(f"{api.url}/invocations?model=student_exam", {"instances": [IRIS_ROW]}).status == 422
    assert ask(f"{api.url}/invocations?model=nobody", {"instances": ROWS}).status == 404
    for path in ("ping", "ready"):
        assert ask(f"{api.url}/{path}?model=student_exam").status == 200
        assert ask(f"{api.url}/{path}?model=nobody").status == 404
    assert ask(f"{api.url}/ready?model=student_exam").json["model"] == "student_exam"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/predict?model=student_exam", IRIS_ROW, "/models/student_exam/predict"),
        ("/predict?model=iris", IRIS_ROW, "/models/iris/predict"),
        ("/predict?version=1", IRIS_ROW, "takes no query parameter 'version'"),
        ("/models/iris/predict?model=student_exam", IRIS_ROW, "takes no query parameter 'model'"),
        ("/v2/models/iris/infer?version=2", MATRIX, "takes no query parameter 'version'"),
        ("/v2/health/ready?model=nobody", None, "takes no query parameter 'model'"),
        ("/invocations?model=iris&model=student_exam", {"instances": ROWS}, "model is given 2 times"),
        ("/invocations?model=", {"instances": ROWS}, "model is empty"),
        ("/invocations?modle=iris", {"instances": ROWS}, "takes no query parameter 'modle'; it takes model"),
        ("/rollback?model=student_exam", {}, "takes no query parameter 'model'"),
        ("/feedback?model=iris", {"request_id": "x", "outcome": "y"}, "takes no query parameter 'model'"),
        ("/drift?model=", None, "model is empty"),
        ("/audit?limit=1&limit=2", None, "limit is given 2 times"),
        ("/health?model=iris", None, "takes no query parameter 'model'"),
    ],
)
def test_no_parameter_of_a_query_is_ignored(api: Process, path: str, body: Any, message: str) -> None:
    answer = ask(api.url + path, body)
    assert (answer.status, answer.json.get("type")) == (422, "urn:labstack:problem:query"), answer.text
    assert message in answer.json["detail"]


def test_unknown_parameters_of_a_get_are_ignored(api: Process) -> None:
    assert ask(f"{api.url}/health?probe=1&t=").status == 200


@pytest.mark.parametrize("version", [pytest.param("9" * 5000, id="long"), "-1", "1.0"])
def test_a_version_that_is_no_number_is_not_found(app: Any, version: str) -> None:
    assert app.test_client().get(f"/v2/models/iris/versions/{version}").status_code == 404


@pytest.mark.parametrize("model", [None, "student_exam"])
def test_the_example_predicts_with_the_given_model(api: Process, lab: Lab, model: str | None) -> None:
    settings = lab.settings(api_port=int(api.url.rpartition(":")[2]))
    line, answer = api_client.ask(settings, model).splitlines()
    assert line.startswith(f"curl {api.url}{f'/models/{model}' if model else ''}/predict ")
    assert json.loads(answer)["model"]["name"] == (model or "iris")


def test_triton_finds_the_server_and_its_models(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("iris")
    assert client.is_model_ready("iris", "1")
    assert not client.is_model_ready("iris", "2")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["name"] == "labstack"
    metadata = client.get_model_metadata("iris", "1")
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": name, "datatype": "FP64", "shape": [-1]} for name in NAMES]
    assert [output["name"] for output in metadata["outputs"]] == ["class", "probabilities"]


def tensor(name: str, values: Any, datatype: str = "FP64", *, binary: bool = True) -> triton.InferInput:
    array = np.asarray(values)
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("version", ["", "1"])
@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_triton_infers_from_columns(
    client: triton.InferenceServerClient, binary: bool, version: str, shape: tuple[int, ...]
) -> None:
    inputs = [tensor(name, FRAME[name].to_numpy().reshape(shape), binary=binary) for name in NAMES]
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("class", "probabilities")]
    result = client.infer("iris", inputs, version, outputs=outputs, request_id="mine")
    texts = result.as_numpy("class").tolist()
    assert [text.decode() if isinstance(text, bytes) else text for text in texts] == CLASSES
    assert result.as_numpy("probabilities").shape == (2, 3)
    np.testing.assert_allclose(result.as_numpy("probabilities").sum(axis=1), 1, rtol=1e-6)
    head = result.get_response()
    assert (head["id"], head["model_name"], head["model_version"]) == ("mine", "iris", "1")
    assert head["parameters"]["role"] == "production"


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(("datatype", "kind"), [("FP64", "f8"), ("FP32", "f4")])
def test_triton_infers_from_one_matrix(
    client: triton.InferenceServerClient, binary: bool, datatype: str, kind: str
) -> None:
    result = client.infer("iris", [tensor("input-0", FRAME.to_numpy().astype(kind), datatype, binary=binary)])
    assert [text.decode() for text in result.as_numpy("class")] == CLASSES


def test_triton_infers_integers_and_a_regression(client: triton.InferenceServerClient) -> None:
    row = {"hours_studied": 2, "sleep_hours": 7, "attendance_percent": 60, "previous_scores": 50}
    inputs = [tensor(name, np.array([value]), "INT64") for name, value in row.items()]
    value = client.infer("student_exam", inputs).as_numpy("value")
    assert 30 < value[0] < 60


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([tensor(name, [1.0]) for name in NAMES[:3]], "petal_width is missing"),
        ([tensor(name, [1.0]) for name in NAMES] + [tensor("colour", [1.0])], "colour is not a field"),
        ([tensor("m", [[1.0, 2.0]])], "shape [rows, 4]"),
        ([tensor(name, [1.0] * (1 + (name == "petal_width"))) for name in NAMES], "as many rows"),
        ([tensor(name, [np.nan]) for name in NAMES], "inputs[0].sepal_length is nan"),
    ],
)
def test_triton_shows_the_error(
    client: triton.InferenceServerClient, inputs: list[triton.InferInput], message: str
) -> None:
    with pytest.raises(InferenceServerException) as raised:
        client.infer("iris", inputs)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", {}, 400),
        ({}, {}, 422),
        ({"inputs": []}, {}, 422),
        ({"inputs": [{"name": "m", "shape": [1, 4], "datatype": "FP8", "data": [1, 2, 3, 4]}]}, {}, 422),
        ({"inputs": [{"name": "m", "shape": [1, 4], "datatype": "FP64"}]}, {}, 422),
        ({"inputs": [{"name": "m", "shape": [2, 4], "datatype": "FP64", "data": [1, 2, 3, 4]}]}, {}, 422),
        ({"inputs": [{"name": "m", "shape": [-1, -4], "datatype": "FP64", "data": [1, 2, 3, 4]}]}, {}, 422),
        (
            {
                "inputs": [{"name": "m", "shape": [1, 4], "datatype": "FP64", "data": [1, 2, 3, 4]}],
                "outputs": [{"name": "x"}],
            },
            {},
            422,
        ),
        (
            {"inputs": [{"name": "m", "shape": [1, 4], "datatype": "FP64", "parameters": {"binary_data_size": 99}}]},
            {},
            422,
        ),
        ({"inputs": []}, {"Inference-Header-Content-Length": "9999"}, 400),
        ({"inputs": []}, {"Inference-Header-Content-Length": "x"}, 400),
        (MATRIX, {}, 200),
        ({"inputs": [{"name": "m", "shape": [1, 4], "datatype": "FP64", "data": [[1, 2, 3, 4]]}]}, {}, 200),
    ],
)
def test_a_request_is_read_or_refused(api: Process, body: Any, headers: dict[str, str], status: int) -> None:
    answer = ask(f"{api.url}/v2/models/iris/infer", body, headers=headers)
    assert answer.status == status, answer.text
    assert status == 200 or answer.json["error"] == answer.json["detail"]


def test_a_version_without_a_role_is_refused_and_a_canary_is_not(lab: Lab, app: Any, model: str) -> None:
    moves.promote(lab.registry, lab.engine, model, 1, reason="first")
    moves.start_canary(lab.registry, lab.engine, model, 2, Rollout(0, "split"), reason="try")
    app.extensions["labstack"].follower.sync()
    client: FlaskClient = app.test_client()
    answers = {v: client.post(f"/v2/models/{model}/versions/{v}/infer", json=MATRIX) for v in (1, 2, 3)}
    assert {version: answer.status_code for version, answer in answers.items()} == {1: 200, 2: 200, 3: 404}
    assert answers[2].json["parameters"]["role"] == "canary"
    assert "1 (production) and 2 (canary)" in json.loads(answers[3].data)["detail"]
    assert client.get(f"/v2/models/{model}").json["versions"] == ["1", "2"]


def test_predictions_of_all_protocols_are_recorded(lab: Lab, tmp_path: Path) -> None:
    with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri) as api:
        ask(f"{api.url}/invocations", {"instances": ROWS})
        ask(
            f"{api.url}/v2/models/iris/infer",
            {"inputs": [{"name": "m", "shape": [2, 4], "datatype": "FP64", "data": ROWS}]},
        )
        api.stop()
        lines = api.lines("prediction")  # of two workers, in any order
    assert sorted(line["endpoint"] for line in lines) == ["/invocations", "/v2/models/iris/infer"]
    assert [line["input"] for line in lines] == [FRAME.to_dict("records")] * 2
