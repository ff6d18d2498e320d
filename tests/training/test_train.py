"""Training on a real MLflow server: the run, the logged model, and the version that becomes production."""

import json
import threading
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from sqlalchemy import text

from labstack.errors import LabError
from labstack.model import skops_file
from labstack.model.contract import Contract
from labstack.registry import moves
from labstack.registry.roles import GATES_TAG, Roles, read_all_roles, read_roles
from labstack.store import datasets
from labstack.store.audit import Entry, role_moves
from labstack.training import card, config, data, gates, progress, tracking, train
from labstack.training.gates import Gate
from labstack.training.outcome import TrainingOutcome
from labstack.training.promotion import TrainingError
from tests.conftest import Lab, Relay

WORSE = {"params": {"alpha": 10_000.0}}
BETTER = {"params": {"alpha": 0.01}}
RIDGES = [
    {"estimator": "sklearn.linear_model.Ridge", "search": {"alpha": {"low": 0.01, "high": 10, "log": True}}},
    {"estimator": "sklearn.linear_model.Lasso", "params": {"alpha": 0.1}},
]


def production_moves(lab: Lab, model: str) -> list[Entry]:
    """The moves of production, newest first."""
    return [move for move in role_moves(lab.engine, model) if move.role == "production"]


def test_the_first_version_becomes_production(lab: Lab) -> None:
    assert read_all_roles(lab.registry)["iris"] == Roles(production=1)
    [move] = role_moves(lab.engine, "iris")
    assert (move.from_version, move.to_version) == (None, 1)
    assert move.reason.startswith("the model had no production version, accuracy 0.9")


def test_better_is_promoted_and_same_or_worse_is_not(lab: Lab, name: str) -> None:
    worse = {"model": name} | WORSE
    better = {"model": name} | BETTER
    assert [lab.train("student_exam", **changes) for changes in (worse, worse, better, worse)] == [1, 2, 3, 4]
    assert read_roles(lab.registry, name) == Roles(production=3, previous=1)
    newest, oldest = production_moves(lab, name)
    assert (oldest.to_version, newest.from_version, newest.to_version) == (1, 1, 3)
    assert "rmse" in newest.reason
    assert "of version 1" in newest.reason
    assert [lab.registry.version(name, number).tags[GATES_TAG] for number in (3, 4)] == ["passed", "failed"]


def test_a_run_holds_parameters_metrics_plots_and_a_card(lab: Lab) -> None:
    version = lab.client.get_model_version("iris", "1")
    run = lab.client.get_run(str(version.run_id))
    assert run.info.status == "FINISHED"
    assert run.data.params["estimator"] == "sklearn.linear_model.LogisticRegression"
    assert run.data.params["params.max_iter"] == "1000"
    assert run.data.params["metric"] == "accuracy"
    metrics = run.data.metrics
    assert {"accuracy", "f1_macro", "log_loss", "roc_auc", "onnx_parity"} <= metrics.keys()
    assert 0.8 < metrics["accuracy_low"] <= metrics["accuracy"] <= metrics["accuracy_high"]
    plots = [file.path for file in lab.client.list_artifacts(run.info.run_id, "plots")]
    assert plots == [
        f"plots/{name}.png"
        for name in ("calibration", "confusion_matrix", "importance", "learning_curve", "roc_and_precision_recall")
    ]
    card = Path(lab.client.download_artifacts(run.info.run_id, "model_card.md")).read_text()
    assert run.data.tags["mlflow.note.content"] == card
    for part in ("# iris", "112 rows for training and 38 held out", "petal_width", "| accuracy |", "## Limits"):
        assert part in card


