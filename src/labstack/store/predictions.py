"""The prediction log: inputs and outputs of each prediction, and the outcomes that were fed back since.

Who writes: each worker's prediction log, in batches; the API when outcomes are fed back; and the controller, which
alone removes old rows.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Double, Engine, Index, Integer, Text, bindparam, delete, func, select
from sqlalchemy.orm import Mapped, Session, defer, mapped_column

from labstack.errors import LabError
from labstack.store.database import Base, reading, writing

BATCH = 500  # ids in one statement
EXPIRED_AT_ONCE = 20_000  # rows in one transaction, so that no writer waits long
CALIBRATION_BINS = 10
LARGEST = 1e30  # of an outcome, as of an input; any database must be able to add up squares of errors
SMALLEST = 1e-30  # of an error; a smaller one counts as none


class Prediction(Base):
    """A request that was answered; `inputs` is None if inputs are not to be kept.

    `at` is in seconds since 1970; inputs and outputs are JSON, one object a row.
    """

    __tablename__ = "predictions"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    at: Mapped[float] = mapped_column(Double)
    request_id: Mapped[str] = mapped_column(index=True)
    model: Mapped[str]
    version: Mapped[int]
    role: Mapped[str]
    latency_ms: Mapped[float] = mapped_column(Double)
    inputs: Mapped[str | None] = mapped_column(Text)
    outputs: Mapped[str] = mapped_column(Text)


class Outcome(Base):
    """The true value of a row that was predicted.

    For a class, `correct` is 0 or 1; for a number, `error` is the predicted value minus the true one.
    """

    __tablename__ = "outcomes"
    __table_args__ = (Index("ix_outcomes_version", "model", "version", "predicted_at"),)

    request_id: Mapped[str] = mapped_column(primary_key=True)
    row: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float] = mapped_column(Double)
    predicted_at: Mapped[float] = mapped_column(Double, index=True)
    model: Mapped[str]
    version: Mapped[int]
    actual: Mapped[str] = mapped_column(Text)
    correct: Mapped[int | None]
    error: Mapped[float | None] = mapped_column(Double)
    confidence: Mapped[float | None] = mapped_column(Double)


class FeedbackError(LabError):
    """Outcomes do not fit their predictions: `faults` is a list of (request id, message)."""

    def __init__(self, faults: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(" ".join(fault) for fault in faults[:3]) + ".")
        self.faults = faults


@dataclass(frozen=True)
class FeedbackResult:
    """The numbers of outcomes that were new, replaced another, or were known; and the request ids not in the log."""

    recorded: int = 0
    replaced: int = 0
    known: int = 0
    unknown: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LiveQuality:
    """The quality of predictions by their outcomes.

    For classes, `correct` is the number of correct ones; for numbers there are the sums of the absolute errors, of
    their squares, and of the signed errors. `calibration` is by tenths of confidence: the number of outcomes, of
    correct ones, and the mean confidence.
    """

    count: int
    correct: int | None
    absolute: float | None
    squares: float | None
    signed: float | None
    calibration: list[tuple[int, int, float]]

    @property
    def summary(self) -> dict[str, Any]:
        """For people: accuracy and expected calibration error, or the mean, mean absolute and root mean square error.

        The calibration error is the mean distance of confidence from accuracy, over tenths of confidence: Guo et al.,
        On Calibration of Modern Neural Networks (2017).
        """
        shown: dict[str, Any] = {"outcomes": self.count}
        if self.count and self.correct is not None:
            shown["accuracy"] = self.correct / self.count
        elif self.count and self.absolute is not None:
            shown["mean_error"] = (self.signed or 0.0) / self.count
            shown["mean_absolute_error"] = self.absolute / self.count
            shown["root_mean_square_error"] = math.sqrt((self.squares or 0.0) / self.count)
        if self.calibration:
            total = sum(count for count, _, _ in self.calibration)
            distance = sum(abs(correct - confidence * count) for count, correct, confidence in self.calibration)
            shown["calibration_error"] = distance / total
            shown["calibration"] = [
                {"confidence": confidence, "accuracy": correct / count, "outcomes": count}
                for count, correct, confidence in self.calibration
            ]
        return shown


class Row(NamedTuple):
    """A prediction to be added."""

    at: float
    request_id: str
    model: str
    version: int
    role: str
    latency_ms: float
    inputs: str | None
    outputs: str


def append(session: Session, rows: Sequence[Row]) -> None:
    """Add predictions through the driver, as SQLAlchemy's inserts would take longer than everything else."""
    connection = session.connection()
    marks = ", ".join(["%s" if connection.dialect.paramstyle in ("format", "pyformat") else "?"] * len(Row._fields))
    connection.exec_driver_sql(f"INSERT INTO predictions ({', '.join(Row._fields)}) VALUES ({marks})", list(rows))  # noqa: S608


