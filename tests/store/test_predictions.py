"""The prediction log and the outcomes that are fed back to it."""

import json
import threading
import time
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from labstack.store import predictions
from labstack.store.database import reading, writing
from labstack.store.predictions import FeedbackError, FeedbackResult, Outcome, Prediction, Row


def row(request_id: str, *outputs: Any, at: float = 0.0, model: str = "m", version: int = 1) -> Row:
    """A prediction of classes with their confidence, or of numbers."""
    shown = [
        {"class": output[0], "confidence": output[1]} if isinstance(output, tuple) else {"value": output}
        for output in outputs
    ]
    return Row(at or time.time(), request_id, model, version, "production", 0.5, None, json.dumps(shown))


def keep(engine: Engine, *rows: Row) -> None:
    with writing(engine) as session:
        predictions.append(session, rows)


def kept(engine: Engine) -> list[str]:
    with reading(engine) as session:
        return list(session.scalars(select(Prediction.request_id).order_by(Prediction.id)))


def test_outcomes_join_their_predictions(engine: Engine) -> None:
    keep(engine, row("a", ("x", 0.9)), row("b", ("x", 0.8)), row("c", ("y", 0.6), ("x", 0.55)))
    feedback = predictions.feed_back(engine, {"a": ["x"], "b": ["y"], "c": ["y", None], "nobody": ["x"]})
    assert feedback == FeedbackResult(recorded=3, unknown=["nobody"])
    live = predictions.live(engine, "m", 1)
    assert (live.count, live.correct, live.absolute) == (3, 2, None)
    summary = live.summary
    assert summary["accuracy"] == pytest.approx(2 / 3)
    assert summary["calibration_error"] == pytest.approx((0.1 + 0.8 + 0.4) / 3)
    assert [tenth["outcomes"] for tenth in summary["calibration"]] == [1, 1, 1]
    assert predictions.live(engine, "m", 2).summary == {"outcomes": 0}
    assert predictions.live(engine, "m", 1, since=time.time() + 1).count == 0


def test_feeding_back_again_changes_nothing_and_another_outcome_takes_its_place(engine: Engine) -> None:
    keep(engine, row("a", ("x", 0.9)))
    assert predictions.feed_back(engine, {"a": ["y"]}) == FeedbackResult(recorded=1)
    assert predictions.feed_back(engine, {"a": ["y"]}) == FeedbackResult(known=1)
    assert predictions.feed_back(engine, {"a": ["x"]}) == FeedbackResult(replaced=1)
    assert (predictions.live(engine, "m", 1).count, predictions.live(engine, "m", 1).correct) == (1, 1)


