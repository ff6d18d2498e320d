"""Logging of a training in MLflow: its run, the runs of its trials, the logged model and the registered version."""

import importlib.metadata
import math
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException, RestException
from mlflow.models import infer_signature

from labstack.model.contract import FILE_NAME, ONNX_FILE_NAME
from labstack.registry.client import MlflowRest, RegistryError, RegistryFailedError, RegistryUnreachableError
from labstack.settings import ROOT
from labstack.training import fingerprint, progress, promotion
from labstack.training.config import Pipeline
from labstack.training.gates import JudgedCandidate
from labstack.training.promotion import TrainingError
from labstack.training.search import Trial
from labstack.training.table import TrainingTable


@contextmanager
def connect(client: MlflowRest) -> Iterator[MlflowClient]:
    """Yield MLflow's own client for the same server, with the timeouts of ours; its errors become RegistryError.

    Sets the address for the whole process, as much of MLflow reads it only there.
    """
    mlflow.set_tracking_uri(client.url)
    mlflow.set_registry_uri(client.url)
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "20"
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "2"
    os.environ["MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR"] = "1"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    with registry_errors(client):
        yield MlflowClient(client.url, client.url)


@contextmanager
def registry_errors(client: MlflowRest) -> Iterator[None]:
    """Raise the errors of MLflow's own client as RegistryError."""
    try:
        yield
    except MlflowException as error:
        # MLflow raises one type for all errors; the error of requests that it was handling stays in the context
        if isinstance(error.__context__, requests.RequestException):
            raise RegistryUnreachableError(client.shown_url) from error
        raise RegistryError(error.message) from error
    except requests.RequestException as error:  # which MLflow does not convert for artifacts
        if error.response is None:
            raise RegistryUnreachableError(client.shown_url) from error
        status = error.response.status_code
        text = f"The MLflow server at {client.shown_url} rejected an artifact with status {status}."
        raise RegistryFailedError(text) from error


