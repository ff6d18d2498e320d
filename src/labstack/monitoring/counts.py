"""The counts of a version's requests, values and predictions in a period; they add up over workers, replicas and time.

A layout holds the bins that values are counted in: those of the contract's reference distributions, and further ones
for values out of training's range and for missing values. Workers write counts; the assessment and the console read.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import orjson

from labstack.model.contract import Contract, Feature, Matrix, Reference

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# the upper ends, in seconds, of all latency bins but the last, which is open; each is a fifth above the one before
LATENCY_EDGES: Floats = np.geomspace(5e-5, 60, 78)

# the keys in the database of fields whose names differ
STORED_AS = {"shadowed": "beside", "shadow_failures": "failed_beside"}


@dataclass(frozen=True)
class Bins:
    """The bins of one column, a feature or the predictions, and its distribution in training."""

    name: str
    edges: Floats  # of numbers; a bin lies between two edges and includes the upper one
    names: tuple[str, ...]  # of categories or classes, each of which has a bin
    missing: bool  # whether the last bin holds missing values
    ranged: bool  # whether the first and the last bin of numbers hold values out of training's range
    reference: Ints  # training's values in each bin; all 0 where the contract has no reference
    mean: float  # in training
    std: float
    minimum: float = 0.0
    maximum: float = 0.0

    @classmethod
    def of_feature(cls, feature: Feature) -> Self:
        """Return the bins of a feature."""
        training = feature.reference or Reference(counts=())
        if feature.categories:
            counts = training.counts or (0,) * len(feature.categories)
            reference = np.array([*counts, training.missing], np.int64)
            return cls(feature.name, np.empty(0), feature.categories, True, False, reference, 0.0, 0.0)
        below = np.nextafter(feature.minimum, -np.inf)  # as the range includes its minimum
        edges = np.array([below, *training.edges, feature.maximum])
        counts = training.counts or (0,)
        reference = np.array([0, *counts, 0, training.missing], np.int64)
        ends = feature.minimum, feature.maximum
        return cls(feature.name, edges, (), True, True, reference, training.mean, training.std, *ends)

    @classmethod
    def of_predictions(cls, contract: Contract) -> Self:
        """Return the bins of a version's predictions."""
        training = contract.reference or Reference(counts=())
        counts = training.counts or (0,) * max(len(contract.classes), 1)
        edges = np.array(training.edges, np.float64)
        reference = np.array(counts, np.int64)
        return cls(contract.target, edges, contract.classes, False, False, reference, training.mean, training.std)


class Layout:
    """The bins of all that a version reads and predicts; made from its contract once."""

    def __init__(self, contract: Contract) -> None:
        self.features = [Bins.of_feature(feature) for feature in contract.features]
        self.predictions = Bins.of_predictions(contract)
        self._codes = {name: code for code, name in enumerate(contract.classes)}
        sizes = [len(bins.reference) for bins in self.features]
        self._starts = np.cumsum([0, *sizes])

    def empty(self) -> "Counts":
        """Return counts that are all 0."""
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

    def count(self, matrix: Matrix) -> tuple[Ints, Floats, Floats]:
        """Return the counts of all features' bins for a matrix of shape (rows, features), its sums and sums of squares.

        Both sums are of differences from training's mean, because squares of large numbers would lose precision.
        """
        positions = np.empty(matrix.shape, np.int64)
        is_missing = np.isnan(matrix)
        for column, (bins, start) in enumerate(zip(self.features, self._starts, strict=False)):
            values = matrix[:, column]
            positions[:, column] = start + (
                np.searchsorted(bins.edges, values) if not bins.names else np.where(is_missing[:, column], 0, values)
            )
            positions[is_missing[:, column], column] = start + len(bins.reference) - 1
        deviations = np.where(is_missing, 0.0, matrix - [bins.mean for bins in self.features])
        return (
            np.bincount(positions.ravel(), minlength=int(self._starts[-1])),
            deviations.sum(axis=0),
            np.square(deviations).sum(axis=0),
        )

    def count_outputs(self, outputs: list[Any]) -> Ints:
        """Return the counts of the predictions' bins for some predictions."""
        bins = self.predictions
        positions = [self._codes[output] for output in outputs] if self._codes else np.searchsorted(bins.edges, outputs)
        return np.bincount(positions, minlength=len(bins.reference))

    def of_feature(self, counts: "Counts", number: int) -> Ints:
        """Return the counts of one feature's bins."""
        return counts.features[self._starts[number] : self._starts[number + 1]]


@dataclass
class Counts:
    """The counts of one version in one role and period.

    Only a canary has the last group: `shadowed` requests whose rows both canary and production predicted, the
    `shadow_failures` in which the canary could not, the rows in which the two `agreed` or `differed`, and the bins of
    its `own` predictions and of those of `production` for these rows.
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
    shadowed: int = 0
    shadow_failures: int = 0

    def add(self, other: "Counts") -> None:
        """Add another period's or worker's counts of the same version."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def without_columns(self) -> Self:
        """Return a copy without the counts that depend on a contract's bins, so that counts of any versions add up."""
        nothing: Any = np.zeros(0, np.int64)
        names = ("features", "sums", "squares", "outputs", "own", "production")
        return replace(self, **dict.fromkeys(names, nothing))

    def dumps(self) -> str:
        """Return the counts as JSON."""
        return orjson.dumps(
            {STORED_AS.get(field.name, field.name): getattr(self, field.name) for field in fields(self)},
            option=orjson.OPT_SERIALIZE_NUMPY,
        ).decode()

    @classmethod
    def loads(cls, text: str) -> Self:
        """Return the counts of a JSON text that `dumps` made."""
        names = {stored: name for name, stored in STORED_AS.items()}
        values: dict[str, Any] = {
            names.get(key, key): np.array(value) if isinstance(value, list) else value
            for key, value in orjson.loads(text).items()
        }
        return cls(**values)

    def quantile(self, share: float) -> float | None:
        """Return the latency, in seconds, that this share of the requests stayed below; None without requests."""
        total = int(self.latency.sum())
        if not total:
            return None
        cumulative = np.cumsum(self.latency)
        position = int(np.searchsorted(cumulative, share * total))
        low = LATENCY_EDGES[position - 1] if position else 0.0
        high = LATENCY_EDGES[min(position, len(LATENCY_EDGES) - 1)]
        before = cumulative[position - 1] if position else 0
        return float(low + (high - low) * (share * total - before) / self.latency[position])

    def slower(self, seconds: float) -> float:
        """Return how many requests took longer than this, interpolated within a bin."""
        position = int(np.searchsorted(LATENCY_EDGES, seconds))
        if position == len(LATENCY_EDGES):
            return float(self.latency[-1])
        low = LATENCY_EDGES[position - 1] if position else 0.0
        share = (LATENCY_EDGES[position] - seconds) / (LATENCY_EDGES[position] - low)
        return float(self.latency[position + 1 :].sum() + share * self.latency[position])
