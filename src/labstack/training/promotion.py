"""Whether a new version takes production's place."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient, artifacts

from labstack import registry, serialization
from labstack.contract import Contract
from labstack.errors import LabError
from labstack.training import data, evaluate
from labstack.training.config import METRICS, Pipeline


class TrainingError(LabError):
    """A training run cannot go on; the text says why. No role was moved."""


@dataclass(frozen=True)
class Incumbent:
    """Today's production version, its files in a folder."""

    version: int
    contract: Contract
    folder: Path


def require_same_question(pipeline: Pipeline, client: MlflowClient) -> None:
    """Raise TrainingError when production answers another question under the pipeline's model name."""
    with _incumbent(client, pipeline.model) as incumbent:
        if incumbent is None:
            return
        asked = (pipeline.task, pipeline.data.target)
        if asked != (incumbent.contract.task, incumbent.contract.target):
            raise TrainingError(
                f"The model {pipeline.model!r} predicts {incumbent.contract.target} ({incumbent.contract.task}) in "
                f"production; a pipeline for {pipeline.data.target} ({pipeline.task}) needs a model name of its own."
            )


def judge(pipeline: Pipeline, client: MlflowClient, measured: dict[str, float], split: data.Split) -> tuple[bool, str]:
    """Whether the new version becomes production, judged beside it on the same held-out rows; and why."""
    metric = pipeline.metric
    mine = measured[metric]
    with _incumbent(client, pipeline.model) as incumbent:
        if incumbent is None:
            return True, f"first version of this model, {metric} {mine:.4f}"
        other = f"version {incumbent.version}"
        names = [feature.name for feature in incumbent.contract.features]
        if set(names) != set(split.test_features):
            return False, f"{other} takes other fields, {', '.join(names)}, so the two cannot be compared"
        estimator = serialization.load(incumbent.folder)
        theirs = evaluate.measure(pipeline, estimator, split.test_features[names], split.test_target)
    if metric not in theirs:
        return False, f"{other} gives no {metric} to compare with"
    more_is_better = METRICS[pipeline.task][metric]
    better = mine > theirs[metric] if more_is_better else mine < theirs[metric]
    sign = (">" if more_is_better else "<") if better else ("not >" if more_is_better else "not <")
    fair = _held_back(pipeline, client, incumbent)
    note = "" if fair else ", which learnt from some of these rows: its split was another"
    return better, f"{metric} {mine:.4f} {sign} {theirs[metric]:.4f} of {other}{note}"


def split_params(pipeline: Pipeline) -> dict[str, str]:
    """What decides which rows are held out, as parameters of a run."""
    return {
        "dataset": pipeline.data.dataset,
        "seed": str(pipeline.split.seed),
        "test_fraction": str(pipeline.split.test_fraction),
    }


def _held_back(pipeline: Pipeline, client: MlflowClient, incumbent: Incumbent) -> bool:
    """Whether production was held back from the rows that it is judged on now."""
    with registry.answering(client):
        run_id = registry.version(client, pipeline.model, incumbent.version).run_id
        params = client.get_run(run_id).data.params if run_id else {}
    return split_params(pipeline).items() <= params.items()


@contextmanager
def _incumbent(client: MlflowClient, model: str) -> Iterator[Incumbent | None]:
    """Production with its files, for as long as the context lasts; None when there is none."""
    version = registry.roles(client, model).production
    if version is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            with registry.answering(client):
                path = Path(artifacts.download_artifacts(f"models:/{model}/{version}", dst_path=folder))
            contract = Contract.read(path)
        except (OSError, ValueError) as error:
            raise TrainingError(f"Production version {version} of {model!r} cannot be read: {error}") from error
        yield Incumbent(version, contract, path)
