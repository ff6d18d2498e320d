"""Gates: the rules that a candidate must pass before it may become production. Functions of what was measured."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from labstack.model.contract import Contract, Matrix
from labstack.training.config import METRICS, Expectation, Pipeline, Slice
from labstack.training.evaluate import Predictions, Scorer, groups_of, interval, predict, resamples
from labstack.training.onnx_export import TOLERANCE, runner
from labstack.training.package import Package
from labstack.training.search import SearchResult
from labstack.training.table import Indices, TrainingTable

LATENCY_RUNS = 50
EXPECTED_ROWS = 5_000  # at most, that expectations are tried on


@dataclass(frozen=True)
class Gate:
    """A gate's verdict: whether it was passed, why in one line, and the figures it was judged by."""

    name: str
    passed: bool
    said: str
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Production:
    """Today's production version: its number, its contract, and what it predicts of the same held-out rows.

    `rows` are the places, among the held-out rows, of those that it takes. `predicted` is None where it takes none,
    with the reason in `why`; `doubt` says what is unfair to the candidate.
    """

    number: int
    contract: Contract
    rows: Indices
    predicted: Predictions | None
    why: str = ""
    doubt: str = ""


@dataclass(frozen=True)
class JudgedCandidate:
    """A candidate that was evaluated, with all that people look at."""

    found: SearchResult
    package: Package
    predicted: Predictions
    scorer: Scorer
    production: "Production | None"
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    gates: list[Gate]

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)


def judge(
    pipeline: Pipeline, table: TrainingTable, package: Package, scorer: Scorer, production: Production | None
) -> list[Gate]:
    """The verdict of every gate on a candidate, whose predictions of the held-out rows the scorer holds."""
    found = [*_thresholds(pipeline, scorer), *_slices(pipeline, table, scorer)]
    found += [_expectation(one, table, package.core) for one in pipeline.gates.expectations]
    found += [_parity(pipeline, package), _latency(pipeline, table, package)]
    if production is not None:
        found += beside(pipeline, table, package, scorer, production)
    names = [gate.name for gate in found]
    return [
        replace(gate, name=f"{gate.name} {names[: place + 1].count(gate.name)}") if names.count(gate.name) > 1 else gate
        for place, gate in enumerate(found)
    ]


def beside(
    pipeline: Pipeline, table: TrainingTable, package: Package, scorer: Scorer, production: Production
) -> list[Gate]:
    """The verdicts that depend on what is in production."""
    return [_schema(pipeline, package.contract, production), not_worse(pipeline, table, scorer, production)]


def not_worse(pipeline: Pipeline, table: TrainingTable, scorer: Scorer, production: Production) -> Gate:
    """Whether the candidate's metric is at least production's on the same rows, or surely within the margin.

    The paired bootstrap draws the same rows for both; `surely` is the lower end of its interval at 0.95.
    """
    metric, other = pipeline.metric, f"version {production.number}"
    if production.predicted is None:
        return Gate("production", False, f"{production.why}, so the two cannot be compared")
    both = production.rows
    theirs = Scorer(pipeline.task, table.target[table.test][both], production.predicted)
    if metric not in theirs.names:
        return Gate("production", False, f"{other} gives no {metric}, so the two cannot be compared")
    sign = 1 if pipeline.more_is_better else -1
    mine, its = scorer(metric, None if len(both) == scorer.rows else both), theirs(metric)
    groups = groups_of(pipeline, table)
    samples = resamples(len(both), pipeline.split.seed, None if groups is None else groups[both])
    drawn = [sign * (scorer(metric, both[rows]) - theirs(metric, rows)) for rows in samples]
    low, high = interval(drawn)
    better = 0.0 if math.isclose(mine, its, rel_tol=1e-9) else sign * (mine - its)  # the same, but for rounding
    passed = better >= 0 or low >= -pipeline.gates.margin
    word = "better than" if better > 0 else "equal to" if better == 0 else "worse than"
    said = f"{metric} {mine:.4f} is {word} {its:.4f} of {other}, by {better:+.4f} [{low:+.4f}, {high:+.4f}]"
    if better < 0:
        said += f", {'within' if passed else 'beyond'} the margin of {pipeline.gates.margin:g}"
    if len(both) < scorer.rows:
        said += f"; on {len(both):,} of {scorer.rows:,} rows, as {other} takes no others"
    said += f"; {production.doubt}" if production.doubt else ""
    figures = {"candidate": mine, "production": its, "difference": better, "low": low, "high": high}
    return Gate("production", passed, said, figures)


def _thresholds(pipeline: Pipeline, scorer: Scorer) -> Iterator[Gate]:
    for metric, limit in pipeline.gates.thresholds.items():
        name = f"threshold {metric}"
        if metric not in scorer.names:
            yield Gate(name, False, f"the estimator gives no {metric}")
            continue
        value = scorer(metric)
        passed, relation = _holds(pipeline.task, metric, value, limit)
        yield Gate(name, passed, f"{metric} {value:.4f} {relation} {limit:g}", {"value": value, "limit": limit})


def _holds(task: str, metric: str, value: float, limit: float) -> tuple[bool, str]:
    more_is_better = METRICS[task][metric]
    passed = value >= limit if more_is_better else value <= limit
    return passed, ("≥" if passed else "<") if more_is_better else ("≤" if passed else ">")


def _slices(pipeline: Pipeline, table: TrainingTable, scorer: Scorer) -> Iterator[Gate]:
    for one in pipeline.gates.slices:
        yield _slice(pipeline, table, scorer, one)


