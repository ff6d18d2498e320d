"""One training run: rows, fit, evaluation, a logged and registered version, and its promotion when it earns it."""

import hashlib
import importlib.metadata
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import skops.io
import structlog
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException
from mlflow.models import infer_signature
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sqlalchemy import Engine

from labstack import registry, serialization
from labstack.contract import ONNX_FILE_NAME, Contract, Feature, Onnx, Sample
from labstack.mlflow_rest import MlflowRest, RegistryError, RegistryUnreachableError
from labstack.training import data, evaluate, onnx_export, promotion
from labstack.training.config import Pipeline
from labstack.training.promotion import TrainingError

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Outcome:
    """The version that a run registered, its metrics on the held-out rows, and whether and why it was promoted."""

    model: str
    version: int
    run_id: str
    metrics: dict[str, float]
    promoted: bool
    reason: str


def train(pipeline: Pipeline, client: MlflowRest, engine: Engine) -> Outcome:
    """Train, register, and promote the version if it is the model's first or better than production.

    Raises LabError; no role has moved then.
    """
    promotion.require_same_question(pipeline, client)
    split = data.load(engine, pipeline)
    log.info("rows read", model=pipeline.model, train=len(split.train_target), test=len(split.test_target))
    with _tracking(client) as tracking:
        experiment = _experiment(tracking, pipeline.model)
        with mlflow.start_run(experiment_id=experiment) as run:
            estimator, measured = _fit(pipeline, split)
            log.info("fitted and evaluated", model=pipeline.model, estimator=pipeline.estimator, **measured)
            _log_run(pipeline, estimator, split, measured)
            model_id = _log_model(pipeline, tracking, estimator, split)
            version = _register(tracking, pipeline.model, model_id, run.info.run_id)
    log.info("registered", model=pipeline.model, version=version)
    verdict = _judge_and_promote(pipeline, client, engine, version, measured, split)
    message = "promoted" if verdict.promote else "not promoted"
    log.info(message, model=pipeline.model, version=version, reason=verdict.reason)
    return Outcome(pipeline.model, version, run.info.run_id, measured, verdict.promote, verdict.reason)


@contextmanager
def _tracking(client: MlflowRest) -> Iterator[MlflowClient]:
    """MLflow's own client of the same server, for what is logged, as patient as ours; its faults are RegistryError.

    The address becomes the process's: much of MLflow takes it from there alone.
    """
    mlflow.set_tracking_uri(client.url)
    mlflow.set_registry_uri(client.url)
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "20"
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "2"
    os.environ["MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR"] = "1"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    try:
        yield MlflowClient(client.url, client.url)
    except MlflowException as error:
        if "API request to" in error.message:
            raise RegistryUnreachableError(client.shown_url) from error
        raise RegistryError(error.message) from error


def _judge_and_promote(
    pipeline: Pipeline,
    client: MlflowRest,
    engine: Engine,
    version: int,
    measured: dict[str, float],
    split: data.Split,
) -> promotion.Verdict:
    """Judge the version by production, and again whenever another training has moved production meanwhile."""
    while True:
        verdict = promotion.judge(pipeline, client, measured, split)
        if not verdict.promote:
            return verdict
        with suppress(registry.ProductionMovedError):
            registry.promote(
                client, engine, pipeline.model, version, reason=verdict.reason, instead_of=verdict.judged_by
            )
            return verdict


