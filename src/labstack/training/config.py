"""The pipeline file: YAML that says how a model is made, checked before anything else happens."""

import importlib
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from sklearn.base import BaseEstimator, is_classifier, is_regressor

from labstack.errors import LabError
from labstack.settings import ROOT

FOLDER = ROOT / "src" / "pipelines"

# the metrics of each task, and whether more is better
METRICS = {
    "classification": {"accuracy": True, "f1_macro": True, "log_loss": False},
    "regression": {"rmse": False, "mae": False, "r2": True},
}


class PipelineError(LabError):
    """A pipeline file is missing or wrong; the text names the file and each key."""


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e-3 is a number, which YAML 1.1 takes for text."""


_Loader.add_implicit_resolver(  # type: ignore[no-untyped-call]
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


class Data(BaseModel):
    """A dataset of the store; every column that is not the target is a feature."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    target: str


class Split(BaseModel):
    """The part of the rows that is held out for evaluation, and the seed that draws it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    test_fraction: float = Field(0.25, gt=0, lt=1)
    seed: int = Field(42, ge=0, lt=2**32)


class Pipeline(BaseModel):
    """How a model is made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")
    task: Literal["classification", "regression"]
    data: Data
    split: Split = Split()
    estimator: str
    params: dict[str, Any] = {}
    metric: str

    @field_validator("estimator")
    @classmethod
    def _is_of_scikit_learn(cls, path: str) -> str:
        module, _, name = path.rpartition(".")
        if module.partition(".")[0] != "sklearn":
            raise ValueError("an estimator is named by its import path in scikit-learn, such as sklearn.svm.SVC")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"scikit-learn has no {path}") from error
        if not (isinstance(found, type) and issubclass(found, BaseEstimator)):
            raise ValueError(f"{path} is no estimator")
        return path

    @model_validator(mode="after")
    def _fits_its_task(self) -> "Pipeline":
        if self.metric not in METRICS[self.task]:
            raise ValueError(
                f"metric: a {self.task} is measured by {', '.join(METRICS[self.task])}; not by {self.metric}"
            )
        estimator = self.make_estimator()
        if not (is_classifier(estimator) if self.task == "classification" else is_regressor(estimator)):
            raise ValueError(f"estimator: {self.estimator} does not do {self.task}")
        if self.metric == "log_loss" and not hasattr(estimator, "predict_proba"):
            raise ValueError(f"metric: {self.estimator} with these params gives no probabilities, which log_loss needs")
        return self

    def make_estimator(self) -> Any:
        """A new estimator with its parameters. Raises ValueError when it has no such parameter."""
        module, _, name = self.estimator.rpartition(".")
        try:
            return getattr(importlib.import_module(module), name)(**self.params)
        except TypeError as error:
            raise ValueError(f"params: {error}") from error


def names() -> list[str]:
    """The pipelines that come with the lab."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(name: str) -> Pipeline:
    """A pipeline by its name in src/pipelines, or by the path of its file. Raises PipelineError."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(
            f"There is no pipeline {name!r}; there are: {', '.join(names())}, or a file's path."
        ) from error
    try:
        return Pipeline.model_validate(yaml.load(text, _Loader))  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        raise PipelineError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        faults = "; ".join(
            ": ".join(filter(None, [".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, ")]))
            for fault in error.errors()
        )
        raise PipelineError(f"{path}: {faults}") from error