def test_a_run_names_its_rows_and_code(lab: Lab) -> None:
    run = lab.client.get_run(str(lab.client.get_model_version("iris", "1").run_id))
    inputs = {entry.tags[0].value: entry.dataset for entry in run.inputs.dataset_inputs}
    assert {context: dataset.name for context, dataset in inputs.items()} == {
        "training": "iris",
        "evaluation": "iris, held out",
    }
    assert json.loads(inputs["training"].profile)["num_rows"] == 112
    assert run.data.params["data_digest"].startswith(inputs["training"].digest)
    assert len(run.data.tags["labstack.code"]) == len(run.data.tags["labstack.lock"]) == 64
    assert len(run.data.tags["mlflow.source.git.commit"]) == 40


def test_trials_are_child_runs(lab: Lab, name: str) -> None:
    search = {"trials": 6, "folds": 3}
    pipeline = lab.pipeline("student_exam", model=name, search=search, candidates=RIDGES)
    outcome = train.train(pipeline, lab.registry, lab.engine, lab.settings())
    run = lab.client.get_run(str(outcome.run_id))
    trials = lab.client.search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'", max_results=50
    )
    assert sorted(trial.info.run_name for trial in trials) == [f"trial {number}" for number in range(6)]
    assert {trial.data.tags["labstack.trial"] for trial in trials} == set("012345")
    assert {trial.data.params["estimator"] for trial in trials} == {candidate["estimator"] for candidate in RIDGES}
    best = min(trial.data.metrics["rmse"] for trial in trials if "rmse" in trial.data.metrics)
    assert run.data.metrics["cv_rmse"] == pytest.approx(best)
    assert run.data.params["trials"] == "6"
    again = train.train(pipeline, lab.registry, lab.engine, lab.settings())
    assert "predicts the same" in again.reason


def test_artifacts_go_through_the_server(lab: Lab) -> None:
    experiment = lab.client.get_experiment_by_name("iris")
    assert experiment is not None
    assert experiment.artifact_location.startswith("mlflow-artifacts:")
    assert list((lab.folder / "mlartifacts").rglob("model.skops"))
    assert not (Path.cwd() / "mlartifacts").exists()
    assert not list((lab.folder / "outputs" / "iris").rglob("model.skops"))  # all that was made is there


def test_a_version_is_a_package_that_mlflow_loads_too(lab: Lab, tmp_path: Path) -> None:
    folder = Path(mlflow.artifacts.download_artifacts("models:/iris/1", dst_path=str(tmp_path)))
    contract = Contract.read(folder)
    names = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
    assert [feature.name for feature in contract.features] == names
    assert contract.classes == ("setosa", "versicolor", "virginica")
    assert not list(folder.rglob("*.pkl"))
    loaded = mlflow.pyfunc.load_model("models:/iris/1")
    signature = loaded.metadata.signature
    assert signature is not None
    assert [str(kind) for kind in signature.inputs.input_types()] == ["DataType.double"] * 4
    assert loaded.metadata.saved_input_example_info is not None
    table = data.load(lab.engine, config.read("iris"))
    rows = table.frame.iloc[table.test]
    np.testing.assert_array_equal(loaded.predict(rows), skops_file.load(folder, 1 << 30).predict(rows))


def test_text_and_gaps_are_in_the_signature(lab: Lab, tmp_path: Path, name: str) -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "size": random.normal(size=200).round(2),
            "colour": np.array(["red", "blue", None], object)[random.integers(0, 3, 200)],
        }
    )
    frame["y"] = np.where(frame["size"] + (frame["colour"] == "red") > 0.5, "a", "b")
    frame.to_csv(tmp_path / "t.csv", index=False)
    lab.train("iris", model=name, data={"csv": tmp_path / "t.csv", "target": "y"}, params={})
    loaded = mlflow.pyfunc.load_model(f"models:/{name}/1")
    kinds = {column.name: str(column.type) for column in loaded.metadata.signature.inputs}
    assert kinds == {"size": "DataType.double", "colour": "DataType.string"}
    assert len(loaded.predict(pd.DataFrame({"size": [0.1, 2.0], "colour": ["red", None]}))) == 2