def remove(session: Session, keys: Sequence[tuple[str, float]]) -> None:
    """Remove the predictions of these request ids and times, as far as they exist."""
    query = delete(Prediction).where(Prediction.request_id == bindparam("id"), Prediction.at == bindparam("moment"))
    session.connection().execute(query, [{"id": request_id, "moment": at} for request_id, at in keys])


def recent(engine: Engine, model: str, limit: int) -> list[Prediction]:
    """Return the newest predictions of a model, newest first."""
    query = select(Prediction).where(Prediction.model == model).order_by(Prediction.id.desc()).limit(limit)
    with reading(engine) as session:
        return list(session.scalars(query))


def feed_back(engine: Engine, outcomes: Mapping[str, Sequence[Any]]) -> FeedbackResult:
    """Keep the true values of requests by their ids, one for each row, None where it is not known.

    The same values again change nothing; other values replace the former ones. A request id that was used more than
    once means its newest prediction. Raises FeedbackError, and then keeps nothing.
    """
    with reading(engine) as session:  # most of the work, which delays no writer
        predictions = _predictions(session, list(outcomes))
        faults: list[tuple[str, str]] = []
        rows = [
            row
            for request_id, values in outcomes.items()
            if request_id in predictions
            for row in _judge(predictions[request_id], values, faults)
        ]
    if faults:
        raise FeedbackError(faults)
    with writing(engine) as session:
        known = _known(session, list(predictions))
        new = replaced = 0
        for row in rows:
            before = known.get((row["request_id"], row["row"]))
            if before is None:
                new += 1
                session.add(Outcome(**row))
            elif before.actual != row["actual"] or before.predicted_at != row["predicted_at"]:
                replaced += 1
                session.merge(Outcome(**row))
        unknown = [request_id for request_id in outcomes if request_id not in predictions]
        return FeedbackResult(new, replaced, len(rows) - new - replaced, unknown)


def live(engine: Engine, model: str, version: int, since: float = 0.0) -> LiveQuality:
    """Return the quality of a version's predictions since a time, by the outcomes that are known so far."""
    conditions = (Outcome.model == model, Outcome.version == version, Outcome.predicted_at >= since)
    totals = select(
        func.count(Outcome.correct) + func.count(Outcome.error),
        func.sum(Outcome.correct),
        func.sum(func.abs(Outcome.error)),
        func.sum(Outcome.error * Outcome.error),
        func.sum(Outcome.error),
    ).where(*conditions)
    tenth = func.floor(Outcome.confidence * (CALIBRATION_BINS - 1e-9))  # a confidence of 1 belongs to the last one
    by_confidence = (
        select(func.count(), func.sum(Outcome.correct), func.avg(Outcome.confidence))
        .where(*conditions, Outcome.confidence.is_not(None))
        .group_by(tenth)
        .order_by(tenth)
    )
    with reading(engine) as session:
        count, correct, absolute, squares, signed = session.execute(totals).one()
        tenths = session.execute(by_confidence).all()
    calibration = [(size, int(right), float(confidence)) for size, right, confidence in tenths]
    return LiveQuality(count, None if correct is None else int(correct), absolute, squares, signed, calibration)


