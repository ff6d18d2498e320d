"""Training on a real MLflow server: what a run leaves behind, and which version becomes production."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from sqlalchemy import text

from labstack import registry, serialization
from labstack.contract import Contract
from labstack.errors import LabError
from labstack.registry import Roles
from labstack.store import datasets
from labstack.store.audit import RoleMove, history
from labstack.training import config, data, promotion
from labstack.training.promotion import TrainingError
from labstack.training.train import _experiment
from tests.conftest import Lab, environment, free_port

WORSE = {"params": {"alpha": 10_000.0}}
BETTER = {"params": {"alpha": 0.01}}


def production_moves(lab: Lab, model: str) -> list[RoleMove]:
    """The moves of production, newest first."""
    return [move for move in history(lab.engine, model) if move.role == "production"]


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model of the test's own."""
    return str(request.node.name)[:60]


def test_the_first_version_becomes_production(lab: Lab) -> None:
    assert registry.all_roles(lab.registry)["iris"] == Roles(production=1)
    [move] = history(lab.engine, "iris")
    assert (move.from_version, move.to_version) == (None, 1)
    assert move.reason.startswith("the model had no production version, accuracy 0.9")


def test_better_is_promoted_and_equal_or_worse_is_not(lab: Lab, name: str) -> None:
    worse = {"model": name} | WORSE
    better = {"model": name} | BETTER
    assert [lab.train("student_exam", **changes) for changes in (worse, worse, better, worse)] == [1, 2, 3, 4]
    assert registry.roles(lab.registry, name) == Roles(production=3, previous=1)
    newest, oldest = production_moves(lab, name)
    assert (oldest.to_version, newest.from_version, newest.to_version) == (1, 1, 3)
    assert "rmse" in newest.reason
    assert "of version 1" in newest.reason


def test_a_run_holds_parameters_metrics_and_plots(lab: Lab) -> None:
    version = lab.client.get_model_version("iris", "1")
    run = lab.client.get_run(str(version.run_id))
    assert run.data.params["estimator"] == "sklearn.linear_model.LogisticRegression"
    assert run.data.params["params.max_iter"] == "1000"
    assert run.data.metrics.keys() == {"accuracy", "f1_macro", "log_loss", "onnx_parity"}
    assert run.data.metrics["accuracy"] > 0.9
    assert [file.path for file in lab.client.list_artifacts(run.info.run_id, "plots")] == ["plots/confusion_matrix.png"]


def test_artifacts_go_through_the_server(lab: Lab) -> None:
    experiment = lab.client.get_experiment_by_name("iris")
    assert experiment is not None
    assert experiment.artifact_location.startswith("mlflow-artifacts:")
    assert list((lab.folder / "mlartifacts").rglob("model.skops"))
    assert not (Path.cwd() / "mlartifacts").exists()


def test_a_version_is_a_package_that_mlflow_loads_too(lab: Lab, tmp_path: Path) -> None:
    folder = Path(mlflow.artifacts.download_artifacts("models:/iris/1", dst_path=str(tmp_path)))
    contract = Contract.read(folder)
    assert [feature.name for feature in contract.features] == [
        "sepal_length",
        "sepal_width",
        "petal_length",
        "petal_width",
    ]
    assert contract.classes == ("setosa", "versicolor", "virginica")
    assert not list(folder.rglob("*.pkl"))
    loaded = mlflow.pyfunc.load_model("models:/iris/1")
    signature = loaded.metadata.signature
    assert signature is not None
    assert [str(kind) for kind in signature.inputs.input_types()] == ["DataType.double"] * 4
    assert loaded.metadata.saved_input_example_info is not None
    features = data.load(lab.engine, config.read("iris")).test_features
    ours = serialization.load(folder).predict(features)
    np.testing.assert_array_equal(loaded.predict(features), ours)


def test_the_features_ranges_are_those_of_the_training_rows(lab: Lab, tmp_path: Path) -> None:
    folder = Path(mlflow.artifacts.download_artifacts("models:/student_exam/1", dst_path=str(tmp_path)))
    train = data.load(lab.engine, config.read("student_exam")).train_features
    for feature in Contract.read(folder).features:
        assert (feature.minimum, feature.maximum) == (train[feature.name].min(), train[feature.name].max())


def test_a_failed_fit_registers_nothing(lab: Lab, name: str) -> None:
    with pytest.raises(TrainingError, match="LogisticRegression does not fit"):
        lab.train("iris", model=name, params={"C": -1.0})
    assert name not in registry.all_roles(lab.registry)


def test_an_estimator_that_fits_and_cannot_predict_registers_nothing(lab: Lab, name: str) -> None:
    knn = "sklearn.neighbors.KNeighborsClassifier"
    with pytest.raises(TrainingError, match="n_neighbors <= n_samples_fit"):
        lab.train("iris", model=name, estimator=knn, params={"n_neighbors": 1000})
    assert name not in registry.all_roles(lab.registry)


def test_a_model_keeps_to_its_question(lab: Lab, name: str) -> None:
    lab.train("iris", model=name)
    with pytest.raises(TrainingError, match=r"predicts species \(classification\).*needs a model name of its own"):
        lab.train("student_exam", model=name)
    assert len(lab.client.search_model_versions(f"name = '{name}'")) == 1


def test_what_cannot_be_compared_is_not_promoted_and_says_why(lab: Lab, name: str) -> None:
    lab.train("iris", model=name, estimator="sklearn.svm.LinearSVC", params={})
    assert lab.train("iris", model=name, metric="log_loss") == 2
    assert registry.roles(lab.registry, name) == Roles(production=1)