def test_a_failed_fit_registers_nothing(lab: Lab, name: str) -> None:
    with pytest.raises(TrainingError, match="LogisticRegression does not fit"):
        lab.train("iris", model=name, params={"C": -1.0})
    assert name not in read_all_roles(lab.registry)


def test_an_estimator_that_fits_and_cannot_predict_registers_nothing(lab: Lab, name: str) -> None:
    knn = "sklearn.neighbors.KNeighborsClassifier"
    with pytest.raises(TrainingError, match="n_neighbors <= n_samples_fit"):
        lab.train("iris", model=name, estimator=knn, params={"n_neighbors": 1000})
    assert name not in read_all_roles(lab.registry)
    assert not (lab.folder / "outputs" / name).exists() or not list((lab.folder / "outputs" / name).iterdir())


def test_a_version_that_fails_a_gate_gets_no_role_and_says_why(lab: Lab, name: str) -> None:
    outcome = lab.outcome("student_exam", model=name, gates={"thresholds": {"r2": 0.999}})
    assert (outcome.passed, outcome.promoted, outcome.version) == (False, False, 1)
    assert outcome.reason.startswith("r2 0.8")
    assert read_roles(lab.registry, name) == Roles()
    tags = lab.registry.version(name, 1).tags
    assert tags[GATES_TAG] == "failed"
    assert tags["labstack.gate.threshold r2"].startswith("failed: r2 0.8")
    assert tags["labstack.gate.parity"].startswith("passed: ")


def test_without_registration_only_a_run_is_logged(lab: Lab, name: str) -> None:
    pipeline = lab.pipeline("iris", model=name)
    outcome = train.train(pipeline, lab.registry, lab.engine, lab.settings(), register=False)
    assert (outcome.version, outcome.promoted) == (None, False)
    assert lab.client.get_run(str(outcome.run_id)).data.metrics["accuracy"] == outcome.metrics["accuracy"]
    assert name not in read_all_roles(lab.registry)


