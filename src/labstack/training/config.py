"""The pipeline file: YAML that says how a model is made, checked before anything else happens."""

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
MAX_PARTS = 100_000  # keys, values and lists of a file, those counted again that an alias repeats

# the metrics of each task, and whether more is better
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
OF_SCIKIT_LEARN = re.compile(r"sklearn(\.(?!tests|externals|conftest)[a-z]\w*)+\.[A-Za-z]\w*", re.ASCII)  # in public
SCALARS = {bool, int, float, str, type(None)}
OF_PROBABILITIES = ("roc_auc", "log_loss")


class PipelineError(LabError):
    """A pipeline file is missing or wrong; the text names the file and each key."""


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e-3 is a number, which YAML 1.1 takes for text."""

    def get_single_node(self) -> yaml.Node | None:
        """The file's parts, when they are not too many with those that an alias repeats."""
        node = super().get_single_node()
        open_, count = [node], 0
        while open_:
            part, count = open_.pop(), count + 1
            if count > MAX_PARTS:
                raise yaml.constructor.ConstructorError(None, None, f"it has more than {MAX_PARTS:,} parts")
            if isinstance(part, yaml.MappingNode):
                open_ += [node for pair in part.value for node in pair]
            elif isinstance(part, yaml.SequenceNode):
                open_ += part.value
        return node


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """A mapping; YAML's own loader takes the last of two equal keys without a word."""
    loader.flatten_mapping(node)
    seen: set[object] = set()
    for key, _ in node.value:
        if key.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is said twice", key.start_mark)
        seen.add(key.value)
    try:
        return dict(loader.construct_mapping(node, deep=True))
    except (ValueError, TypeError) as error:
        raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_implicit_resolver(  # type: ignore[no-untyped-call]
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


class Part(BaseModel):
    """A part of the file: what it does not know, it refuses."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Sql(Part):
    """Rows of any database that SQLAlchemy reaches; `$NAME` in the URL stands for a variable of the environment."""

    url: str
    query: str


class Data(Part):
    """Where rows come from, which column is the target, and which are features; by default all others."""

    dataset: str | None = None
    csv: Path | None = None
    parquet: Path | None = None
    sql: Sql | None = None
    target: str
    features: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()
    filter: str | None = Field(None, description="Which rows: a condition, as labstack.training.filters reads it.")

    @field_validator("filter")
    @classmethod
    def _is_allowed(cls, text: str | None) -> str | None:
        if text is not None:
            filters.parse(text)
        return text

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        if sum(source is not None for source in (self.dataset, self.csv, self.parquet, self.sql)) != 1:
            raise ValueError("one of dataset, csv, parquet and sql is needed, and no other beside it")
        if self.features is not None and self.target in self.features:
            raise ValueError(f"features: the target {self.target!r} cannot be a feature")
        if self.features is not None and len(set(self.features)) < len(self.features):
            raise ValueError("features: each is named once")
        return self

    def __str__(self) -> str:
        if self.sql is not None:
            return "an SQL query"
        return f"dataset {self.dataset!r}" if self.dataset is not None else str(self.csv or self.parquet)


class Split(Part):
    """The part of the rows that is held out for evaluation, and how it is drawn.

    `stratified` keeps the classes' shares, and is what a classification does by default; `time` holds out the latest
    rows by a column, `group` whole groups of rows.
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


class Preprocessing(Part):
    """What is done to features before they are learnt from; what is not needed is left out."""

    impute: Literal["median", "mean", "most_frequent", "none"] = "median"
    scale: Literal["standard", "minmax", "robust", "none"] = "standard"
    encode: Literal["one_hot", "ordinal"] = "one_hot"


class Range(Part):
    """Numbers from low to high, both included; whole ones where both are."""

    low: int | float = Field(allow_inf_nan=False)
    high: int | float = Field(allow_inf_nan=False)
    log: bool = False
    step: int | float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _is_one(self) -> "Range":
        if not self.low < self.high:
            raise ValueError("low must be less than high")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log: low must be more than 0, and there is no step")
        return self


Choices = Annotated[
    Annotated[Range, Tag("range")] | Annotated[tuple[Any, ...], Tag("list")],
    Discriminator(lambda given: "range" if isinstance(given, dict | Range) else "list"),
]


class Candidate(Part):
    """An estimator of scikit-learn by its import path, with fixed parameters and others that are searched."""

    estimator: str
    params: dict[str, Any] = {}
    search: dict[str, Choices] = {}

    @field_validator("estimator")
    @classmethod
    def _is_of_scikit_learn(cls, path: str) -> str:
        module, _, name = path.rpartition(".")
        if not OF_SCIKIT_LEARN.fullmatch(path):
            raise ValueError("an estimator is named by its import path in scikit-learn, such as sklearn.svm.SVC")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"scikit-learn has no {path}") from error
        if not (isinstance(found, type) and issubclass(found, BaseEstimator)):
            raise ValueError(f"{path} is no estimator")  # noqa: TRY004  # pydantic turns it into a problem of the file
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
        """A new estimator with its parameters and those that were chosen. Raises ValueError where it has none such."""
        module, _, name = self.estimator.rpartition(".")
        try:
            return getattr(importlib.import_module(module), name)(**self.params | (chosen or {}))
        except Exception as error:  # an estimator may refuse its parameters in any way
            raise ValueError(f"params: {error}") from error


