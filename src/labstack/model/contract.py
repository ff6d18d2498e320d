"""The contract of a version: its features and outputs, and the plan that turns JSON rows into a matrix.

Training writes `contract.json` with the version; serving knows nothing else about a model's inputs and outputs.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

FILE_NAME = "contract.json"
ONNX_FILE_NAME = "model.onnx"
MAX_REPORTED_ERRORS = 100
MAX_BYTES = 16 << 20  # of a contract's file
MAX_FEATURES = 10_000
MAX_NAMES = 10_000  # of a feature's categories, or of a target's classes
MAX_EDGES = 1_000
LARGEST = 1e30  # scikit-learn's trees compute in single precision, after scaling, and fail above its maximum, 3.4e38

Matrix = npt.NDArray[np.float64]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Name = Annotated[str, Field(max_length=1_000)]
Category = Annotated[str, Field(max_length=10_000)]


class Reference(BaseModel):
    """The distribution of values in training: the number of rows in each bin, or of each category or class.

    For numbers, a bin is the range from one of the ascending `edges` to the next one, which it includes; the first and
    the last bin are open. A missing value is in no bin. `mean` and `std` are of numbers.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    edges: tuple[Finite, ...] = Field((), max_length=MAX_EDGES)
    counts: tuple[Count, ...] = Field(max_length=MAX_NAMES)
    missing: Count = 0
    mean: Finite = 0.0
    std: Annotated[Finite, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if any(low >= high for low, high in pairwise(self.edges)):
            raise ValueError("edges must ascend")
        return self

    def require_bins(self, names: Sequence[str]) -> None:
        """Raise ValueError unless there is a count for each name or, when there are no names, for each bin."""
        bins = len(names) or len(self.edges) + 1
        if len(self.counts) != bins or (names and self.edges):
            raise ValueError(f"reference: {len(self.counts)} counts and {len(self.edges)} edges for {bins} bins")


class Feature(BaseModel):
    """An input: a number, with its range in training, both ends included, or one of its categories.

    In the matrix a category is its index in `categories`; a missing value, where it is allowed, is NaN.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: Name
    minimum: Finite = 0.0
    maximum: Finite = 0.0
    categories: tuple[Category, ...] = Field((), max_length=MAX_NAMES)
    missing: bool = False
    reference: Reference | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.minimum > self.maximum:
            raise ValueError("minimum must not be more than maximum")
        _require_unique("categories", self.categories)
        if self.reference is not None:
            self.reference.require_bins(self.categories)
        return self


class Sample(BaseModel):
    """An input that the version predicted in training, and its output: a label or a number."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    input: dict[str, float | str | None]
    output: str | Finite


class Onnx(BaseModel):
    """The version's ONNX model, `model.onnx`: its digest, and its largest difference from scikit-learn in training."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    sha256: str
    form: str
    parity: float


class Contract(BaseModel):
    """Features in the order of the matrix's columns, classes in that of the probabilities; a regression has no classes.

    `reference` is the distribution of the predictions for held-out rows, with classes in their order. A version with an
    ONNX model is served by it, any other by scikit-learn.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    task: Literal["classification", "regression"]
    target: Name
    features: tuple[Feature, ...] = Field(max_length=MAX_FEATURES)
    classes: tuple[Category, ...] = Field(max_length=MAX_NAMES)
    sample: Sample
    onnx: Onnx | None = None
    reference: Reference | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        _require_unique("features", [feature.name for feature in self.features])
        _require_unique("classes", self.classes)
        if (self.task == "classification") != bool(self.classes):
            raise ValueError("classes: a classification has some, and a regression none")
        if self.classes and self.sample.output not in self.classes:
            raise ValueError("sample: its output is none of the classes")
        if not self.classes and isinstance(self.sample.output, str):
            raise ValueError("sample: the output of a regression is a number")
        if self.reference is not None:
            self.reference.require_bins(self.classes)
        return self

    @classmethod
    def read(cls, folder: Path) -> "Contract":
        """Read the contract in a version's folder. Raises OSError or ValueError when it is missing or not valid."""
        path = folder / FILE_NAME
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{FILE_NAME} holds more than {MAX_BYTES:,} bytes.")
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            errors = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}".lstrip(": ") for item in error.errors()[:3]]
            raise ValueError(f"{FILE_NAME} is not valid: {'; '.join(errors)}.") from None

    def write(self, folder: Path) -> Path:
        """Write the contract into a version's folder; return the file's path."""
        path = folder / FILE_NAME
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return path

    def breaks_with(self, other: "Contract") -> list[str]:
        """Return the differences that break callers of `other`, in the bodies they send or the answers they read.

        The order is that of the features; an empty list when callers can go on.
        """
        differences = []
        if self.task != other.task:
            differences.append(f"its task is {self.task}, not {other.task}")
        features = {feature.name: feature for feature in self.features}
        known = {feature.name: feature for feature in other.features}
        differences += [f"it takes no field {name!r}" for name in known if name not in features]
        differences += [f"it needs the field {name!r}" for name in features if name not in known]
        for name, before in known.items():
            if name in features:
                differences += _differences(features[name], before)
        if set(self.classes) != set(other.classes):
            differences.append(f"its classes are {', '.join(self.classes)}, not {', '.join(other.classes)}")
        return differences