def test_a_training_that_did_not_finish_is_repeated(lab: Lab, name: str) -> None:
    pipeline = lab.pipeline("student_exam", model=name)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(moves, "promote", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        train.train(pipeline, lab.registry, lab.engine, lab.settings())
    assert read_roles(lab.registry, name) == Roles()
    again = train.train(pipeline, lab.registry, lab.engine, lab.settings(), if_changed=True)
    assert (again.version, again.promoted) == (2, True)


def test_new_missing_values_do_not_stop_a_training(lab: Lab, name: str, tmp_path: Path) -> None:
    rows = "".join(f"{n * 37 % 11},{n},{n % 3 + n * 37 % 11}\n" for n in range(80))
    (tmp_path / "t.csv").write_text("x,z,y\n" + rows)
    pipeline = lab.pipeline("student_exam", model=name, data={"csv": tmp_path / "t.csv", "target": "y"})
    train.train(pipeline, lab.registry, lab.engine, lab.settings())
    (tmp_path / "t.csv").write_text("x,z,y\n" + rows + ",5,3\n" * 9)
    outcome = train.train(pipeline, lab.registry, lab.engine, lab.settings())
    assert outcome.version == 2
    assert "as version 1 takes no others" in outcome.reason or "predicts the same" in outcome.reason


def test_names_of_columns_may_hold_anything(lab: Lab, name: str, tmp_path: Path) -> None:
    rows = "".join(f"{n * 37 % 11},{n % 5},{n % 3 + n * 37 % 11}\n" for n in range(80))
    (tmp_path / "t.csv").write_text("hours (per week) größe_€,cost_$_per_$ [kg] a[/b],y\n" + rows)
    gates = {"expectations": [{"raise": "hours (per week) größe_€", "must": "not fall"}]}
    data = {"csv": tmp_path / "t.csv", "target": "y"}
    outcome = lab.outcome("student_exam", model=name, data=data, gates=gates)
    assert outcome.promoted


def test_an_unchanged_pipeline_is_skipped(lab: Lab, name: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,y\n" + "".join(f"{n * 37 % 11},{n % 3}\n" for n in range(60)))
    datasets.load_csv(lab.engine, tmp_path / "t.csv", name)
    pipeline = lab.pipeline("student_exam", model=name, data={"dataset": name, "target": "y"})

    def again(changed: config.Pipeline = pipeline) -> TrainingOutcome:
        return train.train(changed, lab.registry, lab.engine, lab.settings(), if_changed=True)

    assert again().version == 1
    same = again(pipeline.model_copy(update={"approval": "manual"}))
    assert (same.run_id, same.reason) == (None, "rows, pipeline and code are those of version 1")
    datasets.append(lab.engine, name, [{"x": 3, "y": 1}])
    assert again().version == 2
    assert again(lab.pipeline("student_exam", model=name, data={"dataset": name, "target": "y"}, **WORSE)).version == 3


@pytest.mark.parametrize("approved", [True, False])
def test_approval_is_asked_for(lab: Lab, name: str, approved: bool) -> None:
    seen: list[Gate] = []

    def approve(verdicts: list[Gate]) -> bool:
        seen.extend(verdicts)
        return approved

    pipeline = lab.pipeline("iris", model=name, approval="ask")
    outcome = train.train(pipeline, lab.registry, lab.engine, lab.settings(), approve=approve)
    assert outcome.promoted is approved
    assert [gate.name for gate in seen] == ["parity", "latency"]
    assert read_roles(lab.registry, name) == Roles(production=1 if approved else None)
    if not approved:
        assert outcome.reason == f"it was not approved; to promote it later: labstack promote {name} 1"


def test_manual_leaves_a_candidate(lab: Lab, name: str) -> None:
    outcome = lab.outcome("iris", model=name, approval="manual")
    assert (outcome.passed, outcome.promoted) == (True, False)
    assert outcome.reason == f"it awaits approval: labstack promote {name} 1"
    assert read_roles(lab.registry, name) == Roles()


def test_a_model_keeps_its_target(lab: Lab, name: str) -> None:
    lab.train("iris", model=name)
    with pytest.raises(TrainingError, match=r"predicts species \(classification\).*needs another model name"):
        lab.train("student_exam", model=name)
    assert len(lab.client.search_model_versions(f"name = '{name}'")) == 1


def test_a_version_that_cannot_be_compared_is_not_promoted(lab: Lab, name: str) -> None:
    lab.train("iris", model=name, estimator="sklearn.svm.LinearSVC", params={})
    outcome = lab.outcome("iris", model=name, metric="log_loss")
    assert (outcome.version, outcome.promoted) == (2, False)
    assert "version 1 gives no log_loss, so the two cannot be compared" in outcome.reason
    narrow = lab.outcome("iris", model=name, data={"dataset": "iris", "target": "species", "drop": ["petal_width"]})
    assert "version 1 also takes" not in narrow.reason  # the column is dropped as a feature, and kept for comparison
    assert "it takes no field 'petal_width'" in narrow.reason


def test_two_trainings_at_once_both_finish_and_the_better_one_wins(lab: Lab, name: str) -> None:
    lab.train("student_exam", model=name, params={"alpha": 10_000.0})
    outcomes: list[TrainingOutcome] = []
    together = threading.Barrier(2)
    judge = gates.judge

    def meet(*arguments: Any) -> list[Gate]:
        verdicts: list[Gate] = judge(*arguments)
        together.wait(60)  # both have judged by version 1
        return verdicts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gates, "judge", meet)
        patch.setattr(progress, "step", lambda *_, **__: None)
        # MLflow's active run is a thread's own
        threads = [
            threading.Thread(
                target=lambda alpha=alpha: outcomes.append(
                    lab.outcome("student_exam", model=name, params={"alpha": alpha})
                )
            )
            for alpha in (1.0, 1000.0)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(outcome.version or 0 for outcome in outcomes) == [2, 3]
    best = min(outcomes, key=lambda outcome: outcome.metrics["rmse"])
    assert read_roles(lab.registry, name).production == best.version
    for outcome in outcomes:  # the worse one, unless it was first and the better one took its place
        promoted = [move.to_version for move in production_moves(lab, name)]
        assert outcome.promoted is (outcome.version in promoted)
        tag = lab.registry.version(name, outcome.version or 0).tags[GATES_TAG]
        assert tag == ("passed" if outcome.promoted else "failed")


def test_a_deleted_or_damaged_production_version_can_be_replaced(lab: Lab, name: str) -> None:
    lab.train("iris", model=name)
    lab.client.delete_model_version(name, "1")
    assert lab.train("iris", model=name) == 2
    assert read_roles(lab.registry, name).production == 2
    source = str(lab.client.get_model_version(name, "2").source).removeprefix("models:/")
    [stored] = (lab.folder / "mlartifacts").rglob(f"{source}/artifacts/model.skops")
    stored.write_bytes(b"damaged")
    try:
        with pytest.raises(LabError, match="cannot be loaded"):
            lab.train("iris", model=name)
    finally:
        lab.client.delete_registered_model(name)


def test_a_comparison_on_training_rows_of_production_says_so(lab: Lab, name: str) -> None:
    lab.train("student_exam", model=name, params={"alpha": 10_000.0})
    lab.train("student_exam", model=name, split={"test_fraction": 0.25, "seed": 7})
    [newest, _] = production_moves(lab, name)
    assert newest.reason.endswith("; it may have been trained on some of these rows")


def test_an_experiment_with_artifacts_elsewhere_is_rejected(lab: Lab, name: str, tmp_path: Path) -> None:
    lab.client.create_experiment(name, artifact_location=str(tmp_path))
    with pytest.raises(TrainingError, match=str(tmp_path)):
        lab.train("iris", model=name)


def test_a_lost_registry_leaves_the_package_on_disk(lab: Lab, name: str) -> None:
    with Relay(lab.tracking_uri) as relay:
        settings = lab.settings(mlflow_tracking_uri=relay.url)
        client = type(lab.registry)(relay.url, retries=0)
        write = card.write

        def cut(*arguments: Any) -> str:
            relay.close()
            return str(write(*arguments))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(card, "write", cut)
            with pytest.raises(TrainingError, match=r"cannot be reached\. The package that was made lies in") as raised:
                train.train(lab.pipeline("iris", model=name), client, lab.engine, settings)
        relay.open()
    folder = Path(str(raised.value).partition("lies in ")[2].removesuffix("."))
    files = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert {"model.skops", "model.onnx", "contract.json", "model_card.md", "gates.json"} < files
    assert lab.train("iris", model=name) == 1


def test_a_missing_dataset_is_reported(lab: Lab) -> None:
    with pytest.raises(datasets.UnknownDatasetError, match="there are: "):
        lab.train("iris", data={"dataset": "gone", "target": "species"})


def test_training_leaves_the_database_unlocked(lab: Lab) -> None:
    with lab.engine.connect() as connection:
        assert connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)")).one()[0] == 0


def test_concurrent_trainings_share_one_experiment(lab: Lab, name: str) -> None:
    together = threading.Barrier(4)
    experiments: list[str] = []

    class Client(MlflowClient):
        """Creates no experiment before the others have looked for it, too."""

        def create_experiment(self, *arguments: Any, **keywords: Any) -> str:
            together.wait(10)
            return str(super().create_experiment(*arguments, **keywords))

    def look() -> None:
        experiments.append(tracking.experiment(Client(lab.tracking_uri, lab.tracking_uri), name))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(experiments) == 4
    assert len(set(experiments)) == 1
