"""The prediction log: what was asked and answered, and the outcomes that were fed back since.

Who writes: each worker's thread that keeps predictions, in batches; whoever feeds back; and the controller, which
alone removes what is old.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Double, Engine, Index, Integer, Text, bindparam, delete, func, select
from sqlalchemy.orm import Mapped, Session, defer, mapped_column

from labstack.errors import LabError
from labstack.store.database import Table, reading, writing

BATCH = 500  # ids that one statement asks for
EXPIRED_AT_ONCE = 20_000  # so that no writer waits long
CALIBRATION_BINS = 10
LARGEST = 1e30  # of an outcome, as of an input; squares of errors must be numbers that any database can add up
SMALLEST = 1e-30  # of an error; any less is none


class Prediction(Table):
    """A request that was answered; `inputs` is None where inputs are not to be kept.

    `at` is in seconds since 1970, and inputs and outputs are JSON, one object a row.
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


class Outcome(Table):
    """What a row that was predicted turned out to be.

    `correct` is 0 or 1, of a class; `error` is predicted less true, of a number.
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
    """Outcomes that do not fit their predictions: `faults` is a list of (where, what is wrong)."""

    def __init__(self, faults: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(" ".join(fault) for fault in faults[:3]) + ".")
        self.faults = faults


@dataclass(frozen=True)
class Fed:
    """How many outcomes were new, took the place of another, or were known; and requests that are not in the log."""

    recorded: int = 0
    replaced: int = 0
    known: int = 0
    unknown: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Live:
    """How predictions met their outcomes.

    Of classes `correct` of them were right; of numbers there are the sums of the absolute errors, of their squares, and
    of the errors with their signs. `calibration` is by confidence, in tenths: outcomes, right ones, mean confidence.
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
        found: dict[str, Any] = {"outcomes": self.count}
        if self.count and self.correct is not None:
            found["accuracy"] = self.correct / self.count
        elif self.count and self.absolute is not None:
            found["mean_error"] = (self.signed or 0.0) / self.count
            found["mean_absolute_error"] = self.absolute / self.count
            found["root_mean_square_error"] = math.sqrt((self.squares or 0.0) / self.count)
        if self.calibration:
            total = sum(number for number, _, _ in self.calibration)
            off = sum(abs(right - mean * number) for number, right, mean in self.calibration)
            found["calibration_error"] = off / total
            found["calibration"] = [
                {"confidence": mean, "accuracy": right / number, "outcomes": number}
                for number, right, mean in self.calibration
            ]
        return found


class Row(NamedTuple):
    """A prediction that is to be added."""

    at: float
    request_id: str
    model: str
    version: int
    role: str
    latency_ms: float
    inputs: str | None
    outputs: str


def append(session: Session, rows: Sequence[Row]) -> None:
    """Add predictions; by the driver's own means, as SQLAlchemy's take longer than the rest of it."""
    connection = session.connection()
    marks = ", ".join(["%s" if connection.dialect.paramstyle in ("format", "pyformat") else "?"] * len(Row._fields))
    connection.exec_driver_sql(f"INSERT INTO predictions ({', '.join(Row._fields)}) VALUES ({marks})", list(rows))  # noqa: S608


def remove(session: Session, rows: Sequence[tuple[str, float]]) -> None:
    """Remove predictions, if they are there, by their request ids and moments."""
    query = delete(Prediction).where(Prediction.request_id == bindparam("id"), Prediction.at == bindparam("moment"))
    session.connection().execute(query, [{"id": request_id, "moment": at} for request_id, at in rows])


def recent(engine: Engine, model: str, limit: int) -> list[Prediction]:
    """The newest predictions of a model, newest first."""
    query = select(Prediction).where(Prediction.model == model).order_by(Prediction.id.desc()).limit(limit)
    with reading(engine) as session:
        return list(session.scalars(query))