def test_two_trainings_at_once_never_let_the_worse_one_win(lab: Lab, name: str) -> None:
    lab.train("student_exam", model=name, params={"alpha": 10_000.0})
    pipelines = [
        config.Pipeline.model_validate(
            config.read("student_exam").model_dump() | {"model": name, "params": {"alpha": a}}
        )
        for a in (1.0, 1000.0)
    ]
    split = data.load(lab.engine, pipelines[0])
    verdicts = [
        promotion.judge(p, lab.registry, {"rmse": rmse}, split) for p, rmse in zip(pipelines, (3.5, 8.8), strict=True)
    ]
    assert [verdict.promote for verdict in verdicts] == [True, True]  # each alone is better than version 1
    assert [lab.train("student_exam", model=name, params={"alpha": alpha}) for alpha in (1.0, 1000.0)] == [2, 3]
    assert registry.roles(lab.registry, name).production == 2
    with pytest.raises(registry.ProductionMovedError):
        registry.promote(lab.registry, lab.engine, name, 3, reason="late", instead_of=verdicts[1].judged_by)


def test_a_production_version_that_was_deleted_or_damaged_is_no_dead_end(lab: Lab, name: str) -> None:
    lab.train("iris", model=name)
    lab.client.delete_model_version(name, "1")
    assert lab.train("iris", model=name) == 2
    assert registry.roles(lab.registry, name).production == 2
    source = str(lab.client.get_model_version(name, "2").source).removeprefix("models:/")
    [stored] = (lab.folder / "mlartifacts").rglob(f"{source}/artifacts/model.skops")
    stored.write_bytes(b"damaged")
    try:
        with pytest.raises(LabError, match="cannot be loaded"):
            lab.train("iris", model=name)
    finally:
        lab.client.delete_registered_model(name)


def test_a_judgement_on_rows_that_production_learnt_from_says_so(lab: Lab, name: str) -> None:
    lab.train("student_exam", model=name, params={"alpha": 10_000.0})
    lab.train("student_exam", model=name, split={"test_fraction": 0.25, "seed": 7})
    [newest, _] = production_moves(lab, name)
    assert "of version 1, which learnt from some of these rows" in newest.reason
    fitter = {"estimator": "sklearn.ensemble.ExtraTreesRegressor", "params": {"random_state": 0}}
    lab.train("student_exam", model=name, split={"test_fraction": 0.5, "seed": 7}, **fitter)
    assert len(production_moves(lab, name)) == 2


def test_an_experiment_whose_artifacts_lie_elsewhere_is_refused(lab: Lab, name: str, tmp_path: Path) -> None:
    lab.client.create_experiment(name, artifact_location=str(tmp_path))
    with pytest.raises(TrainingError, match=str(tmp_path)):
        lab.train("iris", model=name)


def run_cli(lab: Lab, *arguments: str, **settings: object) -> "subprocess.CompletedProcess[str]":
    chosen = {"mlflow_tracking_uri": lab.tracking_uri, "lab_database_url": lab.database_url} | settings
    return subprocess.run(
        [sys.executable, "-m", "labstack.training.cli", "train", *arguments],
        env=environment(**chosen),
        capture_output=True,
        text=True,
    )


def test_the_command_trains_a_file_and_says_what_became_of_it(lab: Lab, tmp_path: Path, name: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text((config.FOLDER / "student_exam.yaml").read_text().replace("model: student_exam", f"model: {name}"))
    done = run_cli(lab, str(path))
    assert (
        done.returncode,
        done.stdout.startswith(f"{name} version 1 is production: the model had no production version, rmse "),
    ) == (0, True), done
    messages = [line.split('"message":"')[1].split('"')[0] for line in done.stderr.splitlines()]
    assert messages == ["rows read", "fitted and evaluated", "registered", "promoted"]
    again = run_cli(lab, "--if-missing", str(path))
    assert again.stdout == f"{name} version 1 is production\n"


@pytest.mark.parametrize(
    ("arguments", "settings", "fault"),
    [
        (["irish"], {}, "there are: iris, student_exam"),
        (
            ["iris"],
            {"mlflow_tracking_uri": f"http://localhost:{free_port()}", "startup_timeout_seconds": 0.1},
            "cannot be reached",
        ),
        (["iris"], {"lab_database_url": "sqlite:////proc/nowhere/lab.db"}, "/proc/nowhere"),
    ],
)
def test_the_command_fails_in_one_line(
    lab: Lab, arguments: list[str], settings: dict[str, str], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run_cli(lab, *arguments, **settings)
    assert done.returncode == 1
    assert fault in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_dataset_that_vanished_is_said_so(lab: Lab) -> None:
    with pytest.raises(datasets.DatasetError, match="there are: iris"):
        lab.train("iris", data={"dataset": "gone", "target": "species"})


def test_training_leaves_the_database_unlocked(lab: Lab) -> None:
    with lab.engine.connect() as connection:
        assert connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)")).one()[0] == 0


def test_trainings_that_begin_together_share_one_experiment(lab: Lab, name: str) -> None:
    together = threading.Barrier(4)
    found: list[str] = []

    class Client(MlflowClient):
        """Creates no experiment before the others have looked for it, too."""

        def create_experiment(self, *arguments: Any, **keywords: Any) -> str:
            together.wait(10)
            return str(super().create_experiment(*arguments, **keywords))

    def look() -> None:
        found.append(_experiment(Client(lab.tracking_uri, lab.tracking_uri), name))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
