"""Gates: the rules that a candidate must pass to become production. They are functions of measurements."""

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
from labstack.training.evaluate import HeldOutPredictions, Scorer, groups_of, interval, predict, resamples
from labstack.training.onnx_export import TOLERANCE, runner
from labstack.training.package import Package
from labstack.training.search import SearchResult
from labstack.training.table import Indices, TrainingTable

LATENCY_RUNS = 50
EXPECTED_ROWS = 5_000  # at most, that expectations are checked on
OF_PRODUCTION = ("schema", "production")  # the gates that compare with production
ROUNDING = 1e-12  # of a prediction, which violates no expectation


@dataclass(frozen=True)
class Gate:
    """The verdict of a gate: its name, whether it passed, the reason in one line, and the figures behind it."""

    name: str
    passed: bool
    said: str
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Production:
    """Today's production version: its number, contract, and predictions of the same held-out rows.

    `rows` are the indices, among the held-out rows, of those that it takes. `predictions` is None when it takes none,
    for the reason in `why`; `doubt` says what makes the comparison unfair to the candidate.
    """

    number: int
    contract: Contract
    rows: Indices
    predictions: HeldOutPredictions | None
    why: str = ""
    doubt: str = ""


@dataclass(frozen=True)
class JudgedCandidate:
    """A candidate with its evaluation and the verdicts of its gates; `production` is what it was compared with."""

    result: SearchResult
    package: Package
    predictions: HeldOutPredictions
    scorer: Scorer
    production: Production | None
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    gates: list[Gate]

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)


def judge(
    pipeline: Pipeline, table: TrainingTable, package: Package, scorer: Scorer, production: Production | None
) -> list[Gate]:
    """Return the verdict of every gate on a candidate, whose predictions of the held-out rows the scorer holds."""
    verdicts = [*_thresholds(pipeline, scorer)]
    verdicts += [_slice(pipeline, table, scorer, rule) for rule in pipeline.gates.slices]
    verdicts += [_expectation(rule, table, package.core) for rule in pipeline.gates.expectations]
    verdicts += [_parity(pipeline, package), _latency(pipeline, table, package)]
    if production is not None:
        verdicts += _compare(pipeline, table, package, scorer, production)
    return _numbered(verdicts)


def judge_again(
    pipeline: Pipeline, table: TrainingTable, judged: JudgedCandidate, production: Production | None
) -> list[Gate]:
    """Return the verdicts on a candidate, of which those that compare with production are made again."""
    verdicts = [gate for gate in judged.gates if gate.name not in OF_PRODUCTION]
    if production is not None:
        verdicts += _compare(pipeline, table, judged.package, judged.scorer, production)
    return verdicts


def _numbered(verdicts: list[Gate]) -> list[Gate]:
    """Number the verdicts that share a name."""
    names = [gate.name for gate in verdicts]
    return [
        replace(gate, name=f"{gate.name} {names[: index + 1].count(gate.name)}") if names.count(gate.name) > 1 else gate
        for index, gate in enumerate(verdicts)
    ]


def _compare(
    pipeline: Pipeline, table: TrainingTable, package: Package, scorer: Scorer, production: Production
) -> list[Gate]:
    return [_schema(pipeline, package.contract, production), not_worse(pipeline, table, scorer, production)]


def not_worse(pipeline: Pipeline, table: TrainingTable, scorer: Scorer, production: Production) -> Gate:
    """Compare the candidate's metric with production's on the same rows.

    It passes when it is not worse, or when the lower end of the difference's interval is within the margin. The
    interval, at 0.95, is that of a paired bootstrap, which draws the same rows for both.
    """
    metric, name = pipeline.metric, f"version {production.number}"
    if production.predictions is None:
        return Gate("production", False, f"{production.why}, so the two cannot be compared")
    rows = production.rows
    baseline = Scorer(pipeline.task, table.target[table.test][rows], production.predictions)
    if metric not in baseline.names:
        return Gate("production", False, f"{name} gives no {metric}, so the two cannot be compared")
    sign = 1 if pipeline.more_is_better else -1
    candidate_score, score = scorer(metric, None if len(rows) == scorer.rows else rows), baseline(metric)
    groups = groups_of(pipeline, table)
    samples = resamples(len(rows), pipeline.split.seed, None if groups is None else groups[rows])
    differences = [sign * (scorer(metric, rows[sample]) - baseline(metric, sample)) for sample in samples]
    low, high = interval(differences)
    is_equal = math.isclose(candidate_score, score, rel_tol=1e-9)  # up to rounding
    difference = 0.0 if is_equal else sign * (candidate_score - score)
    passed = difference >= 0 or low >= -pipeline.gates.margin
    figures = {
        "candidate": candidate_score,
        "production": score,
        "difference": difference,
        "low": low,
        "high": high,
    }
    reason = _comparison(pipeline, figures, passed, name)
    if len(rows) < scorer.rows:
        reason += f"; on {len(rows):,} of {scorer.rows:,} rows, as {name} takes no others"
    return Gate("production", passed, reason + (f"; {production.doubt}" if production.doubt else ""), figures)


