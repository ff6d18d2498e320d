"""Today's production beside a candidate, and what follows a promotion."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import requests
import structlog
from sqlalchemy import Engine

from labstack import registry, serialization, trial
from labstack.contract import Contract
from labstack.errors import LabError
from labstack.mlflow_rest import (
    MlflowRest,
    NotThereError,
    RegistryError,
    RegistryUnreachableError,
    TooLargeError,
    Version,
)
from labstack.settings import Settings, without_credentials
from labstack.store import audit
from labstack.training import evaluate
from labstack.training.config import Pipeline
from labstack.training.data import Table
from labstack.training.gates import Production

GATES_TAG, GATE_TAG = "labstack.gates", "labstack.gate."
PASSED, FAILED = "passed", "failed"
RELOAD_SECONDS = 35.0

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


def production(pipeline: Pipeline, client: MlflowRest, table: Table, settings: Settings) -> Production | None:
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
                serialization.load(incumbent.folder, settings.model_memory_bytes), rows.iloc[taken]
            )
        except (TypeError, ValueError) as error:
            why = f"version {number} does not predict these rows: {error}"
            return Production(number, incumbent.contract, nothing, None, why)
        doubt = "" if _held_back(pipeline, client, incumbent, table) else "it may have learnt from some of these rows"
        return Production(number, incumbent.contract, taken, predicted, doubt=doubt)


def split_params(pipeline: Pipeline, table: Table) -> dict[str, str]:
    """What decides which rows are held out, as parameters of a run."""
    return {
        "data": str(pipeline.data),
        "data_digest": table.digest,
        "split": " ".join(filter(None, (pipeline.split_by, pipeline.split.column))),
        "seed": str(pipeline.split.seed),
        "test_fraction": str(pipeline.split.test_fraction),
    }


def require_passed(client: MlflowRest, model: str, number: int) -> None:
    """Raise TrainingError when a version did not pass its gates, or was never judged."""
    tags = client.version(model, number).tags
    if tags.get(GATES_TAG) == PASSED:
        return
    failed = [
        f"{name.removeprefix(GATE_TAG)} {said}"
        for name, said in sorted(tags.items())
        if name.startswith(GATE_TAG) and said.startswith(FAILED)
    ]
    reason = "; ".join(failed) or "it was never judged by them"
    raise TrainingError(f"Version {number} of {model!r} has not passed its gates: {reason}. --force promotes it.")


def note_refusal(engine: Engine, model: str, number: int, reason: str) -> None:
    """Note in the audit that a version was refused a role."""
    audit.note(engine, "refused", model=model, version=number, actor=registry.actor(), reason=reason)


def require_promotable(client: MlflowRest, model: str, number: int, settings: Settings, *, force: bool) -> None:
    """Raise TrialError when a version cannot be served.

    Unless it is forced, or its gates allowed that, raise TrainingError when callers of production could not go on.
    """
    contract = require_servable(client, model, number, settings)
    if not force and registry.SCHEMA_CHANGE_TAG not in client.version(model, number).tags:
        _require_compatible(client, model, number, contract, settings, "production")


def require_canary(client: MlflowRest, model: str, number: int, settings: Settings) -> None:
    """Raise TrialError when a version cannot be served, and TrainingError when it breaks callers of production."""
    _require_compatible(client, model, number, require_servable(client, model, number, settings), settings, "a canary")


def require_servable(client: MlflowRest, model: str, number: int, settings: Settings) -> Contract:
    """The contract of a version that was fetched, loaded and tried. Raises TrialError when it cannot be served."""
    return trial.require_servable(client, client.version(model, number), settings)


def _require_compatible(
    client: MlflowRest, model: str, number: int, contract: Contract, settings: Settings, role: str
) -> None:
    production = registry.living_production(client, model)
    if production is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            known = trial.fetch_contract(client, production, Path(folder), settings)
        except RegistryUnreachableError:
            raise
        except (RegistryError, OSError, ValueError) as error:  # what cannot be read serves no caller
            log.warning("production not compared", model=model, version=production.number, error=str(error))
            return
    if broken := contract.breaks_with(known):
        raise TrainingError(
            f"Version {number} of {model!r} cannot be {role}: {'; '.join(broken)}, unlike version "
            f"{production.number} in production."
        )


def tell_api(settings: Settings) -> str:
    """Have the API look at the registry now; what came of it, in a line. One that is away follows by itself later."""
    if os.environ.get("CI"):
        return "the API is not told, as CI is set; it looks by itself every few seconds"
    url = f"{settings.api_url.rstrip('/')}/admin/reload"
    token = settings.api_admin_token
    headers = {"X-Admin-Token": token.get_secret_value()} if token else {}
    shown = without_credentials(settings.api_url)
    try:
        answer = requests.post(url, headers=headers, timeout=(3, RELOAD_SECONDS))
    except requests.RequestException:
        return f"the API at {shown} cannot be reached, and looks by itself when it is back"
    if answer.ok:
        return f"the API at {shown} follows"
    try:
        detail = str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"status {answer.status_code}"
    return f"the API at {shown} does not follow yet: {detail}"


def _held_back(pipeline: Pipeline, client: MlflowRest, incumbent: Incumbent, table: Table) -> bool:
    """Whether production was held back from the rows that it is judged on now."""
    return split_params(pipeline, table).items() <= client.run_of(incumbent.record).params.items()


@contextmanager
def _incumbent(client: MlflowRest, model: str, settings: Settings) -> Iterator[Incumbent | None]:
    """Production with its files, for as long as the context lasts; None when there is none."""
    record = registry.living_production(client, model)
    if record is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            read = trial.fetch(client, record, folder, settings, serialization.FILE_NAME)
        except (NotThereError, TooLargeError, OSError, ValueError) as error:
            raise TrainingError(f"Production version {record.number} of {model!r} cannot be read: {error}") from error
        yield Incumbent(record, read, folder)
