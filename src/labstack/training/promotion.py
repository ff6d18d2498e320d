"""Whether a new version takes production's place."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from labstack import contract, registry, serialization
from labstack.contract import Contract
from labstack.errors import LabError
from labstack.mlflow_rest import MlflowRest, NotThereError
from labstack.training import data, evaluate
from labstack.training.config import METRICS, Pipeline


class TrainingError(LabError):
    """A training run cannot go on; the text says why. No role was moved."""


@dataclass(frozen=True)
class Incumbent:
    """Today's production version, its files in a folder."""

    version: int
    run_id: str | None
    contract: Contract
    folder: Path


def require_same_question(pipeline: Pipeline, client: MlflowRest) -> None:
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


@dataclass(frozen=True)
class Verdict:
    """Whether a new version becomes production, why, and which version it was judged by, if there was one."""

    promote: bool
    reason: str
    judged_by: int | None


def judge(pipeline: Pipeline, client: MlflowRest, measured: dict[str, float], split: data.Split) -> Verdict:
    """Judge a new version beside production, on the same held-out rows."""
    metric = pipeline.metric
    mine = measured[metric]
    with _incumbent(client, pipeline.model) as incumbent:
        if incumbent is None:
            return Verdict(True, f"the model had no production version, {metric} {mine:.4f}", None)
        other = f"version {incumbent.version}"
        names = [feature.name for feature in incumbent.contract.features]
        if set(names) != set(split.test_features):
            reason = f"{other} takes other fields, {', '.join(names)}, so the two cannot be compared"
            return Verdict(False, reason, incumbent.version)
        estimator = serialization.load(incumbent.folder)
        theirs = evaluate.measure(pipeline, estimator, split.test_features[names], split.test_target)
    if metric not in theirs:
        return Verdict(False, f"{other} gives no {metric} to compare with", incumbent.version)
    more_is_better = METRICS[pipeline.task][metric]
    better = mine > theirs[metric] if more_is_better else mine < theirs[metric]
    sign = (">" if more_is_better else "<") if better else ("not >" if more_is_better else "not <")
    fair = _held_back(pipeline, client, incumbent)
    note = "" if fair else ", which learnt from some of these rows: its split was another"
    return Verdict(better, f"{metric} {mine:.4f} {sign} {theirs[metric]:.4f} of {other}{note}", incumbent.version)


def split_params(pipeline: Pipeline) -> dict[str, str]:
    """What decides which rows are held out, as parameters of a run."""
    return {
        "dataset": pipeline.data.dataset,
        "seed": str(pipeline.split.seed),
        "test_fraction": str(pipeline.split.test_fraction),
    }


def _held_back(pipeline: Pipeline, client: MlflowRest, incumbent: Incumbent) -> bool:
    """Whether production was held back from the rows that it is judged on now."""
    params = client.run(incumbent.run_id).params if incumbent.run_id else {}
    return split_params(pipeline).items() <= params.items()


@contextmanager
def _incumbent(client: MlflowRest, model: str) -> Iterator[Incumbent | None]:
    """Production with its files, for as long as the context lasts; None when there is none."""
    record = registry.living_production(client, model)
    if record is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            for file in (contract.FILE_NAME, serialization.FILE_NAME):
                client.download(model, record.number, file, folder)
            read = Contract.read(folder)
        except (NotThereError, OSError, ValueError) as error:
            raise TrainingError(f"Production version {record.number} of {model!r} cannot be read: {error}") from error
        yield Incumbent(record.number, record.run_id, read, folder)
