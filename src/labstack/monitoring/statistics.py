"""Tests and effect sizes on counts, each a function of its arguments alone."""

import math
from typing import NamedTuple

import numpy as np
from scipy import special

from labstack.monitoring.counts import Ints

FEWEST_EXPECTED = 5  # in each bin: Cochran's rule for the chi-square test


class Interval(NamedTuple):
    """An interval, by its two ends."""

    low: float
    high: float


class ChiSquare(NamedTuple):
    """The result of a test of homogeneity."""

    statistic: float
    degrees: int
    p: float


def psi(expected: Ints, actual: Ints) -> float:
    """Return the population stability index of two counts over the same bins: sum of (a - e) ln(a / e) over the shares.

    A bin that is empty on one side counts as half an observation there; a bin that is empty on both sides is left out.
    A PSI of 0.1 is a shift to watch and 0.25 a large one: Siddiqi, Credit Risk Scorecards (2006).
    """
    if not (expected.sum() and actual.sum()):
        return 0.0
    used = (expected > 0) | (actual > 0)
    e, a = (np.maximum(counts[used], 0.5) / counts.sum() for counts in (expected, actual))
    return float(((a - e) * np.log(a / e)).sum())


def kolmogorov_smirnov(expected: Ints, actual: Ints) -> float:
    """Return the largest distance of two cumulative distributions at the ends of ordered bins."""
    if not (expected.sum() and actual.sum()):
        return 0.0
    return float(np.abs(np.cumsum(expected) / expected.sum() - np.cumsum(actual) / actual.sum()).max())


def kolmogorov_smirnov_p(distance: float, n: int, m: int) -> float:
    """Return the probability of a distance at least as large between two large samples of one distribution.

    The distance of binned values is at most that of the values, so the probability is rather too large than too small.
    """
    if not (n and m):
        return 1.0
    return float(special.kolmogorov(math.sqrt(n * m / (n + m)) * distance))


def chi_square(expected: Ints, actual: Ints) -> ChiSquare:
    """Return Pearson's test that two counts over the same bins come from one distribution.

    Bins in which either side would be expected to hold fewer than five are merged, and with the smallest of the others
    if the sum is still too small.
    """
    n, m = int(expected.sum()), int(actual.sum())
    if not (n and m):
        return ChiSquare(0.0, 0, 1.0)
    both = expected + actual
    least = FEWEST_EXPECTED * (n + m) / min(n, m)
    rare = both < least
    if 0 < both[rare].sum() < least and not rare.all():
        rare[np.where(rare, both.max() + 1, both).argmin()] = True
    table = np.array([[*side[~rare], side[rare].sum()] for side in (expected, actual)], np.float64)
    table = table[:, table.sum(axis=0) > 0]
    fair = np.outer([n, m], table.sum(axis=0)) / (n + m)
    statistic = float((np.square(table - fair) / fair).sum())
    degrees = table.shape[1] - 1
    return ChiSquare(statistic, degrees, float(special.chdtrc(degrees, statistic)) if degrees else 1.0)


def wilson(good: float, count: int, z: float) -> Interval:
    """Return Wilson's score interval of a share: E. B. Wilson, JASA 22 (1927)."""
    if not count:
        return Interval(0.0, 1.0)
    share = good / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(max(middle - half, 0.0), min(middle + half, 1.0))


def difference(good: int, count: int, other_good: int, other_count: int, z: float) -> Interval:
    """Return the interval of good / count - other_good / other_count, from the score intervals of both shares.

    Method 10 of R. G. Newcombe, Statistics in Medicine 17 (1998), which also holds for small and extreme counts.
    """
    first, second = wilson(good, count, z), wilson(other_good, other_count, z)
    p, q = (good / count if count else 0.5), (other_good / other_count if other_count else 0.5)
    return Interval(
        p - q - math.hypot(p - first.low, second.high - q), p - q + math.hypot(first.high - p, q - second.low)
    )


def two_proportions(good: int, count: int, other_good: int, other_count: int) -> float:
    """Return the probability of a share at least as far above the other if both are equal: pooled z-test, one-sided."""
    if not (count and other_count):
        return 1.0
    pooled = (good + other_good) / (count + other_count)
    deviation = math.sqrt(pooled * (1 - pooled) * (1 / count + 1 / other_count))
    return float(special.ndtr(-(good / count - other_good / other_count) / deviation)) if deviation else 1.0
