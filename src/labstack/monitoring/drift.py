"""Drift: the distance of what a version reads and predicts in a window from training.

A verdict needs both an effect that is large enough to matter (PSI) and a test that rules out chance: Kolmogorov-Smirnov
for numbers, which a little noise on rounded values does not mislead, and chi-square for categories.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from labstack.monitoring.counts import Bins, Counts, Ints, Layout
from labstack.monitoring.statistics import chi_square, kolmogorov_smirnov, kolmogorov_smirnov_p, psi

Verdict = Literal["stable", "watch", "drifted", "too few rows"]
VERDICTS: tuple[Verdict, ...] = ("too few rows", "stable", "watch", "drifted")  # the worst comes last
BARS = 12  # of a histogram
MOST_NAMES = 20
SIGNIFICANCE = 0.001  # windows are tested all day: with 0.05 there would be a false alarm every hour


@dataclass(frozen=True)
class Thresholds:
    """The PSI from which a column is to be watched and has drifted, and the rows that a verdict needs."""

    watch: float
    drifted: float
    minimum_rows: int


@dataclass(frozen=True)
class Drift:
    """The drift of one column; None for what does not apply to it, or cannot be known from so few rows."""

    name: str
    kind: Literal["number", "category"]
    verdict: Verdict
    rows: int
    reference_rows: int
    psi: float | None = None
    ks: float | None = None
    ks_p: float | None = None
    chi_square: float | None = None
    chi_square_p: float | None = None
    missing_rate: float | None = None
    reference_missing_rate: float | None = None
    out_of_range_rate: float | None = None
    mean: float | None = None
    std: float | None = None
    reference_mean: float | None = None
    reference_std: float | None = None


def features(layout: Layout, counts: Counts, thresholds: Thresholds) -> list[Drift]:
    """Return the drift of each feature."""
    return [
        _drift(bins, layout.of_feature(counts, number), thresholds, counts.sums[number], counts.squares[number])
        for number, bins in enumerate(layout.features)
    ]


def predictions(layout: Layout, counts: Counts, thresholds: Thresholds) -> Drift:
    """Return the drift of the predictions, against those for held-out rows in training."""
    return _drift(layout.predictions, counts.outputs, thresholds)


def worst(drifts: Sequence[Drift]) -> Verdict:
    """Return the worst of several verdicts."""
    return max((drift.verdict for drift in drifts), key=VERDICTS.index, default="too few rows")


@dataclass(frozen=True)
class Histogram:
    """The shares of training's values and of those in a window, in named bars."""

    bars: list[str]
    reference: list[float]
    now: list[float]


def histogram(bins: Bins, now: Ints) -> Histogram:
    """Return a column's bars: one for each category, or bars of equal width, as if values lay evenly in each bin.

    Values out of training's range and missing values have bars where there are any.
    """
    if bins.names:
        names, sides = list(bins.names), [bins.reference, now]
        if bins.missing:
            names.append("missing")
        bars = [side[: len(names)].astype(float).tolist() for side in sides]
    else:
        names, bars = _even_bars(bins, now)
    used = [bar for bar in range(len(names)) if bar < MOST_NAMES or any(side[bar] for side in bars)]
    totals = [max(sum(side), 1.0) for side in bars]
    reference, current = ([side[bar] / total for bar in used] for side, total in zip(bars, totals, strict=True))
    return Histogram([names[bar] for bar in used], reference, current)