def _comparison(pipeline: Pipeline, figures: dict[str, float], passed: bool, name: str) -> str:
    candidate, production, difference, low, high = figures.values()
    relation = "better than" if difference > 0 else "equal to" if difference == 0 else "worse than"
    text = f"{pipeline.metric} {candidate:.4f} is {relation} {production:.4f} of {name}"
    text += f", by {difference:+.4f} [{low:+.4f}, {high:+.4f}]"
    if difference < 0:
        text += f", {'within' if passed else 'beyond'} the margin of {pipeline.gates.margin:g}"
    return text


def _thresholds(pipeline: Pipeline, scorer: Scorer) -> Iterator[Gate]:
    for metric, limit in pipeline.gates.thresholds.items():
        name = f"threshold {metric}"
        if metric not in scorer.names:
            yield Gate(name, False, f"the estimator gives no {metric}")
            continue
        value = scorer(metric)
        passed, relation = _meets(pipeline.task, metric, value, limit)
        yield Gate(name, passed, f"{metric} {value:.4f} {relation} {limit:g}", {"value": value, "limit": limit})


def _meets(task: str, metric: str, value: float, limit: float) -> tuple[bool, str]:
    """Return whether a value of a metric meets its limit, and the sign between the two."""
    more_is_better = METRICS[task][metric]
    passed = value >= limit if more_is_better else value <= limit
    return passed, ("≥" if passed else "<") if more_is_better else ("≤" if passed else ">")


def _slice(pipeline: Pipeline, table: TrainingTable, scorer: Scorer, rule: Slice) -> Gate:
    """Check the metric of every group of held-out rows that is large enough."""
    metric, name = rule.metric or pipeline.metric, f"slice {rule.column}"
    if metric not in scorer.names:
        return Gate(name, False, f"the estimator gives no {metric}")
    groups = table.column(rule.column).iloc[table.test]
    scores: dict[str, float] = {}
    skipped = 0
    for value in groups.dropna().unique():
        rows = np.flatnonzero(groups == value)
        score = scorer(metric, rows) if len(rows) >= rule.min_rows else math.nan
        if math.isnan(score):
            skipped += 1
        else:
            scores[str(value)] = score
    failed = [
        f"{score:.4f} of {rule.column} {value}"
        for value, score in scores.items()
        if not _meets(pipeline.task, metric, score, rule.limit)[0]
    ]
    note = f"; {skipped} groups have fewer than {rule.min_rows} rows, or one class" if skipped else ""
    if failed:
        return Gate(name, False, f"{metric} is beyond {rule.limit:g}: {', '.join(failed)}{note}", scores)
    if not scores:
        return Gate(name, True, f"no group has {rule.min_rows} rows, so none was checked")
    worst = (min if METRICS[pipeline.task][metric] else max)(scores.values())
    reason = f"{metric} of the worst of {len(scores)} groups is {worst:.4f}, within {rule.limit:g}{note}"
    return Gate(name, True, reason, scores)


