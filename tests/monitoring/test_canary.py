"""Verdicts on simulated canaries of known quality."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from labstack.model.contract import Contract, Reference, Sample
from labstack.monitoring.canary import Outcome, Rules, judge
from labstack.monitoring.counts import LATENCY_EDGES, Counts, Layout

RULES = Rules(minimum_requests=200, failures=10, margin=0.02, latency_ratio=1.5, agreement=0.8, shift=0.25)
LAYOUT = Layout(
    Contract(
        task="classification",
        target="y",
        features=(),
        classes=("a", "b"),
        sample=Sample(input={}, output="a"),
        reference=Reference(counts=(50, 50)),
    )
)


@dataclass(frozen=True)
class Feedback:
    """Outcomes that were fed back."""

    count: int = 0
    correct: int | None = None
    absolute: float | None = None
    squares: float | None = None


@dataclass(frozen=True)
class Version:
    """The behaviour of a simulated version."""

    errors: float = 0.0
    milliseconds: float = 10.0
    agreement: float = 0.98
    accuracy: float = 0.9


GOOD = Version()


def behaved(rng: np.random.Generator, version: Version, requests: int, canary: bool = False) -> Counts:
    """The counts of so many requests to a version."""
    counts = LAYOUT.empty()
    counts.failures = int((rng.random(requests) < version.errors).sum())
    counts.requests = counts.rows = requests - counts.failures
    seconds = rng.lognormal(np.log(version.milliseconds / 1000), 0.5, counts.requests)
    counts.latency += np.bincount(np.searchsorted(LATENCY_EDGES, seconds), minlength=len(LATENCY_EDGES) + 1)
    if canary:
        production = rng.random(counts.requests) < 0.5
        differs = rng.random(counts.requests) > version.agreement
        counts.differed = int(differs.sum())
        counts.agreed = counts.requests - counts.differed
        counts.shadowed = counts.requests
        counts.production += np.bincount(production, minlength=2)
        counts.own += np.bincount(production & ~differs, minlength=2)  # a wrong prediction is a instead of b
        counts.own[0] = counts.requests - counts.own[1]
    return counts


def outcome(seed: int, version: Version, requests: int, share: float = 0.1, fed: int = 0) -> Outcome:
    rng = np.random.default_rng(seed)
    canary = behaved(rng, version, requests, canary=True)
    production = behaved(rng, GOOD, int(requests * (1 - share) / share))
    known = (
        Feedback(fed, int(rng.binomial(fed, GOOD.accuracy))),
        Feedback(fed, int(rng.binomial(fed, version.accuracy))),
    )
    return judge(production, canary, known, RULES).outcome


BAD = {
    "wrong": Version(agreement=0.4, accuracy=0.5),
    "slow": Version(milliseconds=30),
    "failing": Version(errors=0.2),
    "inaccurate": Version(accuracy=0.7),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_canary_is_rolled_back_whatever_the_seed(name: str) -> None:
    assert {outcome(seed, BAD[name], 1000, fed=1000) for seed in range(200)} == {"roll back"}


@pytest.mark.parametrize("name", ["wrong", "slow"])
def test_a_bad_canary_is_rolled_back_by_the_minimum_of_requests(name: str) -> None:
    assert {outcome(seed, BAD[name], 200) for seed in range(200)} == {"roll back"}


def test_a_failing_canary_is_rolled_back_as_soon_as_its_budget_is_spent() -> None:
    canary = LAYOUT.empty()
    canary.requests, canary.failures = 5, RULES.failures
    assert judge(LAYOUT.empty(), canary, (Feedback(), Feedback()), RULES).outcome == "inconclusive"
    canary.failures += 1
    verdict = judge(LAYOUT.empty(), canary, (Feedback(), Feedback()), RULES)
    assert (verdict.outcome, verdict.reason) == ("roll back", "11 failed predictions, more than 10")


def test_a_good_canary_advances_nearly_always_and_is_nearly_never_rolled_back() -> None:
    """Each of 300 canaries is judged once: fewer than one in a hundred is rolled back."""
    outcomes = [outcome(seed, GOOD, 500) for seed in range(300)]
    assert outcomes.count("advance") >= 295
    assert outcomes.count("roll back") <= 2


def test_a_better_canary_advances_though_it_often_disagrees() -> None:
    better = Version(agreement=0.6, accuracy=0.97)
    assert {outcome(seed, better, 1000, fed=1000) for seed in range(100)} == {"advance"}


def test_a_tie_stays_inconclusive() -> None:
    """A few outcomes cannot show whether the canary is as good: it neither advances nor is rolled back."""
    outcomes = [outcome(seed, GOOD, 1000, fed=60) for seed in range(300)]
    assert outcomes.count("inconclusive") >= 240
    assert outcomes.count("roll back") <= 2


def test_some_milliseconds_more_are_allowed() -> None:
    rng = np.random.default_rng(1)
    production = behaved(rng, Version(milliseconds=0.1), 5000)
    canary = behaved(rng, Version(milliseconds=0.4), 500, canary=True)
    assert judge(production, canary, (Feedback(), Feedback()), RULES).outcome == "advance"


def test_too_few_requests_are_inconclusive_however_good_or_bad() -> None:
    for version in (GOOD, BAD["wrong"], BAD["slow"]):
        rng = np.random.default_rng(1)
        canary, production = behaved(rng, version, 150, canary=True), behaved(rng, GOOD, 5000)
        verdict = judge(production, canary, (Feedback(), Feedback()), RULES)
        assert verdict.outcome == "inconclusive"
        assert verdict.reason == "150 of at least 200 requests"


def test_a_shadow_is_judged_by_the_rows_that_both_predicted() -> None:
    rng = np.random.default_rng(1)
    production = behaved(rng, GOOD, 5000)
    shadow = replace(behaved(rng, GOOD, 500, canary=True), requests=0, latency=LAYOUT.empty().latency)
    verdict = judge(production, shadow, (Feedback(), Feedback()), RULES, shadow=True)
    assert verdict.outcome == "advance"
    assert [check.name for check in verdict.checks] == ["errors", "agreement", "predictions"]
    failing = replace(shadow, shadow_failures=11)
    assert judge(production, failing, (Feedback(), Feedback()), RULES, shadow=True).outcome == "roll back"


@pytest.mark.parametrize(
    ("mean", "deviation", "expected"),
    [(1.0, 0.1, "not worse"), (1.1, 0.1, "worse"), (1.01, 0.9, "unsure"), (0.5, 0.1, "not worse")],
)
def test_numbers_are_judged_by_their_mean_error(mean: float, deviation: float, expected: str) -> None:
    def fed_back(mean: float) -> Feedback:
        return Feedback(400, None, 400 * mean, 400 * (mean**2 + deviation**2))

    rng = np.random.default_rng(1)
    verdict = judge(
        behaved(rng, GOOD, 5000), behaved(rng, GOOD, 500, canary=True), (fed_back(1.0), fed_back(mean)), RULES
    )
    assert {check.name: check.found for check in verdict.checks}["outcomes"] == expected


def test_counts_keep_the_keys_that_they_have_in_the_database() -> None:
    counts = replace(LAYOUT.empty(), shadowed=3, shadow_failures=2)
    stored = json.loads(counts.dumps())
    assert (stored["beside"], stored["failed_beside"]) == (3, 2)
    loaded = Counts.loads(counts.dumps())
    assert (loaded.shadowed, loaded.shadow_failures) == (3, 2)


def test_an_advance_has_a_reason_and_evidence() -> None:
    rng = np.random.default_rng(1)
    verdict = judge(behaved(rng, GOOD, 5000), behaved(rng, GOOD, 500, canary=True), (Feedback(), Feedback()), RULES)
    assert verdict.reason == "not worse in 4 checks"
    errors, latency, agreement, _ = verdict.checks
    assert errors.evidence["budget"] == 10
    assert latency.evidence["canary_p50"] == pytest.approx(0.01, rel=0.2)
    assert agreement.evidence["rows"] == 500