@contextmanager
def run(client: MlflowClient, model: str, tags: dict[str, str]) -> Iterator[str]:
    """Start a run of the model's experiment as MLflow's active run, and yield its id.

    At the end its status is set, FAILED or KILLED after an error, unless MLflow cannot be reached.
    """
    run_id = str(mlflow.start_run(experiment_id=experiment(client, model), tags=tags).info.run_id)
    try:
        yield run_id
    except BaseException as error:
        with suppress(MlflowException):
            mlflow.end_run("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    mlflow.end_run()


def experiment(client: MlflowClient, name: str) -> str:
    """Return the id of the model's experiment, created if needed. Raises TrainingError for one that is not usable."""
    existing = client.get_experiment_by_name(name)
    if existing is None:
        try:
            return str(client.create_experiment(name))
        except RestException:  # another training created it first, or it is rejected
            existing = client.get_experiment_by_name(name)
            if existing is None:
                raise
    if not existing.artifact_location.startswith("mlflow-artifacts:"):
        raise TrainingError(
            f"The experiment {name!r} keeps its artifacts at {existing.artifact_location}, not behind the MLflow "
            "server; MLflow sets this when an experiment is created. Rename it in the MLflow UI and train again."
        )
    if existing.lifecycle_stage != "active":
        raise TrainingError(f"The experiment {name!r} was deleted; restore it with: mlflow experiments restore")
    return str(existing.experiment_id)


@contextmanager
def trials(client: MlflowClient, pipeline: Pipeline, parent: str) -> Iterator[Callable[[Trial, int, int], None]]:
    """Yield a function that shows each trial and logs it, in a thread, as a child of the training's run."""
    experiment = client.get_run(parent).info.experiment_id
    logged: list[Future[None]] = []
    with progress.trials(pipeline.metric) as show, ThreadPoolExecutor(1) as executor:

        def watch(trial: Trial, ended: int, total: int) -> None:
            show(trial, ended, total)
            logged.append(executor.submit(_log_trial, client, pipeline, experiment, parent, trial))

        yield watch
    failed = sum(future.exception() is not None for future in logged)
    if failed:  # they are in the search's own database, and the training goes on
        progress.warn(f"{failed} of {len(logged)} trials could not be logged")


def _log_trial(client: MlflowClient, pipeline: Pipeline, experiment: str, parent: str, trial: Trial) -> None:
    began, ended = (int(moment.timestamp() * 1000) for moment in (trial.began, trial.ended))
    tags = {"mlflow.parentRunId": parent, "labstack.trial": str(trial.number), "labstack.state": trial.state}
    run = client.create_run(experiment, began, tags, run_name=f"trial {trial.number}").info.run_id
    params = {"estimator": trial.candidate.estimator} | {
        f"params.{name}": value for name, value in trial.chosen.items()
    }
    if trial.error:
        client.set_tag(run, "labstack.error", trial.error)
    metrics = [] if trial.score is None else [Metric(pipeline.metric, trial.score, ended, 0)]
    client.log_batch(run, metrics, [Param(name, value) for name, value in params.items()])
    client.set_terminated(run, "FAILED" if trial.error else "FINISHED", ended)


def register(client: MlflowClient, model: str, model_id: str, run_id: str, tags: dict[str, str]) -> int:
    """Register the logged model as the next version of the registered model; return its number."""
    try:
        client.create_registered_model(model)
    except RestException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    created = client.create_model_version(
        model, f"models:/{model_id}", run_id, tags=tags, model_id=model_id, await_creation_for=0
    )
    return int(created.version)


def log(
    pipeline: Pipeline, client: MlflowClient, table: TrainingTable, judged: JudgedCandidate, commit: str | None
) -> str:
    """Log the run and its model with signature, example and contract; return the id of the logged model."""
    result, packed = judged.result, judged.package
    mlflow.log_params(
        {
            "target": pipeline.data.target,
            "metric": pipeline.metric,
            "estimator": result.candidate.estimator,
            **promotion.split_params(pipeline, table),
            "train_rows": len(table.train),
            "test_rows": len(table.test),
            "trials": result.trials,
        }
        | {f"params.{name}": value for name, value in (result.candidate.params | result.chosen).items()}
    )
    ends = {f"{name}_low": low for name, (low, _) in judged.intervals.items()}
    ends |= {f"{name}_high": high for name, (_, high) in judged.intervals.items()}
    parity = {} if packed.onnx is None else {"onnx_parity": packed.onnx.parity}
    cross_validation = {} if result.score is None else {f"cv_{pipeline.metric}": result.score}
    defined = {name: value for name, value in ends.items() if not math.isnan(value)}
    mlflow.log_metrics(judged.metrics | defined | parity | cross_validation)
    mlflow.set_tags(
        lineage(commit) | {"mlflow.note.content": (packed.folder / "model_card.md").read_text(encoding="utf-8")}
    )
    _log_inputs(pipeline, table)
    for name in ("model_card.md", "gates.json"):
        mlflow.log_artifact(str(packed.folder / name))
    mlflow.log_artifacts(str(packed.folder / "plots"), "plots")
    example = table.frame.iloc[table.train[:5]]
    info = mlflow.sklearn.log_model(
        packed.whole,
        name=pipeline.model,
        signature=infer_signature(example, packed.whole.predict(example)),
        input_example=example,
        serialization_format="skops",
        skops_trusted_types=packed.trusted,
        # given, as MLflow would infer them by loading the model in another process
        pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in ("scikit-learn", "skops", "numpy")],
    )
    if info.signature is None:
        raise TrainingError("MLflow could not infer the model's signature.")
    for name in (ONNX_FILE_NAME, FILE_NAME, "model_card.md", "gates.json"):
        if (packed.folder / name).exists():
            client.log_model_artifact(info.model_id, str(packed.folder / name))
    return str(info.model_id)


def _log_inputs(pipeline: Pipeline, table: TrainingTable) -> None:
    """Log the source, number and digest of the rows as inputs of the run."""
    target = pipeline.data.target
    source = pipeline.data.dataset or str(pipeline.data)
    for context, rows, name in (("training", table.train, source), ("evaluation", table.test, f"{source}, held out")):
        frame = table.frame.iloc[rows].assign(**{target: table.target[rows]})
        dataset = from_pandas(frame, name=name, targets=target, digest=table.digest[:32])
        mlflow.log_input(dataset, context=context)


def lineage(commit: str | None) -> dict[str, str]:
    """Return tags that name the code and the environment of a run."""
    tags = {"labstack.code": fingerprint.code(), "labstack.lock": fingerprint.lock()}
    if commit is None and shutil.which("git"):
        process = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
        commit = process.stdout.strip() or None
    return tags | ({"mlflow.source.git.commit": commit} if commit else {})
