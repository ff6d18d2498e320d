"""Drift: exactly the columns that were shifted have drifted."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from labstack.model.contract import Contract, Feature, Matrix, Sample
from labstack.monitoring import drift
from labstack.monitoring.counts import LATENCY_EDGES, Counts, Layout
from labstack.monitoring.drift import Drift, Thresholds
from labstack.training.package import reference_of_names, reference_of_numbers

THRESHOLDS = Thresholds(watch=0.1, drifted=0.25, minimum_rows=200)
NAMES = ("normal", "skewed", "rounded", "uniform")
PLANS = ("basic", "plus", "pro")
CLASSES = ("no", "yes")


def rows(rng: np.random.Generator, number: int) -> Matrix:
    """Four numbers and a category, a tenth of the second number missing."""
    matrix = np.column_stack(
        [
            rng.normal(50, 10, number),
            rng.lognormal(3, 1, number),
            rng.normal(5, 1, number).round(1),
            rng.uniform(-1, 1, number),
            rng.choice(3, number, p=(0.6, 0.3, 0.1)),
        ]
    )
    matrix[rng.random(number) < 0.1, 1] = np.nan
    return matrix


def contract(training: Matrix, outputs: list[str]) -> Contract:
    """The contract that training makes from its rows."""
    features = [
        Feature(
            name=name,
            minimum=float(np.nanmin(column)),
            maximum=float(np.nanmax(column)),
            missing=name == "skewed",
            reference=reference_of_numbers(column),
        )
        for name, column in zip(NAMES, training.T, strict=False)
    ]
    plan = Feature(name="plan", categories=PLANS, reference=reference_of_names(training[:, 4], range(3)))
    return Contract(
        task="classification",
        target="churned",
        features=(*features, plan),
        classes=CLASSES,
        sample=Sample(input={}, output="no"),
        reference=reference_of_names(outputs, CLASSES),
    )


def random_outputs(rng: np.random.Generator, number: int, yes: float = 0.3) -> list[str]:
    return ["yes" if share < yes else "no" for share in rng.random(number)]


def counted(layout: Layout, matrix: Matrix, outputs: list[str], parts: int = 3) -> Counts:
    """The counts of the rows by several workers."""
    total = layout.empty()
    for part, part_outputs in zip(np.array_split(matrix, parts), np.array_split(np.array(outputs), parts), strict=True):
        counts = layout.empty()
        features, sums, squares = layout.count(part)
        counts.features += features
        counts.sums += sums
        counts.squares += squares
        counts.outputs += layout.count_outputs(part_outputs.tolist())
        counts.rows += len(part)
        total.add(Counts.loads(counts.dumps()))
    return total


def verdicts(layout: Layout, counts: Counts, thresholds: Thresholds = THRESHOLDS) -> dict[str, str]:
    drifts = [*drift.features(layout, counts, thresholds), drift.predictions(layout, counts, thresholds)]
    return {column.name: column.verdict for column in drifts}


@pytest.fixture(scope="module")
def layout() -> Layout:
    rng = np.random.default_rng(1)
    return Layout(contract(rows(rng, 2000), random_outputs(rng, 500)))


SHIFTS: dict[str, Any] = {
    "normal": lambda column, _rng: column + 10,
    "skewed": lambda column, rng: np.where(rng.random(len(column)) < 0.5, np.nan, column),
    "rounded": lambda column, _rng: column * 1.5,
    "uniform": lambda column, rng: np.where(rng.random(len(column)) < 0.2, 7.0, column),
    "plan": lambda column, rng: rng.choice(3, len(column), p=(0.2, 0.3, 0.5)),
}


@pytest.mark.parametrize("shifted", [(), *((name,) for name in SHIFTS), ("normal", "plan"), tuple(SHIFTS)])
def test_exactly_what_is_shifted_has_drifted(layout: Layout, shifted: tuple[str, ...]) -> None:
    rng = np.random.default_rng(2)
    matrix = rows(rng, 1000)
    for number, name in enumerate((*NAMES, "plan")):
        if name in shifted:
            matrix[:, number] = SHIFTS[name](matrix[:, number], rng)
    result = verdicts(layout, counted(layout, matrix, random_outputs(rng, 1000)))
    assert {name for name, verdict in result.items() if verdict == "drifted"} == set(shifted)
    assert {name for name, verdict in result.items() if verdict == "watch"} == set()


def test_predictions_drift_too(layout: Layout) -> None:
    rng = np.random.default_rng(3)
    result = verdicts(layout, counted(layout, rows(rng, 1000), random_outputs(rng, 1000, yes=0.7)))
    assert [name for name, verdict in result.items() if verdict != "stable"] == ["churned"]


def test_a_small_shift_is_to_be_watched(layout: Layout) -> None:
    rng = np.random.default_rng(4)
    matrix = rows(rng, 5000)
    matrix[:, 0] += 4
    assert verdicts(layout, counted(layout, matrix, random_outputs(rng, 5000)))["normal"] == "watch"


def test_false_alarms_are_rare() -> None:
    """A thousand data sets of several sizes, each with its model and a window of the same distribution."""
    alarms, windows, columns = 0, 0, 0
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        training, seen = (112, 1000, 10_000)[seed % 3], (200, 500, 3000)[seed // 3 % 3]
        own = Layout(contract(rows(rng, training), random_outputs(rng, max(training // 4, 30))))
        result = verdicts(own, counted(own, rows(rng, seen), random_outputs(rng, seen), parts=1))
        wrong = sum(verdict != "stable" for verdict in result.values())
        alarms, windows, columns = alarms + wrong, windows + bool(wrong), columns + len(result)
    assert columns == 6000
    assert alarms <= 6, f"{alarms} of {columns} columns, in {windows} of 1,000 windows"


def test_too_few_rows_have_no_verdict_and_no_probabilities(layout: Layout) -> None:
    rng = np.random.default_rng(5)
    counts = counted(layout, rows(rng, 150) + np.array([100, 100, 100, 100, 0]), random_outputs(rng, 150))
    drifts = [*drift.features(layout, counts, THRESHOLDS), drift.predictions(layout, counts, THRESHOLDS)]
    assert {column.verdict for column in drifts} == {"too few rows"} == {drift.worst(drifts)}
    assert {column.ks_p for column in drifts} == {column.chi_square_p for column in drifts} == {None}
    assert drifts[0].psi is not None
    assert drift.worst([]) == "too few rows"
    assert set(verdicts(layout, layout.empty()).values()) == {"too few rows"}


def test_a_contract_without_references_has_no_verdict(layout: Layout) -> None:
    rng = np.random.default_rng(6)
    whole = contract(rows(rng, 100), random_outputs(rng, 100))
    bare = [feature.model_copy(update={"reference": None}) for feature in whole.features]
    older = Layout(whole.model_copy(update={"features": tuple(bare), "reference": None}))
    counts = counted(older, rows(rng, 500), random_outputs(rng, 500))
    assert set(verdicts(older, counts).values()) == {"too few rows"}
    assert drift.features(older, counts, THRESHOLDS)[0].rows == 500


def test_the_numbers_are_those_of_the_rows(layout: Layout) -> None:
    rng = np.random.default_rng(7)
    matrix = rows(rng, 800)
    matrix[:40, 3] = 9
    normal, skewed, rounded, uniform, plan = drift.features(
        layout, counted(layout, matrix, random_outputs(rng, 800)), THRESHOLDS
    )
    assert normal.mean == pytest.approx(matrix[:, 0].mean())
    assert normal.std == pytest.approx(matrix[:, 0].std())
    assert skewed.missing_rate == np.isnan(matrix[:, 1]).mean()
    assert skewed.mean == pytest.approx(np.nanmean(matrix[:, 1]))
    assert uniform.out_of_range_rate == pytest.approx(0.05, abs=0.01)
    assert (plan.kind, plan.ks, plan.mean) == ("category", None, None)
    assert rounded.reference_mean == pytest.approx(5, abs=0.1)
    assert {column.rows for column in (normal, skewed, rounded, uniform, plan)} == {800}


def test_the_distance_is_close_to_that_of_the_values(layout: Layout) -> None:
    rng = np.random.default_rng(1)
    training = rows(rng, 2000)[:, 0]
    matrix = rows(np.random.default_rng(8), 1000)
    matrix[:, 0] += 5
    normal: Drift = drift.features(layout, counted(layout, matrix, ["no"] * 1000), THRESHOLDS)[0]
    theirs = stats.ks_2samp(training, matrix[:, 0])
    assert normal.ks == pytest.approx(theirs.statistic, abs=0.03)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=False, width=32), min_size=1, max_size=50))
def test_every_value_falls_into_one_bin(numbers: list[float]) -> None:
    training = np.array([[value] for value in (-1.0, 0.0, 0.0, 0.0, 2.0, 3.0)])
    feature = Feature(name="x", minimum=-1, maximum=3, missing=True, reference=reference_of_numbers(training[:, 0]))
    layout = Layout(
        Contract(task="regression", target="y", features=(feature,), classes=(), sample=Sample(input={}, output=1.0))
    )
    bins, _, _ = layout.count(np.array(numbers)[:, None])
    assert bins.sum() == len(numbers)
    assert bins[-1] == sum(map(math.isnan, numbers))
    assert bins[0] == sum(value < -1 for value in numbers)
    assert bins[-2] == sum(value > 3 for value in numbers)
    learnt_bins, _, _ = layout.count(training)
    assert learnt_bins.tolist() == layout.features[0].reference.tolist()


@given(st.lists(st.floats(1e-6, 100), min_size=1, max_size=200), st.sampled_from((0.5, 0.9, 0.99)))
def test_quantiles_are_within_a_bin_of_the_real_ones(seconds: list[float], share: float) -> None:
    layout = Layout(
        Contract(task="regression", target="y", features=(), classes=(), sample=Sample(input={}, output=1.0))
    )
    counts = layout.empty()
    places = np.searchsorted(LATENCY_EDGES, seconds)
    counts.latency += np.bincount(places, minlength=len(LATENCY_EDGES) + 1)
    latency = counts.quantile(share)
    real = float(np.quantile(seconds, share, method="inverted_cdf"))
    assert latency is not None
    position = int(np.searchsorted(LATENCY_EDGES, real))
    assert latency <= LATENCY_EDGES[min(position, len(LATENCY_EDGES) - 1)] + 1e-12
    assert latency >= (LATENCY_EDGES[position - 1] if position else 0) - 1e-12
    assert layout.empty().quantile(share) is None
    assert counts.slower(1e-9) == pytest.approx(len(seconds), rel=0.01)
    if real <= LATENCY_EDGES[-1]:
        assert counts.slower(latency) == pytest.approx((1 - share) * len(seconds), abs=1e-6)
