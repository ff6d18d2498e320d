"""The thread in each worker in which production and its canary predict each other's rows.

It has a thread for itself because a canary may be slow, and must delay neither callers nor the log.
"""

from functools import partial
from typing import Any, NamedTuple

import structlog

from labstack.api import metrics
from labstack.api.recording.counter import WindowCounter
from labstack.api.serving.lineup import Canary, Served
from labstack.background import Background
from labstack.model.contract import ContractError

WAITING_SHADOWS = 1_000
SHADOWED_ROWS = 100  # of one request, which bounds the memory of those that wait
AGREEMENT = 0.05  # two values agree when they differ by at most this share of production's

log = structlog.get_logger(__name__)


class Shadow(NamedTuple):
    """The first rows of a request, the outputs of the version that answered, and the version to predict them too.

    One of the two versions is production, the other its canary. Rows are kept rather than a matrix, because the two may
    order their columns or encode their categories differently.
    """

    canary: Canary
    trial: str
    target: Served  # the version that predicts the rows again
    rows: list[Any]
    outputs: list[str] | list[float]


class Shadows:
    """Predicts shadows in a thread, and counts where the two versions agree."""

    def __init__(self, counter: WindowCounter) -> None:
        self._counter = counter
        dropped = partial(metrics.count_dropped, "shadows")
        self._background = Background("shadow", self._compare, dropped, WAITING_SHADOWS)

    def start(self) -> None:
        self._background.start()

    def stop(self) -> None:
        """End the thread when all shadows are compared, or after three seconds."""
        self._background.stop(seconds=3)

    def put(self, shadow: Shadow) -> None:
        """Hand over a shadow; never waits."""
        self._background.put(shadow)

    def _compare(self, shadows: list[Shadow]) -> None:
        for canary, trial, target, rows, answered in shadows:
            labels = canary.served.model, str(canary.served.version)
            is_canary = target is canary.served
            try:
                matrix, _ = target.plan.parse(rows)
                outputs = target.predictor.predict(matrix).outputs
                own, production = (outputs, answered) if is_canary else (answered, outputs)
                agreed = sum(map(_agree, production, own))
                self._counter.add_comparison(canary, trial, own, production, agreed)
                metrics.shadowed.labels(*labels, "agreed").inc(agreed)
                metrics.shadowed.labels(*labels, "differed").inc(len(own) - agreed)
            except Exception as error:  # a failing canary must not end the thread
                if is_canary:
                    metrics.shadowed.labels(*labels, "failed").inc(len(rows))
                    self._counter.add_shadow_failure(canary, trial)
                if is_canary or not isinstance(error, ContractError):  # production may reject rows
                    log.error("shadow failed", model=labels[0], version=target.version, error=str(error))


def _agree(production: str | float, canary: str | float) -> bool:
    """Return whether two classes are the same, or two values about the same."""
    if isinstance(production, str) or isinstance(canary, str):
        return production == canary
    return abs(production - canary) <= AGREEMENT * abs(production) + 1e-9
