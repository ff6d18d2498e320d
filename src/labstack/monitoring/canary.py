"""Whether a canary holds beside production: by errors, latency, what it predicts, and outcomes that were fed back.

Each check asks whether the canary is worse beyond doubt, not worse beyond doubt, or neither yet. "Not worse" allows a
margin, as no number of requests shows that two versions are exactly equal.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from labstack.monitoring.counts import Counts
from labstack.monitoring.drift import SIGNIFICANCE
from labstack.monitoring.statistics import chi_square, difference, psi, two_proportions, wilson

Outcome = Literal["advance", "roll back", "inconclusive"]
Found = Literal["not worse", "worse", "unsure", "too few"]

Z_WORSE = 3.09  # one-sided, of SIGNIFICANCE: a canary is looked at again and again
Z_HOLDS = 1.645  # one-sided, of 0.05
NOTICEABLE_SECONDS = 0.005  # no caller feels less, whatever its ratio
FEWEST_OUTCOMES = 30  # of each version, before they count


class Outcomes(Protocol):
    """How a version's predictions met the outcomes that were fed back.

    Of classes `correct` of them were; of numbers there are the sums of the absolute errors and of their squares.
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
    """By what a canary is judged.

    `margin` is how much worse it may be: of an error rate and of an accuracy an absolute difference, of a mean error a
    share. `failures` it may have in one step. Its requests may take `latency_ratio` times as long as production's;
    `agreement` is the share of rows to which it must say the same; `shift` the PSI between what both say.
    """

    minimum_requests: int
    failures: int
    margin: float
    latency_ratio: float
    agreement: float
    shift: float