def _experiment(client: MlflowClient, name: str) -> str:
    """The id of the model's experiment, whose artifacts must go through the server."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name))
        except RestException:  # another training was quicker, or it is refused
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if not experiment.artifact_location.startswith("mlflow-artifacts:"):
        raise TrainingError(
            f"The experiment {name!r} keeps its artifacts at {experiment.artifact_location}, not behind the MLflow "
            "server; MLflow fixes that when an experiment is made. Rename it in the MLflow UI and train again."
        )
    if experiment.lifecycle_stage != "active":
        raise TrainingError(f"The experiment {name!r} was deleted; restore it with: mlflow experiments restore")
    return str(experiment.experiment_id)


def _fit(pipeline: Pipeline, split: data.Split) -> tuple[Any, dict[str, float]]:
    """The fitted scikit-learn pipeline, scaled features and then the estimator, and its metrics."""
    estimator = make_pipeline(StandardScaler(), pipeline.make_estimator())
    try:
        estimator.fit(split.train_features, split.train_target)
        return estimator, evaluate.measure(pipeline, estimator, split.test_features, split.test_target)
    except (TypeError, ValueError) as error:
        raise TrainingError(f"{pipeline.estimator} does not fit or predict these rows: {error}") from error


def _log_run(pipeline: Pipeline, estimator: Any, split: data.Split, measured: dict[str, float]) -> None:
    mlflow.log_params(
        {
            "target": pipeline.data.target,
            "estimator": pipeline.estimator,
            **promotion.split_params(pipeline),
            "train_rows": len(split.train_target),
            "test_rows": len(split.test_target),
        }
        | {f"params.{name}": value for name, value in pipeline.params.items()}
    )
    mlflow.log_metrics(measured)
    for name, figure in evaluate.plots(pipeline, estimator, split.test_features, split.test_target).items():
        mlflow.log_figure(figure, f"plots/{name}")


def _log_model(pipeline: Pipeline, client: MlflowClient, estimator: Any, split: data.Split) -> str:
    """Log the estimator with its signature, example and contract; the logged model's id."""
    example = split.train_features.head(5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / serialization.FILE_NAME
        skops.io.dump(estimator, path)
        info = mlflow.sklearn.log_model(
            estimator,
            name=pipeline.model,
            signature=infer_signature(example, estimator.predict(example)),
            input_example=example,
            serialization_format="skops",
            skops_trusted_types=serialization.trusted_types(path),
            # named, since MLflow would find them out by loading the model in another process
            pip_requirements=[
                f"{name}=={importlib.metadata.version(name)}" for name in ("scikit-learn", "skops", "numpy")
            ],
        )
        if info.signature is None:
            raise TrainingError("MLflow could not infer the model's signature.")
        exported = onnx_export.export(estimator, split.test_features)
        if exported is not None:
            (Path(folder) / ONNX_FILE_NAME).write_bytes(exported.model)
            client.log_model_artifact(info.model_id, str(Path(folder) / ONNX_FILE_NAME))
            mlflow.log_metric("onnx_parity", exported.parity)
        contract = _contract(pipeline, estimator, split, exported)
        client.log_model_artifact(info.model_id, str(contract.write(Path(folder))))
    return str(info.model_id)


def _register(client: MlflowClient, model: str, model_id: str, run_id: str) -> int:
    """Make the logged model the next version of the registered model; its number."""
    try:
        client.create_registered_model(model)
    except RestException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    created = client.create_model_version(model, f"models:/{model_id}", run_id, model_id=model_id, await_creation_for=0)
    return int(created.version)


def _contract(pipeline: Pipeline, estimator: Any, split: data.Split, exported: onnx_export.Export | None) -> Contract:
    features = split.train_features
    first = features.head(1)
    predicted = estimator.predict(first)[0]
    return Contract(
        task=pipeline.task,
        target=pipeline.data.target,
        features=tuple(
            Feature(name=str(name), minimum=float(np.min(column)), maximum=float(np.max(column)))
            for name, column in features.items()
        ),
        classes=tuple(map(str, estimator.classes_)) if pipeline.task == "classification" else (),
        sample=Sample(
            input={str(name): float(value) for name, value in first.iloc[0].items()},
            output=str(predicted) if pipeline.task == "classification" else float(predicted),
        ),
        onnx=exported
        and Onnx(sha256=hashlib.sha256(exported.model).hexdigest(), form=exported.form, parity=exported.parity),
    )
