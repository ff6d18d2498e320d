"""The verdict on a canary: its errors, latency, predictions and outcomes against production's.

Each check finds that the canary is significantly worse, significantly not worse, or neither yet. "Not worse" allows a
margin, because no number of requests shows that two versions are exactly equal.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from labstack.monitoring.counts import Counts
from labstack.monitoring.drift import SIGNIFICANCE
from labstack.monitoring.statistics import chi_square, difference, psi, two_proportions, wilson

Outcome = Literal["advance", "roll back", "inconclusive"]
Finding = Literal["not worse", "worse", "unsure", "too few"]
Evidence = dict[str, float | int | None]

Z_WORSE = 3.09  # one-sided, for SIGNIFICANCE: a canary is judged repeatedly
Z_HOLDS = 1.645  # one-sided, for 0.05
NOTICEABLE_SECONDS = 0.005  # callers do not notice less, whatever the ratio
FEWEST_FAILURES = 3  # before the rate of errors counts
FEWEST_OUTCOMES = 30  # of each version, before they count


class Outcomes(Protocol):
    """The true outcomes of a version's predictions, as far as they were fed back.

    For classes, `correct` is the number of correct predictions; for numbers, `absolute` and `squares` are the sums of
    the absolute errors and of their squares.
    """

    @property
    def count(self) -> int: ...
    @property
    def correct(self) -> int | None: ...
    @property
    def absolute(self) -> float | None: ...
    @property
    def squares(self) -> float | None: ...


@dataclass(frozen=True)
class Rules:
    """The limits that a canary is judged by.

    `failures` is the number of failed predictions that one step allows. `margin` is how much worse the canary may be:
    an absolute difference of error rates and accuracies, a share of a mean error. `latency_ratio` is how many times as
    long as production's its requests may take, `agreement` the share of rows with equal predictions that it needs, and
    `shift` the PSI between both versions' predictions that it must stay below.
    """

    minimum_requests: int
    failures: int
    margin: float
    latency_ratio: float
    agreement: float
    shift: float


@dataclass(frozen=True)
class Check:
    """One check of a canary: its finding, the finding in words, and the numbers behind it."""

    name: str
    found: Finding
    text: str
    evidence: Evidence = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """The judgement on a canary: advance, roll back or inconclusive, with its reasons."""

    outcome: Outcome
    reason: str
    checks: tuple[Check, ...]


def judge(
    production: Counts, canary: Counts, outcomes: tuple[Outcomes, Outcomes], rules: Rules, shadow: bool = False
) -> Verdict:
    """Return the verdict on a canary by both versions' counts in the same period, and their outcomes, production first.

    A canary in `shadow` answers no requests: it is judged by the rows of production's requests that it predicted too.
    """
    checks = [_failures(production, canary, rules, shadow)]
    if not shadow:
        checks.append(_latency(production, canary, rules))
    by_outcomes = _outcomes(*outcomes, rules)
    by_answers = [_agreement(canary, rules), _shift(canary, rules)]
    if by_outcomes.found == "not worse":  # where the truth is known, agreement of two predictions does not matter
        by_answers = [
            Check(check.name, "not worse", f"{check.text}; outcomes decide", check.evidence) for check in by_answers
        ]
    checks += by_answers
    if by_outcomes.found != "too few":
        checks.append(by_outcomes)
    return _conclude(checks, canary, rules, shadow)


def _conclude(checks: Sequence[Check], canary: Counts, rules: Rules, shadow: bool) -> Verdict:
    """Return the verdict that follows from all checks."""
    worse = [check.text for check in checks if check.found == "worse"]
    if worse:
        return Verdict("roll back", "; ".join(worse), tuple(checks))
    requests = canary.shadowed if shadow else canary.requests
    if requests < rules.minimum_requests:
        kind = "shadowed requests" if shadow else "requests"
        return Verdict("inconclusive", f"{requests} of at least {rules.minimum_requests} {kind}", tuple(checks))
    unsure = [check.text for check in checks if check.found in ("unsure", "too few")]
    if unsure:
        return Verdict("inconclusive", "; ".join(unsure), tuple(checks))
    return Verdict("advance", f"not worse in {len(checks)} checks", tuple(checks))


def compared(canary: Counts) -> int:
    """Return the number of rows that both versions predicted."""
    return canary.agreed + canary.differed


def _failures(production: Counts, canary: Counts, rules: Rules, shadow: bool) -> Check:
    """Check failed predictions: worse at once above the budget, else by both error rates."""
    failures, answers = (canary.shadow_failures, canary.shadowed) if shadow else (canary.failures, canary.requests)
    requests, production_requests = failures + answers, production.failures + production.requests
    rate = failures / requests if requests else 0.0
    production_rate = production.failures / production_requests if production_requests else 0.0
    sample = failures, requests, production.failures, production_requests
    interval, p = difference(*sample, Z_HOLDS), two_proportions(*sample)
    evidence: Evidence = {
        "canary": rate,
        "production": production_rate,
        "failures": failures,
        "budget": rules.failures,
        "p": p,
        "low": interval.low,
        "high": interval.high,
    }
    text = f"errors {rate:.2%}, production {production_rate:.2%}"
    if failures > rules.failures:
        return Check("errors", "worse", f"{failures} failed predictions, more than {rules.failures}", evidence)
    if failures >= FEWEST_FAILURES and p < SIGNIFICANCE and rate - production_rate > rules.margin:
        return Check("errors", "worse", text, evidence)
    return Check("errors", _within(interval.high, rules.margin), text, evidence)


def _latency(production: Counts, canary: Counts, rules: Rules) -> Check:
    """Check how many of the canary's requests take longer than production's p50 and p99 times the allowed ratio.

    A few milliseconds more are allowed in any case. As many may take longer as of production's own requests: half of
    them for p50, and one in a hundred for p99.
    """
    quantiles = {
        name: (share, production.quantile(share), canary.quantile(share))
        for name, share in (("p50", 0.5), ("p99", 0.99))
    }
    evidence: Evidence = {}
    for name, (_, limit, own) in quantiles.items():
        evidence |= {f"canary_{name}": own, f"production_{name}": limit}
    texts, is_worse = [], False
    for name, (share, limit, own) in quantiles.items():
        if limit is None or own is None:
            return Check("latency", "too few", "no latency yet", evidence)
        texts.append(f"{name} {own * 1000:.2f} ms, production {limit * 1000:.2f} ms")
        slower = canary.slower(max(limit * rules.latency_ratio, limit + NOTICEABLE_SECONDS))
        is_worse = is_worse or wilson(slower, canary.requests, Z_WORSE).low > 1 - share
    if min(production.requests, canary.requests) < rules.minimum_requests:
        return Check("latency", "too few", f"{', '.join(texts)}: too few requests", evidence)
    return Check("latency", "worse" if is_worse else "not worse", "; ".join(texts), evidence)


def _agreement(canary: Counts, rules: Rules) -> Check:
    """Check the share of rows for which both versions predicted the same."""
    rows = compared(canary)
    rate = canary.agreed / rows if rows else 0.0
    evidence: Evidence = {"rows": rows, "agreement": rate if rows else None}
    if rows < rules.minimum_requests:
        return Check("agreement", "too few", f"{rows} rows that both predicted", evidence)
    text = f"agrees with production on {rate:.1%} of {rows} rows"
    if wilson(canary.agreed, rows, Z_WORSE).high < rules.agreement:
        return Check("agreement", "worse", text, evidence)
    low = wilson(canary.agreed, rows, Z_HOLDS).low
    return Check("agreement", "not worse" if low >= rules.agreement else "unsure", text, evidence)


def _shift(canary: Counts, rules: Rules) -> Check:
    """Check how far apart the distributions of both versions' predictions for the same rows are."""
    effect, test = psi(canary.production, canary.own), chi_square(canary.production, canary.own)
    evidence: Evidence = {"psi": effect, "p": test.p}
    if compared(canary) < rules.minimum_requests:
        return Check("predictions", "too few", f"{compared(canary)} rows that both predicted", evidence)
    text = f"predictions shifted by PSI {effect:.3f}"
    is_worse = effect >= rules.shift and test.p < SIGNIFICANCE
    return Check("predictions", "worse" if is_worse else "not worse", text, evidence)