def _even_bars(bins: Bins, now: Ints) -> tuple[list[str], list[list[float]]]:
    """Return the names of bars of equal width, and the heights of training's and of the window's bars."""
    edges = bins.edges if bins.ranged else np.array([bins.edges[0], *bins.edges, bins.edges[-1]])
    low, high = (bins.minimum, bins.maximum) if bins.ranged else (edges[0], edges[-1])
    if not low < high:
        low, high = low - 0.5, low + 0.5
    grid = np.linspace(low, high, BARS + 1)
    names = [f"{first:.3g} to {last:.3g}" for first, last in pairwise(grid)]
    bars = []
    for side in (bins.reference, now):
        values = side[:-1] if bins.missing else side
        below, above, inner = (values[0], values[-1], values[1:-1]) if bins.ranged else (0, 0, values)
        cumulative = np.interp(grid, edges[: len(inner) + 1], np.concatenate([[0], np.cumsum(inner)]))
        missing = [float(side[-1])] if bins.missing else []
        bars.append([float(below), *np.diff(cumulative).tolist(), float(above), *missing])
    names = [f"below {low:.3g}", *names, f"above {high:.3g}", *(["missing"] if bins.missing else [])]
    used = [bar for bar in range(len(names)) if 0 < bar <= BARS or any(side[bar] for side in bars)]
    return [names[bar] for bar in used], [[side[bar] for bar in used] for side in bars]


def _drift(bins: Bins, now: Ints, thresholds: Thresholds, total: float | None = None, squares: float = 0.0) -> Drift:
    """Return the drift of one column by its counts; `total` and `squares` are sums of differences from the mean."""
    rows, reference_rows = int(now.sum()), int(bins.reference.sum())
    kind: Literal["number", "category"] = "category" if bins.names else "number"
    if not rows:
        return Drift(bins.name, kind, "too few rows", 0, reference_rows)
    measures = _rates(bins, now)
    values, reference = (side[:-1] if bins.missing else side for side in (now, bins.reference))
    known = int(values.sum())
    if total is not None and not bins.names and known:
        measures |= _moments(bins, known, total, squares)
    if not reference_rows:
        return Drift(bins.name, kind, "too few rows", rows, 0, **measures)
    measures["psi"] = psi(bins.reference, now)
    if not bins.names:
        measures["ks"] = kolmogorov_smirnov(reference, values)
    if rows < thresholds.minimum_rows:
        return Drift(bins.name, kind, "too few rows", rows, reference_rows, **measures)
    if bins.names:
        test = chi_square(bins.reference, now)
        measures |= {"chi_square": test.statistic, "chi_square_p": test.p}
        p = test.p
    else:
        measures["ks_p"] = kolmogorov_smirnov_p(measures["ks"], int(reference.sum()), known)
        p = min(measures["ks_p"], chi_square(_coarse(bins, bins.reference), _coarse(bins, now)).p)
    verdict: Verdict = "stable"
    if p < SIGNIFICANCE and measures["psi"] >= thresholds.watch:
        verdict = "drifted" if measures["psi"] >= thresholds.drifted else "watch"
    return Drift(bins.name, kind, verdict, rows, reference_rows, **measures)


def _rates(bins: Bins, now: Ints) -> dict[str, float]:
    """Return the rates of missing values and of values out of training's range."""
    rates: dict[str, float] = {}
    rows, reference_rows = int(now.sum()), int(bins.reference.sum())
    if bins.missing:
        rates["missing_rate"] = int(now[-1]) / rows
        rates["reference_missing_rate"] = int(bins.reference[-1]) / reference_rows if reference_rows else 0.0
    if bins.ranged:
        last = -2 if bins.missing else -1
        rates["out_of_range_rate"] = int(now[0] + now[last]) / rows
    return rates


def _moments(bins: Bins, known: int, total: float, squares: float) -> dict[str, float]:
    """Return mean and standard deviation of known values and of training's, from sums of differences from the mean."""
    offset = total / known
    deviation = math.sqrt(max(squares / known - offset * offset, 0.0))
    return {"mean": bins.mean + offset, "std": deviation, "reference_mean": bins.mean, "reference_std": bins.std}


def _coarse(bins: Bins, counts: Ints) -> Ints:
    """Return the counts below, in and above training's range, and of missing values, which no test of order regards."""
    values = counts[:-1] if bins.missing else counts
    ends = (values[0], values[1:-1].sum(), values[-1]) if bins.ranged else (values.sum(),)
    return np.array([*ends, *counts[len(values) :]])