def feed_back(engine: Engine, outcomes: Mapping[str, Sequence[Any]]) -> Fed:
    """Note the true values of requests, by their ids, one a row; None where a row's is not known.

    Feeding the same back again changes nothing; another value takes the place of the one before. Where a request id was
    used more than once, its newest prediction is meant. Raises FeedbackError, and then keeps nothing.
    """
    with reading(engine) as session:  # as long as that takes, nobody waits
        predictions = _predictions(session, list(outcomes))
        faults: list[tuple[str, str]] = []
        rows = [
            row
            for request_id, values in outcomes.items()
            if request_id in predictions
            for row in _judged(predictions[request_id], values, faults)
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
        return Fed(new, replaced, len(rows) - new - replaced, unknown)


def live(engine: Engine, model: str, version: int, since: float = 0.0) -> Live:
    """How the predictions that a version made since a moment met the outcomes that are known by now."""
    these = (Outcome.model == model, Outcome.version == version, Outcome.predicted_at >= since)
    tenth = func.floor(Outcome.confidence * (CALIBRATION_BINS - 1e-9))  # certainty is in the last
    with reading(engine) as session:
        sums = func.sum(Outcome.correct), func.sum(func.abs(Outcome.error)), func.sum(Outcome.error * Outcome.error)
        count, correct, absolute, squares, signed = session.execute(
            select(func.count(Outcome.correct) + func.count(Outcome.error), *sums, func.sum(Outcome.error)).where(
                *these
            )
        ).one()
        by_confidence = session.execute(
            select(func.count(), func.sum(Outcome.correct), func.avg(Outcome.confidence))
            .where(*these, Outcome.confidence.is_not(None))
            .group_by(tenth)
            .order_by(tenth)
        ).all()
    calibration = [(number, int(right), float(mean)) for number, right, mean in by_confidence]
    return Live(count, None if correct is None else int(correct), absolute, squares, signed, calibration)


def expire(engine: Engine, days: float, rows: int) -> int:
    """Remove predictions, and outcomes of such, that are older than so many days, and all but the newest so many rows.

    It removes no more than EXPIRED_AT_ONCE; how many it did.
    """
    oldest = time.time() - days * 86400
    with writing(engine) as session:
        newest = session.scalar(select(func.max(Prediction.id))) or 0
        first = select(Prediction.id, Prediction.at).order_by(Prediction.id).limit(EXPIRED_AT_ONCE).subquery()
        removed = _removed(session, Prediction.id.in_(select(first.c.id).where(first.c.at < oldest)))
        if removed < EXPIRED_AT_ONCE:
            many = select(Prediction.id).where(Prediction.id <= newest - rows).order_by(Prediction.id)
            removed += _removed(session, Prediction.id.in_(many.limit(EXPIRED_AT_ONCE - removed)))
        session.execute(delete(Outcome).where(Outcome.predicted_at < oldest))
    return removed


def _removed(session: Session, which: Any) -> int:
    return int(session.execute(delete(Prediction).where(which)).rowcount)  # type: ignore[attr-defined]


def _names(value: Any) -> set[str]:
    """What a class may be called; pandas makes 1.0 of a 1 in a column with gaps."""
    whole = isinstance(value, float) and value.is_integer()
    return {str(value), str(int(value))} if whole else {str(value)}


def _predictions(session: Session, ids: Sequence[str]) -> dict[str, Prediction]:
    """The newest prediction of each request id that is in the log."""
    found: dict[str, Prediction] = {}
    for first in range(0, len(ids), BATCH):
        these = Prediction.request_id.in_(ids[first : first + BATCH])
        query = select(Prediction).options(defer(Prediction.inputs)).where(these).order_by(Prediction.id)
        found |= {one.request_id: one for one in session.scalars(query)}
    return found


def _known(session: Session, ids: Sequence[str]) -> dict[tuple[str, int], Outcome]:
    found: dict[tuple[str, int], Outcome] = {}
    for first in range(0, len(ids), BATCH):
        query = select(Outcome).where(Outcome.request_id.in_(ids[first : first + BATCH]))
        found |= {(one.request_id, one.row): one for one in session.scalars(query)}
    return found


def _judged(prediction: Prediction, values: Sequence[Any], faults: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """The outcomes of one request's rows as columns; what is wrong with them goes to `faults`."""
    outputs = json.loads(prediction.outputs)
    if len(values) != len(outputs):
        fault = f"has {len(values)} outcomes; the request had {len(outputs)} rows"
        faults.append((prediction.request_id, fault))
        return []
    rows = []
    for number, (output, value) in enumerate(zip(outputs, values, strict=True)):
        if value is None:
            continue
        correct, error = None, None
        if "class" in output:
            correct = int(output["class"] in _names(value))
        elif isinstance(value, bool | str) or not abs(value) <= LARGEST:
            said = repr(value)[:50]
            faults.append((prediction.request_id, f"outcome {said} of row {number} is no number, as was predicted"))
            continue
        elif output["value"] is not None and abs(output["value"]) <= LARGEST:
            error = output["value"] - value
            error = 0.0 if abs(error) < SMALLEST else error
        rows.append(
            {
                "request_id": prediction.request_id,
                "row": number,
                "at": time.time(),
                "predicted_at": prediction.at,
                "model": prediction.model,
                "version": prediction.version,
                "actual": json.dumps(value),
                "correct": correct,
                "error": error,
                "confidence": output.get("confidence"),
            }
        )
    return rows
