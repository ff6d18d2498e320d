"""Today's production beside a candidate, and what follows a promotion."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from labstack.errors import LabError
from labstack.model import skops_file
from labstack.model.contract import Contract
from labstack.registry import trial
from labstack.registry.client import (
    MlflowRest,
    NotThereError,
    TooLargeError,
    Version,
)
from labstack.registry.roles import living_production
from labstack.settings import Settings
from labstack.training import evaluate
from labstack.training.config import Pipeline
from labstack.training.gates import Production
from labstack.training.table import TrainingTable

log = structlog.get_logger(__name__)


class TrainingError(LabError):
    """A training run cannot go on; the text says why. No role was moved."""


@dataclass(frozen=True)
class Incumbent:
    """Today's production version, its files in a folder."""

    record: Version
    contract: Contract
    folder: Path


def require_same_question(pipeline: Pipeline, client: MlflowRest, settings: Settings) -> None:
    """Raise TrainingError when production answers another question under the pipeline's model name."""
    with _incumbent(client, pipeline.model, settings) as incumbent:
        if incumbent is None:
            return
        asked = (pipeline.task, pipeline.data.target)
        if asked != (incumbent.contract.task, incumbent.contract.target):
            raise TrainingError(
                f"The model {pipeline.model!r} predicts {incumbent.contract.target} ({incumbent.contract.task}) in "
                f"production; a pipeline for {pipeline.data.target} ({pipeline.task}) needs a model name of its own."
            )


def production(pipeline: Pipeline, client: MlflowRest, table: TrainingTable, settings: Settings) -> Production | None:
    """Today's production and what it predicts of the held-out rows; None when there is none. Raises TrainingError."""
    with _incumbent(client, pipeline.model, settings) as incumbent:
        if incumbent is None:
            return None
        number = incumbent.record.number
        held_out = table.test
        names = [feature.name for feature in incumbent.contract.features]
        known = {*table.frame, *table.others}
        nothing = np.empty(0, np.intp)
        if missing := [name for name in names if name not in known]:
            why = f"version {number} takes {', '.join(missing)} too, which these rows do not hold"
            return Production(number, incumbent.contract, nothing, None, why)
        rows = table.frame.join(table.others).iloc[held_out][names]
        gaps = [feature.name for feature in incumbent.contract.features if not feature.missing]
        taken = np.flatnonzero(~rows[gaps].isna().any(axis=1))
        try:
            if not len(taken):
                raise ValueError("it takes none of these rows, which have missing values")
            predicted = evaluate.predict(
                skops_file.load(incumbent.folder, settings.model_memory_bytes), rows.iloc[taken]
            )
        except (TypeError, ValueError) as error:
            why = f"version {number} does not predict these rows: {error}"
            return Production(number, incumbent.contract, nothing, None, why)
        doubt = "" if _held_back(pipeline, client, incumbent, table) else "it may have learnt from some of these rows"
        return Production(number, incumbent.contract, taken, predicted, doubt=doubt)


def split_params(pipeline: Pipeline, table: TrainingTable) -> dict[str, str]:
    """What decides which rows are held out, as parameters of a run."""
    return {
        "data": str(pipeline.data),
        "data_digest": table.digest,
        "split": " ".join(filter(None, (pipeline.split_by, pipeline.split.column))),
        "seed": str(pipeline.split.seed),
        "test_fraction": str(pipeline.split.test_fraction),
    }


def _held_back(pipeline: Pipeline, client: MlflowRest, incumbent: Incumbent, table: TrainingTable) -> bool:
    """Whether production was held back from the rows that it is judged on now."""
    return split_params(pipeline, table).items() <= client.run_of(incumbent.record).params.items()


@contextmanager
def _incumbent(client: MlflowRest, model: str, settings: Settings) -> Iterator[Incumbent | None]:
    """Production with its files, for as long as the context lasts; None when there is none."""
    record = living_production(client, model)
    if record is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            read = trial.fetch(client, record, folder, settings, skops_file.FILE_NAME)
        except (NotThereError, TooLargeError, OSError, ValueError) as error:
            raise TrainingError(f"Production version {record.number} of {model!r} cannot be read: {error}") from error
        yield Incumbent(record, read, folder)
