"""The pipeline file: YAML that describes how to train a model, validated before anything else happens."""

import importlib
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator, model_validator
from sklearn.base import BaseEstimator, is_classifier, is_regressor

from labstack.errors import LabError
from labstack.settings import ROOT
from labstack.training import filters

FOLDER = ROOT / "src" / "pipelines"
MAX_BYTES = 1 << 20  # of a pipeline file
MAX_NODES = 100_000  # keys, values and lists of a file, counted again for each alias

# the metrics of each task; True when a higher value is better
METRICS = {
    "classification": {
        "accuracy": True,
        "balanced_accuracy": True,
        "f1_macro": True,
        "roc_auc": True,
        "log_loss": False,
    },
    "regression": {"rmse": False, "mae": False, "r2": True},
}
ESTIMATOR_PATH = re.compile(
    r"sklearn(\.(?!tests|externals|conftest)[a-z]\w*)+\.[A-Za-z]\w*", re.ASCII
)  # public modules only
SCALARS = {bool, int, float, str, type(None)}
PROBABILITY_METRICS = ("roc_auc", "log_loss")


class PipelineError(LabError):
    """A pipeline file is missing or wrong; the text names the file and each key."""


class _Loader(yaml.SafeLoader):
    """A safe loader of limited YAML, in which 1e-3 is a number; YAML 1.1 takes it for text."""

    def get_single_node(self) -> yaml.Node | None:
        """Return the root node. Raises ConstructorError when aliases multiply the nodes beyond MAX_NODES."""
        node = super().get_single_node()
        pending, count = [node], 0
        while pending:
            current, count = pending.pop(), count + 1
            if count > MAX_NODES:
                raise yaml.constructor.ConstructorError(None, None, f"it has more than {MAX_NODES:,} parts")
            if isinstance(current, yaml.MappingNode):
                pending += [child for pair in current.value for child in pair]
            elif isinstance(current, yaml.SequenceNode):
                pending += current.value
        return node


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """Construct a mapping. Raises ConstructorError for a repeated key, of which YAML's own loader takes the last."""
    loader.flatten_mapping(node)
    seen: set[object] = set()
    for key, _ in node.value:
        if key.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
        seen.add(key.value)
    try:
        return dict(loader.construct_mapping(node, deep=True))
    except (ValueError, TypeError) as error:
        raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_implicit_resolver(  # type: ignore[no-untyped-call]
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


class PipelineSection(BaseModel):
    """A section of the file. Unknown keys are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Sql(PipelineSection):
    """Rows of a database that SQLAlchemy supports. `$NAME` in the URL stands for a variable of the environment."""

    url: str
    query: str


class Data(PipelineSection):
    """The source of the rows, the target column and the feature columns; by default all others are features."""

    dataset: str | None = None
    csv: Path | None = None
    parquet: Path | None = None
    sql: Sql | None = None
    target: str
    features: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()
    filter: str | None = Field(None, description="A condition that rows must meet; see labstack.training.filters.")

    @field_validator("filter")
    @classmethod
    def _is_allowed(cls, text: str | None) -> str | None:
        if text is not None:
            filters.parse(text)
        return text

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        if sum(source is not None for source in (self.dataset, self.csv, self.parquet, self.sql)) != 1:
            raise ValueError("exactly one of dataset, csv, parquet and sql is needed")
        if self.features is not None and self.target in self.features:
            raise ValueError(f"features: the target {self.target!r} cannot be a feature")
        if self.features is not None and len(set(self.features)) < len(self.features):
            raise ValueError("features: a name is given twice")
        return self

    def __str__(self) -> str:
        if self.sql is not None:
            return "an SQL query"
        return f"dataset {self.dataset!r}" if self.dataset is not None else str(self.csv or self.parquet)

    @property
    def title(self) -> str:
        """The source, as the start of a sentence; a path stays as it is."""
        return str(self) if self.csv or self.parquet else str(self)[0].upper() + str(self)[1:]


class Split(PipelineSection):
    """The way rows are held out for evaluation.

    `stratified`, the default for classification, keeps the shares of the classes; `time` holds out the latest rows by a
    column; `group` holds out whole groups of rows.
    """

    by: Literal["random", "stratified", "time", "group"] | None = None
    column: str | None = None
    test_fraction: float = Field(0.25, gt=0, lt=1)
    seed: int = Field(42, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _column_where_needed(self) -> "Split":
        if (self.by in ("time", "group")) != (self.column is not None):
            raise ValueError("column: time and group need one, random and stratified take none")
        return self


class Preprocessing(PipelineSection):
    """Preparation of the features; a step that no column needs is skipped."""

    impute: Literal["median", "mean", "most_frequent", "none"] = "median"
    scale: Literal["standard", "minmax", "robust", "none"] = "standard"
    encode: Literal["one_hot", "ordinal"] = "one_hot"


class Range(PipelineSection):
    """Numbers from low to high, both included; integers when both are integers."""

    low: int | float = Field(allow_inf_nan=False)
    high: int | float = Field(allow_inf_nan=False)
    log: bool = False
    step: int | float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _is_valid(self) -> "Range":
        if not self.low < self.high:
            raise ValueError("low must be less than high")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log: low must be more than 0, and there is no step")
        return self


Choices = Annotated[
    Annotated[Range, Tag("range")] | Annotated[tuple[Any, ...], Tag("list")],
    Discriminator(lambda value: "range" if isinstance(value, dict | Range) else "list"),
]


class Candidate(PipelineSection):
    """An estimator of scikit-learn by its import path, with fixed parameters and parameters to search."""

    estimator: str
    params: dict[str, Any] = {}
    search: dict[str, Choices] = {}

    @field_validator("estimator")
    @classmethod
    def _is_of_scikit_learn(cls, path: str) -> str:
        module, _, name = path.rpartition(".")
        if not ESTIMATOR_PATH.fullmatch(path):
            raise ValueError("give an estimator by its import path in scikit-learn, such as sklearn.svm.SVC")
        try:
            estimator = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"scikit-learn has no {path}") from error
        if not (isinstance(estimator, type) and issubclass(estimator, BaseEstimator)):
            raise ValueError(f"{path} is no estimator")  # noqa: TRY004  # pydantic takes ValueError
        return path

    @model_validator(mode="after")
    def _has_its_parameters(self) -> "Candidate":
        known = self.make().get_params()
        for name, choices in self.search.items():
            if name not in known:
                raise ValueError(f"search: {self.name} has no parameter {name!r}; it has: {', '.join(known)}")
            if name in self.params:
                raise ValueError(f"search: {name!r} is fixed in params")
            if choices == () or (isinstance(choices, tuple) and not set(map(type, choices)) <= SCALARS):
                raise ValueError(f"search: {name!r} needs a list of values, or low and high")
        return self

    @property
    def name(self) -> str:
        return self.estimator.rpartition(".")[2]

    def make(self, chosen: dict[str, Any] | None = None) -> Any:
        """Return a new estimator with the fixed and the chosen parameters. Raises ValueError when it rejects them."""
        module, _, name = self.estimator.rpartition(".")
        try:
            return getattr(importlib.import_module(module), name)(**self.params | (chosen or {}))
        except Exception as error:  # an estimator may raise any type
            raise ValueError(f"params: {error}") from error


class Search(PipelineSection):
    """The limits of the search for the best candidate and parameters, and its cross-validation."""

    trials: int = Field(20, ge=1, le=100_000)
    seconds: float | None = Field(None, gt=0)
    folds: int = Field(5, ge=2, le=50)
    prune: bool = True
    processes: int = Field(1, ge=1, le=64)


class Expectation(PipelineSection):
    """A rule for predictions of held-out rows when one feature changes and the others stay.

    `raise` adds `by` to a number, by default a tenth of its range; `swap` tries each other category. For a
    classification, `class` names the class whose probability is checked.
    """

    raise_: str | None = Field(None, alias="raise")
    by: float | None = Field(None, gt=0)
    swap: str | None = None
    must: Literal["not fall", "not rise", "not change"]
    class_: str | None = Field(None, alias="class")
    tolerance: float = Field(0.0, ge=0, description="By how much a prediction may violate the rule.")
    share: float = Field(1.0, gt=0, le=1, description="The share of rows for which the rule must hold.")

    @model_validator(mode="after")
    def _changes_one(self) -> "Expectation":
        if (self.raise_ is None) == (self.swap is None):
            raise ValueError("exactly one of raise and swap is needed")
        if self.swap is not None and (self.by is not None or self.must != "not change"):
            raise ValueError("swap: categories have no order, so that only must: not change is possible")
        return self

    @property
    def feature(self) -> str:
        return self.raise_ or self.swap or ""

    def __str__(self) -> str:
        verb = f"raising {self.raise_}" if self.raise_ else f"swapping {self.swap}"
        output = f"the probability of {self.class_}" if self.class_ else "the prediction"
        return f"{verb}, {output} must {self.must}"


class Slice(PipelineSection):
    """A limit of a metric for each group of rows that share a value of a column: the worst value that passes."""

    column: str
    limit: float
    metric: str | None = None
    min_rows: int = Field(20, ge=1)


class Gates(PipelineSection):
    """The rules that a candidate must pass before it may become production."""

    thresholds: dict[str, float] = {}
    margin: float = Field(0.0, ge=0, description="How much worse than production the metric may be, in its unit.")
    expectations: tuple[Expectation, ...] = ()
    slices: tuple[Slice, ...] = ()
    onnx: Literal["preferred", "required", "off"] = "preferred"
    latency_ms: float = Field(50.0, gt=0, description="The limit of the median time to predict one row.")
    allow_schema_change: bool = False


class Pipeline(PipelineSection):
    """A pipeline file: the training, the gates and the promotion of a model."""

    model: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")
    task: Literal["classification", "regression"]
    data: Data
    split: Split = Split()
    preprocessing: Preprocessing = Preprocessing()
    candidates: tuple[Candidate, ...]
    search: Search = Search()
    metric: str
    gates: Gates = Gates()
    approval: Literal["auto", "ask", "manual"] = "auto"
    after_promotion: Literal["reload", "nothing"] = "reload"

    @model_validator(mode="after")
    def _fits_its_task(self) -> "Pipeline":
        if not self.candidates:
            raise ValueError("candidates: at least one is needed")
        known = METRICS[self.task]
        metrics = [("metric", self.metric), *(("gates.thresholds", name) for name in self.gates.thresholds)]
        metrics += [("gates.slices.metric", rule.metric or self.metric) for rule in self.gates.slices]
        for key, metric in metrics:
            if metric not in known:
                raise ValueError(f"{key}: a {self.task} is measured by {', '.join(known)}; not by {metric}")
        classifies = self.task == "classification"
        if self.split.by == "stratified" and not classifies:
            raise ValueError("split.by: a regression has no classes to be stratified by")
        for number, candidate in enumerate(self.candidates):
            estimator = candidate.make()
            try:
                fits = is_classifier(estimator) if classifies else is_regressor(estimator)
            except Exception as error:  # a wrapper asks its inner estimator, which may be none
                raise ValueError(f"candidates.{number}.params: {error}") from error
            if not fits:
                raise ValueError(f"candidates.{number}.estimator: {candidate.estimator} does not do {self.task}")
            if self.metric in PROBABILITY_METRICS and not hasattr(estimator, "predict_proba"):
                raise ValueError(
                    f"metric: {candidate.estimator} with these params gives no probabilities, which {self.metric} needs"
                )
        for rule in self.gates.expectations:
            if rule.class_ is not None and not classifies:
                raise ValueError("gates.expectations.class: a regression has no classes")
            if rule.class_ is None and classifies and rule.must != "not change":
                raise ValueError(f"gates.expectations.class: which class's probability must {rule.must}?")
        return self

    @cached_property
    def more_is_better(self) -> bool:
        return METRICS[self.task][self.metric]

    @property
    def needs_search(self) -> bool:
        """True when there is more than one candidate, or a parameter to choose."""
        return len(self.candidates) > 1 or any(candidate.search for candidate in self.candidates)

    @property
    def split_by(self) -> str:
        """The way the rows are split, with the task's default."""
        return self.split.by or ("stratified" if self.task == "classification" else "random")


def names() -> list[str]:
    """Return the names of the pipelines in src/pipelines."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(name: str) -> Pipeline:
    """Read a pipeline by its name in src/pipelines, or by the path of its file. Raises PipelineError.

    Paths of tables in the file are relative to its folder.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(
            f"There is no pipeline {name!r}; there are: {', '.join(names())}, or a file's path."
        ) from error
    if len(content) > MAX_BYTES:
        raise PipelineError(f"{path} is no pipeline: it is larger than {MAX_BYTES:,} bytes.")
    try:
        pipeline = Pipeline.model_validate(yaml.load(text, _Loader))  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:  # its own text quotes the file, which may contain a password
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise PipelineError(f"{path}{line} is not YAML: {problem or 'it cannot be read'}.") from None
    except RecursionError as error:
        raise PipelineError(f"{path} is not YAML: it is nested too deeply.") from error
    except ValidationError as error:
        raise PipelineError(f"{path}: {'; '.join(dict.fromkeys(map(_message, error.errors())))}") from error
    tables = {kind: path.parent / table for kind in ("csv", "parquet") if (table := getattr(pipeline.data, kind))}
    return pipeline.model_copy(update={"data": pipeline.data.model_copy(update=tables)})


def _message(details: Any) -> str:
    """Return one error of pydantic as people read it: the key, and what is wrong or allowed."""
    key = ".".join(str(part) for part in details["loc"] if part not in ("range", "list"))
    reason = details["ctx"]["error"] if details["type"] == "value_error" else details["msg"]
    return f"{key}: {reason}" if key else str(reason)
