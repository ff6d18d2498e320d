"""What versions saw and predicted in a period, as numbers that add up: over workers, over replicas, over time.

A layout says where a version's values are counted: in the bins of its contract's references, and beside them in bins
for what lies beyond training's range and for what is missing.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import orjson

from labstack.model.contract import Contract, Feature, Matrix, Reference

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# the upper ends of all latency bins but the last, which is open; in seconds, each a fifth above the one before
LATENCY_EDGES: Floats = np.geomspace(5e-5, 60, 78)


@dataclass(frozen=True)
class Spread:
    """Where the values of one column are counted: a feature's, or the predictions'."""

    name: str
    edges: Floats  # of numbers; a bin reaches from one to the next, which it includes
    names: tuple[str, ...]  # of categories or classes, each of which has a bin
    missing: bool  # whether the last bin is that of missing values
    ranged: bool  # whether the first bin and the last of values hold what lies beyond the range of training
    reference: Ints  # how many values of training each bin holds; all 0 where the contract has no reference
    mean: float
    std: float
    minimum: float = 0.0
    maximum: float = 0.0

    @classmethod
    def of(cls, feature: Feature) -> Self:
        """Where a feature's values are counted."""
        known = feature.reference or Reference(counts=())
        if feature.categories:
            counts = known.counts or (0,) * len(feature.categories)
            reference = np.array([*counts, known.missing], np.int64)
            return cls(feature.name, np.empty(0), feature.categories, True, False, reference, 0.0, 0.0)
        below = np.nextafter(feature.minimum, -np.inf)  # of the range, both ends are in it
        edges = np.array([below, *known.edges, feature.maximum])
        counts = known.counts or (0,)
        reference = np.array([0, *counts, 0, known.missing], np.int64)
        ends = feature.minimum, feature.maximum
        return cls(feature.name, edges, (), True, True, reference, known.mean, known.std, *ends)

    @classmethod
    def of_predictions(cls, contract: Contract) -> Self:
        """Where a version's predictions are counted."""
        known = contract.reference or Reference(counts=())
        counts = known.counts or (0,) * max(len(contract.classes), 1)
        edges = np.array(known.edges, np.float64)
        reference = np.array(counts, np.int64)
        return cls(contract.target, edges, contract.classes, False, False, reference, known.mean, known.std)


class Layout:
    """Where all that a version sees and says is counted; made from its contract once."""

    def __init__(self, contract: Contract) -> None:
        self.features = [Spread.of(feature) for feature in contract.features]
        self.predictions = Spread.of_predictions(contract)
        self._codes = {name: code for code, name in enumerate(contract.classes)}
        sizes = [len(spread.reference) for spread in self.features]
        self._starts = np.cumsum([0, *sizes])

    def empty(self) -> "Counts":
        """Counts of nothing."""
        features, outputs = int(self._starts[-1]), len(self.predictions.reference)
        return Counts(
            latency=np.zeros(len(LATENCY_EDGES) + 1, np.int64),
            features=np.zeros(features, np.int64),
            sums=np.zeros(len(self.features)),
            squares=np.zeros(len(self.features)),
            outputs=np.zeros(outputs, np.int64),
            own=np.zeros(outputs, np.int64),
            production=np.zeros(outputs, np.int64),
        )

    def place(self, matrix: Matrix) -> tuple[Ints, Floats, Floats]:
        """How a matrix of shape (rows, features) falls into the features' bins; sums and sums of squares of numbers.

        Both sums are of differences from training's mean, as squares of large numbers would lose what differs.
        """
        places = np.empty(matrix.shape, np.int64)
        gone = np.isnan(matrix)
        for column, (spread, start) in enumerate(zip(self.features, self._starts, strict=False)):
            values = matrix[:, column]
            places[:, column] = start + (
                np.searchsorted(spread.edges, values) if not spread.names else np.where(gone[:, column], 0, values)
            )
            places[gone[:, column], column] = start + len(spread.reference) - 1
        apart = np.where(gone, 0.0, matrix - [spread.mean for spread in self.features])
        return (
            np.bincount(places.ravel(), minlength=int(self._starts[-1])),
            apart.sum(axis=0),
            np.square(apart).sum(axis=0),
        )

    def place_outputs(self, outputs: list[Any]) -> Ints:
        """How predictions fall into the bins of classes, or of numbers."""
        spread = self.predictions
        places = [self._codes[output] for output in outputs] if self._codes else np.searchsorted(spread.edges, outputs)
        return np.bincount(places, minlength=len(spread.reference))

    def seen(self, counts: "Counts", number: int) -> Ints:
        """What the bins of one feature hold."""
        return counts.features[self._starts[number] : self._starts[number + 1]]


@dataclass
class Counts:
    """What one version did in a period, in one role.

    `beside` counts requests whose rows canary and production both predicted, and `failed_beside` those that the canary
    failed to; of the rows they `agreed` or `differed`, and `own` and `production` are the bins of what each said. Only
    a canary has these.
    """

    latency: Ints
    features: Ints
    sums: Floats
    squares: Floats
    outputs: Ints
    own: Ints
    production: Ints
    requests: int = 0
    failures: int = 0
    rows: int = 0
    agreed: int = 0
    differed: int = 0
    beside: int = 0
    failed_beside: int = 0

    def add(self, other: "Counts") -> None:
        """Add another period's or worker's counts of the same version."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    def without_columns(self) -> Self:
        """The same without what is counted by the layout of one contract, so that those of any versions add up."""
        nothing: Any = np.zeros(0, np.int64)
        names = ("features", "sums", "squares", "outputs", "own", "production")
        return replace(self, **dict.fromkeys(names, nothing))

    def dumps(self) -> str:
        """The counts as JSON."""
        return orjson.dumps(
            {one.name: getattr(self, one.name) for one in fields(self)}, option=orjson.OPT_SERIALIZE_NUMPY
        ).decode()

    @classmethod
    def loads(cls, text: str) -> Self:
        """The counts of a JSON text that `dumps` made."""
        found = orjson.loads(text)
        arrays: dict[str, Any] = {
            n: np.array(value) if isinstance(value, list) else value for n, value in found.items()
        }
        return cls(**arrays)

    def quantile(self, share: float) -> float | None:
        """The latency, in seconds, that this share of the requests stayed below; None when there were none."""
        total = int(self.latency.sum())
        if not total:
            return None
        reached = np.cumsum(self.latency)
        place = int(np.searchsorted(reached, share * total))
        low = LATENCY_EDGES[place - 1] if place else 0.0
        high = LATENCY_EDGES[min(place, len(LATENCY_EDGES) - 1)]
        before = reached[place - 1] if place else 0
        return float(low + (high - low) * (share * total - before) / self.latency[place])

    def slower(self, seconds: float) -> float:
        """How many requests took longer than this; within a bin, a share of it."""
        place = int(np.searchsorted(LATENCY_EDGES, seconds))
        if place == len(LATENCY_EDGES):
            return float(self.latency[-1])
        low = LATENCY_EDGES[place - 1] if place else 0.0
        share = (LATENCY_EDGES[place] - seconds) / (LATENCY_EDGES[place] - low)
        return float(self.latency[place + 1 :].sum() + share * self.latency[place])