def test_the_same_fed_back_at_once_counts_once(engine: Engine) -> None:
    keep(engine, *(row(f"r{number}", ("x", 0.9)) for number in range(100)))
    results: list[FeedbackResult] = []
    outcomes = {f"r{number}": ["x"] for number in range(100)}
    threads = [
        threading.Thread(target=lambda: results.append(predictions.feed_back(engine, outcomes))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(result.recorded for result in results) == 100
    assert sum(result.known for result in results) == 700
    assert predictions.live(engine, "m", 1).count == 100


def test_errors_of_numbers(engine: Engine) -> None:
    keep(engine, row("a", 10.0, 20.0), row("b", None))
    assert predictions.feed_back(engine, {"a": [13, 19.0], "b": [1]}) == FeedbackResult(recorded=3)
    summary = predictions.live(engine, "m", 1).summary
    assert summary == {  # of the two that were numbers
        "outcomes": 2,
        "mean_error": pytest.approx(-1),
        "mean_absolute_error": pytest.approx(2),
        "root_mean_square_error": pytest.approx(5**0.5),
    }


def test_errors_too_large_or_small_to_square_break_no_sum(engine: Engine) -> None:
    keep(engine, row("a", 1e30), row("b", 1e-200), row("c", 1e300))
    predictions.feed_back(engine, {"a": [-1e30], "b": [0], "c": [0]})
    live = predictions.live(engine, "m", 1)
    assert live.count == 2
    assert live.absolute == pytest.approx(2e30)
    assert live.squares == pytest.approx(4e60)


@pytest.mark.parametrize(
    ("outcomes", "fault"),
    [
        ({"a": ["x", "y"]}, "has 2 outcomes; the request had 1 rows"),
        ({"n": ["x"]}, "outcome 'x' of row 0 is no number"),
        ({"n": [True]}, "outcome True of row 0 is no number"),
        ({"n": [float("nan")]}, "outcome nan of row 0 is no number"),
        ({"n": [1e200]}, "outcome 1e\\+200 of row 0 is no number"),
        ({"n": [10**400]}, "outcome 1000"),
    ],
)
def test_outcomes_that_do_not_fit_are_named_and_nothing_is_kept(
    engine: Engine, outcomes: dict[str, Any], fault: str
) -> None:
    keep(engine, row("good", ("x", 0.9)), row("a", ("x", 0.9)), row("n", 1.0))
    with pytest.raises(FeedbackError, match=fault):
        predictions.feed_back(engine, {"good": ["x"]} | outcomes)
    assert predictions.live(engine, "m", 1).count == 0


def test_of_a_request_id_that_was_used_twice_the_newest_is_meant(engine: Engine) -> None:
    keep(engine, row("a", ("x", 0.9)), row("a", ("y", 0.9), version=2))
    predictions.feed_back(engine, {"a": ["y"]})
    assert (predictions.live(engine, "m", 1).count, predictions.live(engine, "m", 2).correct) == (0, 1)


def test_classes_that_look_like_numbers_and_words(engine: Engine) -> None:
    keep(engine, row("a", ("1", 0.9)), row("b", ("True", 0.9)), row("c", ("1", 0.9)), row("d", ("1", 0.9)))
    predictions.feed_back(engine, {"a": [1], "b": [True], "c": ["one"], "d": [1.0]})
    assert predictions.live(engine, "m", 1).correct == 3


def test_old_predictions_and_their_outcomes_go(engine: Engine) -> None:
    old = time.time() - 3 * 86400
    keep(engine, row("old", ("x", 0.9), at=old), *(row(f"r{n}", ("x", 0.9)) for n in range(10)))
    predictions.feed_back(engine, {"old": ["x"], "r0": ["x"]})
    assert predictions.expire(engine, days=2, rows=100) == 1
    assert kept(engine) == [f"r{n}" for n in range(10)]
    assert predictions.live(engine, "m", 1).count == 1
    assert predictions.expire(engine, days=2, rows=4) == 6
    assert kept(engine) == ["r6", "r7", "r8", "r9"]
    assert predictions.expire(engine, days=2, rows=4) == 0


def test_many_old_predictions_go_in_parts(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "EXPIRED_AT_ONCE", 4)
    keep(engine, *(row(f"r{n}", 1.0, at=1.0 if n < 5 else 0.0) for n in range(10)))
    assert [predictions.expire(engine, 1, 2) for _ in range(4)] == [4, 4, 0, 0]
    assert kept(engine) == ["r8", "r9"]


def test_the_newest_are_shown_first(engine: Engine) -> None:
    keep(engine, *(row(f"r{n}", 1.0) for n in range(5)), row("other", 1.0, model="n"))
    assert [prediction.request_id for prediction in predictions.recent(engine, "m", 3)] == ["r4", "r3", "r2"]


def test_many_writers_at_once_keep_everything(engine: Engine) -> None:
    def write(writer: int) -> None:
        for batch in range(10):
            keep(engine, *(row(f"{writer}-{batch}-{n}", 1.0) for n in range(50)))

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(kept(engine))) == 6 * 10 * 50
    with reading(engine) as session:
        assert session.scalar(select(func.count()).select_from(Outcome)) == 0