class Search(Part):
    """How long the best candidate and parameters are searched, by cross-validation on the training rows."""

    trials: int = Field(20, ge=1, le=100_000)
    seconds: float | None = Field(None, gt=0)
    folds: int = Field(5, ge=2, le=50)
    prune: bool = True
    processes: int = Field(1, ge=1, le=64)


class Expectation(Part):
    """What must become of predictions when one feature of the held-out rows changes and all else stays.

    `raise` adds `by`, a tenth of the feature's range by default; `swap` puts each other category in. Of a
    classification `class` names the class whose probability is meant.
    """

    raise_: str | None = Field(None, alias="raise")
    by: float | None = Field(None, gt=0)
    swap: str | None = None
    must: Literal["not fall", "not rise", "not change"]
    class_: str | None = Field(None, alias="class")
    tolerance: float = Field(0.0, ge=0, description="How far a prediction may go the wrong way.")
    share: float = Field(1.0, gt=0, le=1, description="Of the rows, for which it must hold.")

    @model_validator(mode="after")
    def _changes_one(self) -> "Expectation":
        if (self.raise_ is None) == (self.swap is None):
            raise ValueError("raise a feature, or swap one")
        if self.swap is not None and (self.by is not None or self.must != "not change"):
            raise ValueError("swap: categories have no order, so all that can be asked is must: not change")
        return self

    @property
    def feature(self) -> str:
        return self.raise_ or self.swap or ""

    def __str__(self) -> str:
        verb = f"raising {self.raise_}" if self.raise_ else f"swapping {self.swap}"
        of = f"the probability of {self.class_}" if self.class_ else "the prediction"
        return f"{verb}, {of} must {self.must}"


class Slice(Part):
    """A floor, or for metrics of which less is better a ceiling, for each group of rows with one value of a column."""

    column: str
    limit: float
    metric: str | None = None
    min_rows: int = Field(20, ge=1)


class Gates(Part):
    """What a candidate must pass before it may become production."""

    thresholds: dict[str, float] = {}
    margin: float = Field(0.0, ge=0, description="How much worse than production's the metric may be, in its unit.")
    expectations: tuple[Expectation, ...] = ()
    slices: tuple[Slice, ...] = ()
    onnx: Literal["preferred", "required", "off"] = "preferred"
    latency_ms: float = Field(50.0, gt=0, description="Of one row, the median, in this process.")
    allow_schema_change: bool = False


class Pipeline(Part):
    """How a model is made."""

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
        asked = [("metric", self.metric), *(("gates.thresholds", name) for name in self.gates.thresholds)]
        for place, metric in asked + [("gates.slices.metric", one.metric or self.metric) for one in self.gates.slices]:
            if metric not in known:
                raise ValueError(f"{place}: a {self.task} is measured by {', '.join(known)}; not by {metric}")
        classifies = self.task == "classification"
        if self.split.by == "stratified" and not classifies:
            raise ValueError("split.by: a regression has no classes to be stratified by")
        for number, candidate in enumerate(self.candidates):
            estimator = candidate.make()
            try:
                fits = is_classifier(estimator) if classifies else is_regressor(estimator)
            except Exception as error:  # one that asks another, which is none
                raise ValueError(f"candidates.{number}.params: {error}") from error
            if not fits:
                raise ValueError(f"candidates.{number}.estimator: {candidate.estimator} does not do {self.task}")
            if self.metric in OF_PROBABILITIES and not hasattr(estimator, "predict_proba"):
                raise ValueError(
                    f"metric: {candidate.estimator} with these params gives no probabilities, which {self.metric} needs"
                )
        for wish in self.gates.expectations:
            if wish.class_ is not None and not classifies:
                raise ValueError("gates.expectations.class: a regression has no classes")
            if wish.class_ is None and classifies and wish.must != "not change":
                raise ValueError(f"gates.expectations.class: which class's probability must {wish.must}?")
        return self

    @cached_property
    def more_is_better(self) -> bool:
        return METRICS[self.task][self.metric]

    @property
    def split_by(self) -> str:
        """How the rows are split, said or not."""
        return self.split.by or ("stratified" if self.task == "classification" else "random")


def names() -> list[str]:
    """The pipelines that come with the lab."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(name: str) -> Pipeline:
    """A pipeline by its name in src/pipelines, or by the path of its file. Raises PipelineError.

    The path of a table in the file is one from the file's own folder.
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
    except yaml.YAMLError as error:  # whose own text quotes the file, which may hold a password
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise PipelineError(f"{path}{place} is not YAML: {problem or 'it cannot be read'}.") from None
    except RecursionError as error:
        raise PipelineError(f"{path} is not YAML: its parts lie too deep in each other.") from error
    except ValidationError as error:
        raise PipelineError(f"{path}: {'; '.join(dict.fromkeys(map(_told, error.errors())))}") from error
    tables = {kind: path.parent / table for kind in ("csv", "parquet") if (table := getattr(pipeline.data, kind))}
    return pipeline.model_copy(update={"data": pipeline.data.model_copy(update=tables)})


def _told(fault: Any) -> str:
    """A fault as people read it: the key, and what is wrong or allowed."""
    place = ".".join(str(part) for part in fault["loc"] if part not in ("range", "list"))
    return ": ".join(filter(None, [place, fault["msg"].removeprefix("Value error, ")]))
