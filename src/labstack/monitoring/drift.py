"""How far what a version sees and says in a window is from what it saw and said in training.

A verdict needs both: an effect that is large enough to matter (PSI), and a test that says that it is none of chance: of
numbers Kolmogorov and Smirnov's, which a little noise on values that were rounded does not mislead, of categories
chi-square.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from labstack.monitoring.counts import Counts, Ints, Layout, Spread
from labstack.monitoring.statistics import chi_square, kolmogorov_smirnov, kolmogorov_smirnov_p, psi

Verdict = Literal["stable", "watch", "drifted", "too few rows"]
VERDICTS: tuple[Verdict, ...] = ("too few rows", "stable", "watch", "drifted")  # the worst comes last
BARS = 12  # of a histogram
MOST_NAMES = 20
SIGNIFICANCE = 0.001  # windows are looked at all day: a chance of one in twenty would be an alarm every hour


@dataclass(frozen=True)
class Thresholds:
    """From which PSI on a column is to be watched, and has drifted; and the rows that a verdict needs."""

    watch: float
    drifted: float
    minimum_rows: int


@dataclass(frozen=True)
class Drift:
    """One column, now against training. What does not apply to it, or what too few rows say nothing of, is None."""

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
    """The drift of each feature."""
    return [
        _drift(spread, layout.seen(counts, number), thresholds, counts.sums[number], counts.squares[number])
        for number, spread in enumerate(layout.features)
    ]


def predictions(layout: Layout, counts: Counts, thresholds: Thresholds) -> Drift:
    """The drift of what was predicted, against what was for held-out rows in training."""
    return _drift(layout.predictions, counts.outputs, thresholds)


def worst(drifts: Sequence[Drift]) -> Verdict:
    """The worst of several verdicts."""
    return max((drift.verdict for drift in drifts), key=VERDICTS.index, default="too few rows")


@dataclass(frozen=True)
class Histogram:
    """The shares of training's values and of those in a window, by bars that are named."""

    bars: list[str]
    reference: list[float]
    now: list[float]


def histogram(spread: Spread, now: Ints) -> Histogram:
    """A column's bars for people: of equal width where it is of numbers, as if values were spread evenly in each bin.

    What lies beyond training's range, and what is missing, has bars of its own where there is any.
    """
    if spread.names:
        names, sides = list(spread.names), [spread.reference, now]
        if spread.missing:
            names.append("missing")
        bars = [side[: len(names)].astype(float).tolist() for side in sides]
    else:
        names, bars = _even(spread, now)
    used = [place for place in range(len(names)) if place < MOST_NAMES or any(side[place] for side in bars)]
    totals = [max(sum(side), 1.0) for side in bars]
    reference, seen = ([side[place] / total for place in used] for side, total in zip(bars, totals, strict=True))
    return Histogram([names[place] for place in used], reference, seen)


def _even(spread: Spread, now: Ints) -> tuple[list[str], list[list[float]]]:
    edges = spread.edges if spread.ranged else np.array([spread.edges[0], *spread.edges, spread.edges[-1]])
    low, high = (spread.minimum, spread.maximum) if spread.ranged else (edges[0], edges[-1])
    if not low < high:
        low, high = low - 0.5, low + 0.5
    grid = np.linspace(low, high, BARS + 1)
    names = [f"{first:.3g} to {last:.3g}" for first, last in pairwise(grid)]
    bars = []
    for side in (spread.reference, now):
        values = side[:-1] if spread.missing else side
        below, above, inner = (values[0], values[-1], values[1:-1]) if spread.ranged else (0, 0, values)
        reached = np.interp(grid, edges[: len(inner) + 1], np.concatenate([[0], np.cumsum(inner)]))
        ends = [0.0, 0.0] if not spread.ranged else [float(below), float(above)]
        bars.append([ends[0], *np.diff(reached).tolist(), ends[1], *([float(side[-1])] if spread.missing else [])])
    names = [f"below {low:.3g}", *names, f"above {high:.3g}", *(["missing"] if spread.missing else [])]
    used = [place for place in range(len(names)) if 0 < place <= BARS or any(side[place] for side in bars)]
    return [names[place] for place in used], [[side[place] for place in used] for side in bars]


def _drift(
    spread: Spread, now: Ints, thresholds: Thresholds, total: float | None = None, squares: float = 0.0
) -> Drift:
    rows, learnt = int(now.sum()), int(spread.reference.sum())
    kind: Literal["number", "category"] = "category" if spread.names else "number"
    if not rows:
        return Drift(spread.name, kind, "too few rows", 0, learnt)
    found: dict[str, float] = {}
    values, reference = now, spread.reference
    if spread.missing:
        values, reference = now[:-1], spread.reference[:-1]
        found["missing_rate"] = int(now[-1]) / rows
        found["reference_missing_rate"] = int(spread.reference[-1]) / learnt if learnt else 0.0
    if spread.ranged:
        found["out_of_range_rate"] = int(values[0] + values[-1]) / rows
    known = int(values.sum())
    if total is not None and not spread.names and known:
        apart = total / known
        found |= {"mean": spread.mean + apart, "std": math.sqrt(max(squares / known - apart * apart, 0.0))}
        found |= {"reference_mean": spread.mean, "reference_std": spread.std}
    if not learnt:
        return Drift(spread.name, kind, "too few rows", rows, 0, **found)
    found["psi"] = psi(spread.reference, now)
    if not spread.names:
        found["ks"] = kolmogorov_smirnov(reference, values)
    if rows < thresholds.minimum_rows:
        return Drift(spread.name, kind, "too few rows", rows, learnt, **found)
    if spread.names:
        test = chi_square(spread.reference, now)
        found |= {"chi_square": test.statistic, "chi_square_p": test.p}
        p = test.p
    else:
        found["ks_p"] = kolmogorov_smirnov_p(found["ks"], int(reference.sum()), known)
        p = min(found["ks_p"], chi_square(_coarse(spread, spread.reference), _coarse(spread, now)).p)
    verdict: Verdict = "stable"
    if p < SIGNIFICANCE and found["psi"] >= thresholds.watch:
        verdict = "drifted" if found["psi"] >= thresholds.drifted else "watch"
    return Drift(spread.name, kind, verdict, rows, learnt, **found)


def _coarse(spread: Spread, counts: Ints) -> Ints:
    """Numbers below, in and above training's range, and missing ones, of which a test of their order knows nothing."""
    values = counts[:-1] if spread.missing else counts
    ends = (values[0], values[1:-1].sum(), values[-1]) if spread.ranged else (values.sum(),)
    return np.array([*ends, *counts[len(values) :]])