def _outcomes(production: Outcomes, canary: Outcomes, rules: Rules) -> Check:
    """Check the outcomes that were fed back: accuracy, or mean absolute error."""
    fewest = min(production.count, canary.count)
    evidence: Evidence = {"canary_outcomes": canary.count, "production_outcomes": production.count}
    if fewest < FEWEST_OUTCOMES:
        return Check("outcomes", "too few", f"{fewest} outcomes, of at least {FEWEST_OUTCOMES} of each", evidence)
    if production.correct is None or canary.correct is None:
        return _mean_errors(production, canary, rules, evidence)
    accuracy, production_accuracy = canary.correct / canary.count, production.correct / production.count
    sample = production.correct, production.count, canary.correct, canary.count
    loss, p = difference(*sample, Z_HOLDS), two_proportions(*sample)
    evidence |= {"canary": accuracy, "production": production_accuracy, "p": p, "low": -loss.high, "high": -loss.low}
    text = f"accuracy {accuracy:.1%}, production {production_accuracy:.1%}"
    if p < SIGNIFICANCE:
        return Check("outcomes", "worse", text, evidence)
    return Check("outcomes", _within(loss.high, rules.margin), text, evidence)


def _mean_errors(production: Outcomes, canary: Outcomes, rules: Rules, evidence: Evidence) -> Check:
    """Check the mean absolute errors, by the normal interval of their difference (Welch)."""
    (production_mean, production_variance), (mean, variance) = _mean_error(production), _mean_error(canary)
    deviation = math.sqrt(production_variance + variance)
    low, high = mean - production_mean - Z_WORSE * deviation, mean - production_mean + Z_HOLDS * deviation
    evidence |= {"canary": mean, "production": production_mean, "low": low, "high": high}
    text = f"mean error {mean:.4g}, production {production_mean:.4g}"
    if low > 0:
        return Check("outcomes", "worse", text, evidence)
    return Check("outcomes", _within(high, rules.margin * production_mean), text, evidence)


def _mean_error(outcomes: Outcomes) -> tuple[float, float]:
    """Return the mean absolute error, and the variance of that mean."""
    mean = (outcomes.absolute or 0.0) / outcomes.count
    return mean, max((outcomes.squares or 0.0) / outcomes.count - mean**2, 0.0) / outcomes.count


def _within(high: float, margin: float) -> Finding:
    """Return the finding of a canary whose loss is at most `high`."""
    return "not worse" if high <= margin else "unsure"