def _slice(pipeline: Pipeline, table: TrainingTable, scorer: Scorer, one: Slice) -> Gate:
    """The metric of every group of held-out rows that is large enough."""
    metric, name = one.metric or pipeline.metric, f"slice {one.column}"
    if metric not in scorer.names:
        return Gate(name, False, f"the estimator gives no {metric}")
    groups = table.column(one.column).iloc[table.test]
    figures: dict[str, float] = {}
    failed = []
    small = 0
    for value in groups.dropna().unique():
        rows = np.flatnonzero(groups == value)
        score = scorer(metric, rows) if len(rows) >= one.min_rows else math.nan
        if math.isnan(score):
            small += 1
            continue
        figures[str(value)] = score
        if not _holds(pipeline.task, metric, score, one.limit)[0]:
            failed.append(f"{score:.4f} of {one.column} {value}")
    note = f"; {small} groups have fewer than {one.min_rows} rows, or one class" if small else ""
    if failed:
        return Gate(name, False, f"{metric} is beyond {one.limit:g}: {', '.join(failed)}{note}", figures)
    if not figures:
        return Gate(name, True, f"no group has {one.min_rows} rows, so that nothing can be said")
    worst = (min if METRICS[pipeline.task][metric] else max)(figures.values())
    said = f"{metric} of the worst of {len(figures)} groups is {worst:.4f}, within {one.limit:g}{note}"
    return Gate(name, True, said, figures)


def _expectation(one: Expectation, table: TrainingTable, core: Any) -> Gate:
    """Whether predictions go where they should when one feature changes, and all else stays."""
    place = next(place for place, column in enumerate(table.columns) if column.name == one.feature)
    column = table.columns[place]
    name = f"expectation {one.feature}"
    if bool(column.categories) != (one.swap is not None):
        kind, verb = ("a category", "swap") if column.categories else ("a number", "raise")
        return Gate(name, False, f"{one.feature} is {kind}: {verb} it")
    if one.class_ is not None and not hasattr(core, "predict_proba"):
        return Gate(name, False, "the estimator gives no probabilities")
    rows = table.matrix[table.test[:EXPECTED_ROWS]]
    if column.categories:
        values = [np.full(len(rows), float(code)) for code in range(len(column.categories))]
    else:
        by = one.by or float(np.nanmax(table.matrix[:, place]) - np.nanmin(table.matrix[:, place])) / 10
        values = [rows[:, place] + by]
    first = _value(one, predict(core, rows))
    wrong = np.zeros(len(rows), bool)
    for changed in values:
        wrong |= _wrong(one, first, _value(one, predict(core, _with(rows, place, changed))))
    held = 1 - float(wrong.mean())
    passed = held >= one.share
    said = f"{one}: held for {held:.1%} of {len(rows)} rows, {one.share:.0%} are asked for"
    return Gate(name, passed, said, {"held": held, "share": one.share})


def _with(rows: Matrix, place: int, values: npt.NDArray[np.float64]) -> Matrix:
    changed = rows.copy()
    changed[:, place] = values
    return changed


def _wrong(one: Expectation, first: npt.NDArray[Any], then: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """The rows whose prediction moved as it must not."""
    if first.dtype.kind not in "fi":  # labels
        return np.asarray(first != then)
    moved = then - first
    if one.must == "not fall":
        return np.asarray(moved < -one.tolerance - 1e-12)
    if one.must == "not rise":
        return np.asarray(moved > one.tolerance + 1e-12)
    return np.asarray(np.abs(moved) > one.tolerance + 1e-12)


def _value(one: Expectation, predicted: Predictions) -> npt.NDArray[Any]:
    """What of a prediction is looked at: the number, the class's probability or, where none is named, the label."""
    if one.class_ is not None and predicted.probabilities is not None:
        return predicted.probabilities[:, predicted.classes.index(one.class_)]
    return predicted.outputs


def _parity(pipeline: Pipeline, package: Package) -> Gate:
    if package.onnx is not None:
        said = f"{package.onnx.form}: all labels agree, and outputs within {package.onnx.parity:.1e} of {TOLERANCE:g}"
        return Gate("parity", True, said, {"parity": package.onnx.parity})
    if pipeline.gates.onnx == "off":
        return Gate("parity", True, "no ONNX model is wanted: scikit-learn serves")
    said = "no ONNX model predicts the same: scikit-learn serves"
    return Gate("parity", pipeline.gates.onnx == "preferred", said)


def _latency(pipeline: Pipeline, table: TrainingTable, package: Package) -> Gate:
    """The median time of predicting one row, by what will serve it."""
    run = _runner(package)
    row = table.matrix[table.test[:1]]
    took = []
    for _ in range(LATENCY_RUNS):
        began = time.perf_counter()
        run(row)
        took.append((time.perf_counter() - began) * 1000)
    median, limit = statistics.median(took), pipeline.gates.latency_ms
    said = f"{median:.2f} ms for one row by {package.runtime}, of {limit:g} ms"
    return Gate("latency", median <= limit, said, {"median_ms": median, "limit_ms": limit})


def _runner(package: Package) -> Callable[[Matrix], object]:
    if package.onnx is not None:
        return runner(package.onnx.model)
    gives = hasattr(package.core, "predict_proba")
    return package.core.predict_proba if gives else package.core.predict  # type: ignore[no-any-return]


def _schema(pipeline: Pipeline, contract: Contract, production: Production) -> Gate:
    """Whether whoever calls production now can go on as before."""
    broken = contract.breaks_with(production.contract)
    other = f"version {production.number}"
    if not broken:
        return Gate("schema", True, f"takes what {other} takes, and answers as it does")
    said = f"{'; '.join(broken)}, unlike {other}"
    if pipeline.gates.allow_schema_change:
        return Gate("schema", True, f"{said}; gates.allow_schema_change says that this may be")
    return Gate("schema", False, f"{said}; gates.allow_schema_change would allow it")
