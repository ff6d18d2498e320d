"""What a version expects: JSON in, a matrix out, or everything that is wrong with it.

`contract.json` is logged with the version and is all that serving knows about a model's inputs and outputs.
"""

import math
from collections.abc import Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

FILE_NAME = "contract.json"
ONNX_FILE_NAME = "model.onnx"
MAX_REPORTED_ERRORS = 100
LARGEST = 1e30  # scikit-learn's trees compute in single precision, after scaling, and fail beyond its 3.4e38

Matrix = npt.NDArray[np.float64]


class Feature(BaseModel):
    """A numeric input and the range it had in training, both ends included."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    minimum: float
    maximum: float


class Sample(BaseModel):
    """An input the version has predicted in training, and what it predicted: a label or a number."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    input: dict[str, float]
    output: str | float


class Onnx(BaseModel):
    """The version's ONNX model, `model.onnx`: its digest, and its largest difference from scikit-learn in training."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    sha256: str
    form: str
    parity: float


class Contract(BaseModel):
    """Features in the order of the matrix's columns, classes in that of the probabilities; none for regression.

    A version with an ONNX model is served by it, any other by scikit-learn.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    task: Literal["classification", "regression"]
    target: str
    features: tuple[Feature, ...]
    classes: tuple[str, ...]
    sample: Sample
    onnx: Onnx | None = None

    @classmethod
    def read(cls, folder: Path) -> "Contract":
        """The contract in a version's folder. Raises OSError or ValueError when there is none, or no valid one."""
        return cls.model_validate_json((folder / FILE_NAME).read_bytes())

    def write(self, folder: Path) -> Path:
        """Write the contract into a version's folder; its path."""
        path = folder / FILE_NAME
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return path


class ContractError(Exception):
    """The input breaks the contract: `errors` is a list of (where, what is wrong), `count` how many there were."""

    def __init__(self, errors: Sequence[tuple[str, str]]) -> None:
        self.count = len(errors)
        self.errors = list(errors[:MAX_REPORTED_ERRORS])
        first = " ".join(self.errors[0])
        super().__init__(first if self.count == 1 else f"{first}; and {self.count - 1} more faults")


class Plan:
    """How rows become a matrix, compiled from a contract once."""

    def __init__(self, contract: Contract) -> None:
        self._names = [feature.name for feature in contract.features]
        self._pick = itemgetter(*self._names, self._names[0])  # of two names at least it makes a tuple
        self._width = len(self._names)

    def matrix(self, rows: Sequence[Any], prefix: str = "") -> Matrix:
        """The rows, JSON objects with a number for each feature, as a matrix of shape (rows, features).

        `prefix` is what stands before a row's number in the place of an error, e.g. `instances` in `instances[2].age`;
        without one the only row's fields stand alone. Raises ContractError that names every fault.
        """
        try:
            picked = list(map(self._pick, rows))
            if (
                {dict}.issuperset(map(type, rows))
                and {self._width}.issuperset(map(len, rows))
                and {float, int}.issuperset(map(type, chain.from_iterable(picked)))
            ):
                matrix = np.array(picked, np.float64)[:, :-1]
                if matrix.min() >= -LARGEST and matrix.max() <= LARGEST:  # false where a number is none
                    return matrix
        except (KeyError, TypeError, OverflowError):
            pass  # something is wrong: find out what, row by row
        return _matrix_or_faults(self._names, rows, prefix)


def _matrix_or_faults(features: list[str], rows: Sequence[Any], prefix: str) -> Matrix:
    known = set(features)
    matrix = np.empty((len(rows), len(features)))
    errors: list[tuple[str, str]] = []
    for number, row in enumerate(rows):
        place = f"{prefix}[{number}]" if prefix else ""
        if not isinstance(row, dict):
            errors.append(
                (place or "body", f"is {_kind(row)}; an object with the fields {', '.join(features)} is needed")
            )
            continue
        dot = "." if place else ""
        for column, name in enumerate(features):
            value = row.get(name, _MISSING)
            fault = _fault(value)
            if fault is None:
                matrix[number, column] = value
            else:
                errors.append((f"{place}{dot}{name}", fault))
        if len(row) > len(features) or not known.issuperset(row):
            errors += [(f"{place}{dot}{name}", "is not a field of this model") for name in row if name not in known]
    if errors:
        raise ContractError(errors)
    return matrix


_MISSING = object()


def _fault(value: object) -> str | None:
    """What keeps a JSON value from being a number, or None."""
    if type(value) is float:
        if not math.isfinite(value):
            return f"is {value}; a finite number is needed"
        return None if abs(value) <= LARGEST else "is too large a number"
    if type(value) is int:
        return None if abs(value) <= LARGEST else "is too large a number"
    if value is _MISSING:
        return "is missing"
    return f"is {_kind(value)}; a number is needed"


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return f"the boolean {str(value).lower()}"
        case str():
            return "text"
        case int() | float():
            return "a number"
        case list():
            return "a list"
        case _:
            return "an object"