def _differences(feature: Feature, before: Feature) -> Iterator[str]:
    """Yield what values of a feature were accepted before, and are not any more."""
    name = feature.name
    if bool(feature.categories) != bool(before.categories):
        yield f"{name!r} is a {'category' if feature.categories else 'number'}"
    elif gone := sorted(set(before.categories) - set(feature.categories)):
        yield f"{name!r} knows no {', '.join(gone)}"
    if before.missing and not feature.missing:
        yield f"{name!r} may not be missing"


def _require_unique(field: str, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise ValueError(f"{field}: a name is given twice")


class ContractError(Exception):
    """The input breaks the contract: `errors` are the first pairs of field and message, `count` that of all."""

    def __init__(self, errors: Sequence[tuple[str, str]]) -> None:
        self.count = len(errors)
        self.errors = list(errors[:MAX_REPORTED_ERRORS])
        first = " ".join(self.errors[0])
        super().__init__(first if self.count == 1 else f"{first}; and {self.count - 1} more errors")


FieldMessages = list[tuple[str, str]]  # (field, message)


class Plan:
    """The parser that turns rows into a matrix, compiled once from a contract."""

    def __init__(self, contract: Contract) -> None:
        self._features = contract.features
        self._names = [feature.name for feature in contract.features]
        self._pick = itemgetter(*self._names, self._names[0])  # with two names or more it makes a tuple
        self._width = len(self._names)
        self._plain = not any(feature.categories or feature.missing for feature in contract.features)
        self._codes = [_codes(feature) for feature in contract.features]
        self._minima, self._maxima = np.array(
            [(0, len(f.categories) - 1) if f.categories else (f.minimum, f.maximum) for f in contract.features]
        ).T.copy()

    def parse(self, rows: Sequence[Any], prefix: str = "") -> tuple[Matrix, FieldMessages]:
        """Return rows, JSON objects, as a matrix of shape (rows, features), and warnings of values out of range.

        `prefix` comes before a row's number in the name of a field, e.g. `instances` in `instances[2].age`; without a
        prefix, for a single row, fields are named alone. Raises ContractError with every error.
        """
        matrix = self._quickly(rows)
        if matrix is not None:
            in_range = (matrix >= self._minima) & (matrix <= self._maxima)
            if in_range.all():
                return matrix, []
            if self._plain and not (matrix.min() >= -LARGEST and matrix.max() <= LARGEST):  # false for NaN
                matrix = None
        if matrix is None:  # something may be wrong: find the errors row by row
            matrix = self._row_by_row(rows, prefix)
            in_range = (matrix >= self._minima) & (matrix <= self._maxima)
        return matrix, self._out_of_range(matrix, in_range, prefix)

    def inputs(self, matrix: Matrix) -> list[dict[str, Any]]:
        """Return the rows that a matrix was made from, for the log."""
        rows = [dict(zip(self._names, row, strict=True)) for row in matrix.tolist()]
        for feature in self._features if not self._plain else ():
            for row in rows:
                value = row[feature.name]
                missing = math.isnan(value)
                row[feature.name] = None if missing else feature.categories[int(value)] if feature.categories else value
        return rows

    def _quickly(self, rows: Sequence[Any]) -> Matrix | None:
        """Return the matrix of valid rows, or None. Its numbers may still be too large, or NaN."""
        try:
            picked = list(map(self._pick, rows))
            if not ({dict}.issuperset(map(type, rows)) and {self._width}.issuperset(map(len, rows))):
                return None
            if self._plain:
                if not {float, int}.issuperset(map(type, chain.from_iterable(picked))):
                    return None
                return np.array(picked, np.float64)[:, :-1]
            matrix = np.empty((len(rows), self._width))
            columns = zip(*picked, strict=True)  # one more than features
            for number, (feature, codes) in enumerate(zip(self._features, self._codes, strict=True)):
                matrix[:, number] = _column(feature, codes, next(columns))
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        return matrix

    def _row_by_row(self, rows: Sequence[Any], prefix: str) -> Matrix:
        known = set(self._names)
        matrix = np.empty((len(rows), self._width))
        errors: FieldMessages = []
        for number, row in enumerate(rows):
            path = f"{prefix}[{number}]" if prefix else ""
            if not isinstance(row, dict):
                fields = ", ".join(self._names)
                errors.append((path or "body", f"is {_kind(row)}; an object with the fields {fields} is needed"))
                continue
            start = f"{path}." if path else ""
            for column, (feature, codes) in enumerate(zip(self._features, self._codes, strict=True)):
                value = row.get(feature.name, _MISSING)
                error = _value_error(value, feature)
                if error is None:
                    matrix[number, column] = codes[value] if codes and isinstance(value, str | None) else value
                else:
                    errors.append((f"{start}{feature.name}", error))
            if not known.issuperset(row):
                errors += [(f"{start}{name}", "is not a field of this model") for name in row if name not in known]
        if errors:
            raise ContractError(errors)
        return matrix

    def _out_of_range(self, matrix: Matrix, in_range: npt.NDArray[np.bool_], prefix: str) -> FieldMessages:
        warnings = []
        for number, column in np.argwhere(~in_range & ~np.isnan(matrix))[:MAX_REPORTED_ERRORS].tolist():
            feature = self._features[column]
            start = f"{prefix}[{number}]." if prefix else ""
            value = matrix[number, column]
            limits = f"{feature.minimum:g} to {feature.maximum:g}"
            warnings.append((f"{start}{feature.name}", f"is {value:g}, out of the range of training, {limits}"))
        return warnings


def _codes(feature: Feature) -> dict[str | None, float]:
    """Return the numbers in the matrix that stand for categories and for a missing value."""
    codes: dict[str | None, float] = {name: float(code) for code, name in enumerate(feature.categories)}
    return codes | ({None: math.nan} if feature.missing else {})


def _column(feature: Feature, codes: dict[str | None, float], cells: tuple[Any, ...]) -> Sequence[float] | Matrix:
    """Return a column's cells as numbers. Raises KeyError, TypeError, ValueError or OverflowError for a wrong one."""
    if feature.categories:
        return [codes[cell] for cell in cells]
    if not {float, int, *map(type, codes)}.issuperset(map(type, cells)):
        raise TypeError
    numbers = np.array(cells, np.float64)  # None becomes NaN
    if np.isnan(numbers).sum() != cells.count(None) or (np.abs(numbers) > LARGEST).any():
        raise ValueError
    return numbers


_MISSING = object()


def _value_error(value: object, feature: Feature) -> str | None:
    """Return the reason why a JSON value is not one of a feature, or None."""
    if value is None and feature.missing:
        return None
    if value is _MISSING:
        return "is missing"
    if feature.categories:
        if isinstance(value, str):
            return None if value in feature.categories else f"is none of {_first_names(feature.categories)}"
        return f"is {_kind(value)}; one of {_first_names(feature.categories)} is needed"
    if type(value) is float and not math.isfinite(value):
        return f"is {value}; a finite number is needed"
    if type(value) is float or type(value) is int:
        return None if abs(value) <= LARGEST else "is too large a number"
    return f"is {_kind(value)}; a number is needed"


def _first_names(names: Sequence[str]) -> str:
    """Return the first ten names as text, and the number of the others."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


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
