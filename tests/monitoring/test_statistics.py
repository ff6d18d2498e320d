"""The statistics, against scipy and against published values."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from labstack.monitoring.counts import Ints
from labstack.monitoring.statistics import (
    chi_square,
    difference,
    kolmogorov_smirnov,
    kolmogorov_smirnov_p,
    psi,
    two_proportions,
    wilson,
)

BINS = st.lists(st.integers(0, 500), min_size=2, max_size=25)


def counts(*numbers: int) -> Ints:
    return np.array(numbers, np.int64)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Ints, Ints]:
    """Two counts over the same bins, neither of them empty."""
    first = draw(BINS)
    second = draw(st.lists(st.integers(0, 500), min_size=len(first), max_size=len(first)))
    assume(sum(first) and sum(second))
    return counts(*first), counts(*second)


def values(of: Ints) -> list[int]:
    return [bin_ for bin_, number in enumerate(of) for _ in range(number)]


def test_psi_by_hand() -> None:
    """That is (0.1 - 0.2) ln(0.1/0.2) + (0.5 - 0.5) ln 1 + (0.4 - 0.3) ln(0.4/0.3)."""
    expected = 0.1 * math.log(2) + 0.1 * math.log(4 / 3)
    assert psi(counts(20, 50, 30), counts(10, 50, 40)) == pytest.approx(expected)


@given(pairs())
def test_psi_is_symmetric_and_never_negative_and_none_of_the_same(pair: tuple[Ints, Ints]) -> None:
    first, second = pair
    assert psi(first, second) == pytest.approx(psi(second, first))
    assert psi(first, second) >= 0
    assert psi(first, first) == 0


def test_psi_of_an_empty_bin_is_finite_and_of_two_the_same() -> None:
    assert psi(counts(50, 50, 0), counts(50, 50, 0)) == 0
    assert 0.2 < psi(counts(50, 50, 0), counts(40, 40, 20)) < 2
    assert psi(counts(0, 0), counts(1, 2)) == 0


@given(pairs())
def test_the_distance_of_distributions_is_scipys(pair: tuple[Ints, Ints]) -> None:
    first, second = pair
    theirs = stats.ks_2samp(values(first), values(second), method="asymp")
    assert kolmogorov_smirnov(first, second) == pytest.approx(theirs.statistic, abs=1e-12)


def test_its_probability_is_scipys_for_large_samples() -> None:
    for distance in (0.02, 0.04, 0.06, 0.1):
        theirs = stats.kstwobign.sf(distance * math.sqrt(4000 * 3000 / 7000))
        assert kolmogorov_smirnov_p(distance, 4000, 3000) == pytest.approx(theirs)
    assert kolmogorov_smirnov_p(0.5, 0, 10) == 1


@given(pairs())
def test_chi_square_is_scipys_where_no_bin_is_rare(pair: tuple[Ints, Ints]) -> None:
    first, second = (side + 400 for side in pair)
    theirs = stats.chi2_contingency([first, second], correction=False)
    result = chi_square(first, second)
    assert result.statistic == pytest.approx(theirs.statistic, abs=1e-9)
    assert result.degrees == theirs.dof
    assert result.p == pytest.approx(theirs.pvalue)


def test_chi_square_takes_rare_bins_together() -> None:
    result = chi_square(counts(100, 100, 4, 0, 3), counts(100, 100, 0, 3, 4))
    theirs = stats.chi2_contingency([[100, 100, 7], [100, 100, 7]], correction=False)
    assert result.degrees == 2
    assert result.statistic == pytest.approx(theirs.statistic)
    result = chi_square(counts(100, 90, 2, 0, 2), counts(100, 60, 0, 3, 1))
    theirs = stats.chi2_contingency([[100, 94], [100, 64]], correction=False)
    assert result.degrees == 1
    assert result.statistic == pytest.approx(theirs.statistic)
    assert chi_square(counts(10_000, 0), counts(199, 1)).p == 1
    assert chi_square(counts(0, 0), counts(1, 2)).p == 1
    assert chi_square(counts(5, 0), counts(7, 0)).p == 1


def test_wilsons_interval_is_the_published_one() -> None:
    """81 of 263: R. G. Newcombe, Two-sided confidence intervals for the single proportion (1998), table I, method 3."""
    assert wilson(81, 263, 1.959964) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148, 1.959964) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20, 1.959964) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(0, 0, 1.96) == (0, 1)


def test_newcombes_interval_is_the_published_one() -> None:
    """Interval estimation for the difference between independent proportions (1998), table II, method 10."""
    z = 1.959964
    assert difference(56, 70, 48, 80, z) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert difference(9, 10, 3, 10, z) == pytest.approx((0.1705, 0.8090), abs=5e-5)
    assert difference(10, 10, 0, 20, z) == pytest.approx((0.6791, 1.0), abs=5e-5)


PART = st.integers(1, 300).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count)))


@given(PART, PART)
def test_two_proportions_is_the_root_of_chi_square(part: tuple[int, int], another: tuple[int, int]) -> None:
    (good, count), (other, others) = part, another
    assume(0 < good + other < count + others)
    theirs = stats.chi2_contingency([[good, count - good], [other, others - other]], correction=False)
    p = two_proportions(good, count, other, others)
    assert 2 * min(p, 1 - p) == pytest.approx(theirs.pvalue, abs=1e-9)
    assert p <= 0.5 if good / count >= other / others else p >= 0.5


def test_two_proportions_of_nothing_say_nothing() -> None:
    assert two_proportions(0, 0, 1, 2) == two_proportions(0, 5, 0, 5) == two_proportions(5, 5, 5, 5) == 1