@dataclass(frozen=True)
class Check:
    """One thing looked at: what was found, in words, and the numbers behind it."""

    name: str
    found: Found
    text: str
    evidence: dict[str, float | int | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What is to become of a canary, and why."""

    outcome: Outcome
    reason: str
    checks: tuple[Check, ...]


def judge(
    production: Counts, canary: Counts, outcomes: tuple[Outcomes, Outcomes], rules: Rules, shadow: bool = False
) -> Verdict:
    """The verdict on a canary by what both did in the same period, and by their outcomes, production's first.

    A canary in `shadow` answers nobody: it is judged by the rows that it predicted beside production.
    """
    checks = [_failures(production, canary, rules, shadow)]
    if not shadow:
        checks.append(_latency(production, canary, rules))
    told = _outcomes(*outcomes, rules)
    answers = [_agreement(canary, rules), _shift(canary, rules)]
    if told.found == "not worse":  # whoever knows the truth need not ask whether two guesses agree
        answers = [Check(one.name, "not worse", f"{one.text}; outcomes decide", one.evidence) for one in answers]
    checks += answers
    if told.found != "too few":
        checks.append(told)
    return _concluded(checks, canary, rules, shadow)


def _concluded(checks: Sequence[Check], canary: Counts, rules: Rules, shadow: bool) -> Verdict:
    worse = [check.text for check in checks if check.found == "worse"]
    if worse:
        return Verdict("roll back", "; ".join(worse), tuple(checks))
    tried = canary.beside if shadow else canary.requests
    if tried < rules.minimum_requests:
        what = "requests beside production" if shadow else "requests"
        text = f"{tried} of at least {rules.minimum_requests} {what}"
        return Verdict("inconclusive", text, tuple(checks))
    unsure = [check.text for check in checks if check.found in ("unsure", "too few")]
    if unsure:
        return Verdict("inconclusive", "; ".join(unsure), tuple(checks))
    return Verdict("advance", f"not worse in {len(checks)} checks", tuple(checks))


def compared(canary: Counts) -> int:
    """The rows that both versions predicted."""
    return canary.agreed + canary.differed


def _failures(production: Counts, canary: Counts, rules: Rules, shadow: bool) -> Check:
    """Failed predictions: beyond the budget at once, else the two error rates beside each other."""
    bad, fine = (canary.failed_beside, canary.beside) if shadow else (canary.failures, canary.requests)
    tried, other = fine + bad, production.requests + production.failures
    rate, usual = (n / of if of else 0.0 for n, of in ((bad, tried), (production.failures, other)))
    apart = difference(bad, tried, production.failures, other, Z_HOLDS)
    p = two_proportions(bad, tried, production.failures, other)
    evidence: dict[str, float | int | None] = {
        "canary": rate,
        "production": usual,
        "failures": bad,
        "budget": rules.failures,
        "p": p,
        "low": apart.low,
        "high": apart.high,
    }
    text = f"errors {rate:.2%}, production {usual:.2%}"
    if bad > rules.failures:
        return Check("errors", "worse", f"{bad} failed predictions, more than {rules.failures}", evidence)
    if bad >= 3 and p < SIGNIFICANCE and rate - usual > rules.margin:
        return Check("errors", "worse", text, evidence)
    return Check("errors", _holds(apart.high, rules.margin), text, evidence)


def _latency(production: Counts, canary: Counts, rules: Rules) -> Check:
    """The canary's requests that take longer than production's median and 99th percentile, with the allowed ratio.

    Some milliseconds more are allowed too. As many may as do of production's: half of them, and one in a hundred.
    """
    usual = {share: production.quantile(share) for share in (0.5, 0.99)}
    evidence: dict[str, float | int | None] = {}
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        evidence |= {f"canary_{name}": canary.quantile(share), f"production_{name}": usual[share]}
    parts, worse = [], False
    for share, limit in usual.items():
        mine = canary.quantile(share)
        if limit is None or mine is None:
            return Check("latency", "too few", "no latency yet", evidence)
        parts.append(f"p{share * 100:g} {mine * 1000:.2f} ms, production {limit * 1000:.2f} ms")
        slower = canary.slower(max(limit * rules.latency_ratio, limit + NOTICEABLE_SECONDS))
        worse = worse or wilson(slower, canary.requests, Z_WORSE).low > 1 - share
    if min(production.requests, canary.requests) < rules.minimum_requests:
        return Check("latency", "too few", f"{', '.join(parts)}: too few requests", evidence)
    return Check("latency", "worse" if worse else "not worse", "; ".join(parts), evidence)


def _agreement(canary: Counts, rules: Rules) -> Check:
    """The share of rows to which both said the same."""
    rows = compared(canary)
    rate = canary.agreed / rows if rows else 0.0
    evidence: dict[str, float | int | None] = {"rows": rows, "agreement": rate if rows else None}
    if rows < rules.minimum_requests:
        return Check("agreement", "too few", f"{rows} rows that both predicted", evidence)
    text = f"agrees with production on {rate:.1%} of {rows} rows"
    if wilson(canary.agreed, rows, Z_WORSE).high < rules.agreement:
        return Check("agreement", "worse", text, evidence)
    low = wilson(canary.agreed, rows, Z_HOLDS).low
    return Check("agreement", "not worse" if low >= rules.agreement else "unsure", text, evidence)


def _shift(canary: Counts, rules: Rules) -> Check:
    """How differently the two versions' predictions are spread over the same rows."""
    effect, test = psi(canary.production, canary.own), chi_square(canary.production, canary.own)
    evidence: dict[str, float | int | None] = {"psi": effect, "p": test.p}
    if compared(canary) < rules.minimum_requests:
        return Check("predictions", "too few", f"{compared(canary)} rows that both predicted", evidence)
    text = f"predictions shifted by PSI {effect:.3f}"
    worse = effect >= rules.shift and test.p < SIGNIFICANCE
    return Check("predictions", "worse" if worse else "not worse", text, evidence)


def _outcomes(production: Outcomes, canary: Outcomes, rules: Rules) -> Check:
    """The true values that were fed back: accuracy, or mean absolute error."""
    few = min(production.count, canary.count)
    evidence: dict[str, float | int | None] = {"canary_outcomes": canary.count, "production_outcomes": production.count}
    if few < FEWEST_OUTCOMES:
        return Check("outcomes", "too few", f"{few} outcomes, of at least {FEWEST_OUTCOMES} of each", evidence)
    if production.correct is None or canary.correct is None:
        return _errors(production, canary, rules, evidence)
    mine, usual = canary.correct / canary.count, production.correct / production.count
    lost = production.correct, production.count, canary.correct, canary.count
    apart, p = difference(*lost, Z_HOLDS), two_proportions(*lost)
    evidence |= {"canary": mine, "production": usual, "p": p, "low": -apart.high, "high": -apart.low}
    text = f"accuracy {mine:.1%}, production {usual:.1%}"
    if p < SIGNIFICANCE:
        return Check("outcomes", "worse", text, evidence)
    return Check("outcomes", _holds(apart.high, rules.margin), text, evidence)


def _errors(production: Outcomes, canary: Outcomes, rules: Rules, evidence: dict[str, float | int | None]) -> Check:
    """Mean absolute errors, by the normal interval of their difference (Welch)."""
    (usual, spread), (mine, own) = (_mean(one) for one in (production, canary))
    deviation = math.sqrt(spread + own)
    low, high = mine - usual - Z_WORSE * deviation, mine - usual + Z_HOLDS * deviation
    evidence |= {"canary": mine, "production": usual, "low": low, "high": high}
    text = f"mean error {mine:.4g}, production {usual:.4g}"
    if low > 0:
        return Check("outcomes", "worse", text, evidence)
    return Check("outcomes", _holds(high, rules.margin * usual), text, evidence)


def _mean(outcomes: Outcomes) -> tuple[float, float]:
    """The mean absolute error, and the variance of that mean."""
    mean = (outcomes.absolute or 0.0) / outcomes.count
    return mean, max((outcomes.squares or 0.0) / outcomes.count - mean**2, 0.0) / outcomes.count


def _holds(high: float, margin: float) -> Found:
    return "not worse" if high <= margin else "unsure"