def expire(engine: Engine, days: float, rows: int) -> int:
    """Remove predictions and outcomes older than so many days, and all but the newest predictions.

    Return how many predictions were removed, at most EXPIRED_AT_ONCE; `rows` is how many may stay.
    """
    oldest = time.time() - days * 86400
    with writing(engine) as session:
        newest = session.scalar(select(func.max(Prediction.id))) or 0
        first = select(Prediction.id, Prediction.at).order_by(Prediction.id).limit(EXPIRED_AT_ONCE).subquery()
        removed = _remove(session, Prediction.id.in_(select(first.c.id).where(first.c.at < oldest)))
        if removed < EXPIRED_AT_ONCE:
            excess = select(Prediction.id).where(Prediction.id <= newest - rows).order_by(Prediction.id)
            removed += _remove(session, Prediction.id.in_(excess.limit(EXPIRED_AT_ONCE - removed)))
        session.execute(delete(Outcome).where(Outcome.predicted_at < oldest))
    return removed


def _remove(session: Session, condition: Any) -> int:
    return int(session.execute(delete(Prediction).where(condition)).rowcount)  # type: ignore[attr-defined]


def _predictions(session: Session, ids: Sequence[str]) -> dict[str, Prediction]:
    """Return the newest prediction of each request id that is in the log."""
    predictions: dict[str, Prediction] = {}
    for batch in _batches(ids):
        condition = Prediction.request_id.in_(batch)
        query = select(Prediction).options(defer(Prediction.inputs)).where(condition).order_by(Prediction.id)
        predictions |= {prediction.request_id: prediction for prediction in session.scalars(query)}
    return predictions


def _known(session: Session, ids: Sequence[str]) -> dict[tuple[str, int], Outcome]:
    """Return the outcomes of request ids that were fed back before, by request id and row."""
    outcomes: dict[tuple[str, int], Outcome] = {}
    for batch in _batches(ids):
        query = select(Outcome).where(Outcome.request_id.in_(batch))
        outcomes |= {(outcome.request_id, outcome.row): outcome for outcome in session.scalars(query)}
    return outcomes


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(ids), BATCH):
        yield ids[first : first + BATCH]


def _judge(prediction: Prediction, values: Sequence[Any], faults: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return the outcomes of one request's rows as columns, and add what is wrong with them to `faults`."""
    outputs = json.loads(prediction.outputs)
    if len(values) != len(outputs):
        fault = f"has {len(values)} outcomes; the request had {len(outputs)} rows"
        faults.append((prediction.request_id, fault))
        return []
    rows = []
    for number, (output, value) in enumerate(zip(outputs, values, strict=True)):
        if value is None:
            continue
        if "value" in output and (isinstance(value, bool | str) or not abs(value) <= LARGEST):
            shown = repr(value)[:50]
            faults.append((prediction.request_id, f"outcome {shown} of row {number} is no number, as was predicted"))
            continue
        rows.append(
            {
                "request_id": prediction.request_id,
                "row": number,
                "at": time.time(),
                "predicted_at": prediction.at,
                "model": prediction.model,
                "version": prediction.version,
                "actual": json.dumps(value),
                "correct": int(output["class"] in _names(value)) if "class" in output else None,
                "error": _error(output["value"], value) if "value" in output else None,
                "confidence": output.get("confidence"),
            }
        )
    return rows


def _error(predicted: float | None, value: float) -> float | None:
    """Return the error of a number; None where the prediction was not finite or too large to add up its square."""
    if predicted is None or not abs(predicted) <= LARGEST:
        return None
    error = predicted - value
    return 0.0 if abs(error) < SMALLEST else error


def _names(value: Any) -> set[str]:
    """Return the names that a class may have; pandas turns 1 into 1.0 in a column with missing values."""
    is_whole = isinstance(value, float) and value.is_integer()
    return {str(value), str(int(value))} if is_whole else {str(value)}