def _expectation(rule: Expectation, table: TrainingTable, core: Any) -> Gate:
    """Check how predictions change when one feature changes and the others stay."""
    index = next(index for index, column in enumerate(table.columns) if column.name == rule.feature)
    column = table.columns[index]
    name = f"expectation {rule.feature}"
    if bool(column.categories) != (rule.swap is not None):
        kind, verb = ("a category", "swap") if column.categories else ("a number", "raise")
        return Gate(name, False, f"{rule.feature} is {kind}: {verb} it")
    if rule.class_ is not None and not hasattr(core, "predict_proba"):
        return Gate(name, False, "the estimator gives no probabilities")
    rows = table.matrix[table.test[:EXPECTED_ROWS]]
    before = _observed(rule, predict(core, rows))
    violated = np.zeros(len(rows), bool)
    for values in _changed_values(rule, table, index, rows):
        changed = rows.copy()
        changed[:, index] = values
        violated |= _violations(rule, before, _observed(rule, predict(core, changed)))
    held = 1 - float(violated.mean())
    reason = f"{rule}: held for {held:.1%} of {len(rows)} rows, {rule.share:.0%} are required"
    return Gate(name, held >= rule.share, reason, {"held": held, "share": rule.share})


def _changed_values(rule: Expectation, table: TrainingTable, index: int, rows: Matrix) -> list[npt.NDArray[np.float64]]:
    """Return the values to try for a feature: each category, or the numbers raised."""
    column = table.columns[index]
    if column.categories:
        return [np.full(len(rows), float(code)) for code in range(len(column.categories))]
    values = table.matrix[:, index]
    return [rows[:, index] + (rule.by or float(np.nanmax(values) - np.nanmin(values)) / 10)]


def _observed(rule: Expectation, predictions: HeldOutPredictions) -> npt.NDArray[Any]:
    """Return what a rule looks at: the number, the probability of its class or, without a class, the label."""
    if rule.class_ is not None and predictions.probabilities is not None:
        return predictions.probabilities[:, predictions.classes.index(rule.class_)]
    return predictions.outputs


def _violations(rule: Expectation, before: npt.NDArray[Any], after: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return a mask of the rows whose prediction changed against the rule."""
    if before.dtype.kind not in "fi":  # labels
        return np.asarray(before != after)
    change = after - before
    if rule.must == "not fall":
        return np.asarray(change < -rule.tolerance - ROUNDING)
    if rule.must == "not rise":
        return np.asarray(change > rule.tolerance + ROUNDING)
    return np.asarray(np.abs(change) > rule.tolerance + ROUNDING)


def _parity(pipeline: Pipeline, package: Package) -> Gate:
    if package.onnx is not None:
        reason = (
            f"{package.onnx.form}: all labels agree, outputs differ by {package.onnx.parity:.1e}, limit {TOLERANCE:g}"
        )
        return Gate("parity", True, reason, {"parity": package.onnx.parity})
    if pipeline.gates.onnx == "off":
        return Gate("parity", True, "ONNX is off: scikit-learn serves")
    reason = "no ONNX model predicts the same: scikit-learn serves"
    return Gate("parity", pipeline.gates.onnx == "preferred", reason)


def _latency(pipeline: Pipeline, table: TrainingTable, package: Package) -> Gate:
    """Measure the median time of predicting one row with the runtime that will serve it."""
    run = _runner(package)
    row = table.matrix[table.test[:1]]
    times = []
    for _ in range(LATENCY_RUNS):
        start = time.perf_counter()
        run(row)
        times.append((time.perf_counter() - start) * 1000)
    median, limit = statistics.median(times), pipeline.gates.latency_ms
    reason = f"{median:.2f} ms for one row by {package.runtime}, limit {limit:g} ms"
    return Gate("latency", median <= limit, reason, {"median_ms": median, "limit_ms": limit})


def _runner(package: Package) -> Callable[[Matrix], object]:
    if package.onnx is not None:
        return runner(package.onnx.model)
    has_probabilities = hasattr(package.core, "predict_proba")
    return package.core.predict_proba if has_probabilities else package.core.predict  # type: ignore[no-any-return]


def _schema(pipeline: Pipeline, contract: Contract, production: Production) -> Gate:
    """Check that callers of production can call the candidate in the same way."""
    broken = contract.breaks_with(production.contract)
    name = f"version {production.number}"
    if not broken:
        return Gate("schema", True, f"takes the fields of {name}, and answers in the same form")
    reason = f"{'; '.join(broken)}, unlike {name}"
    if pipeline.gates.allow_schema_change:
        return Gate("schema", True, f"{reason}; gates.allow_schema_change allows this")
    return Gate("schema", False, f"{reason}; gates.allow_schema_change would allow it")
