"""Windows of counts, and leases."""

import threading
import time

import pytest
from sqlalchemy import Engine

from labstack.store import leases, windows
from labstack.store.database import writing
from labstack.store.windows import Window


def window(writer: str, started: float, counts: str, **others: object) -> Window:
    fields = {"model": "m", "version": 1, "role": "production", "trial": "", "source": "s"} | others
    return Window(writer=writer, started=started, counts=counts, **fields)


def put(engine: Engine, *changed: Window) -> None:
    with writing(engine) as session:
        windows.put(session, changed)


def shown(engine: Engine) -> list[tuple[str, float, str, str]]:
    stored = windows.since(engine, "m", 0)
    return sorted((window_.writer, window_.started, window_.trial, window_.counts) for window_ in stored)


def test_a_writer_writes_its_own_again_and_leaves_the_others(engine: Engine) -> None:
    put(engine, window("a", 10, "1"), window("b", 10, "2"))
    put(engine, window("a", 10, "3"), window("a", 20, "4", trial="t"), window("a", 20, "5", model="n"))
    assert shown(engine) == [("a", 10, "", "3"), ("a", 20, "t", "4"), ("b", 10, "", "2")]
    assert [window_.counts for window_ in windows.since(engine, "m", 11)] == ["4"]
    assert [window_.counts for window_ in windows.of_trial(engine, "m", "t")] == ["4"]


def test_old_windows_are_merged_and_nothing_is_counted_twice_or_lost(engine: Engine) -> None:
    def merge() -> int:
        with writing(engine) as session:
            return windows.merge(session, before=250, seconds=100, add=lambda a, b: str(int(a) + int(b)))

    put(engine, window("a", 110, "1"), window("b", 110, "2"), window("a", 120, "4"), window("a", 210, "8"))
    put(engine, window("a", 110, "16", trial="t"), window("a", 300, "32"), window("a", 130, "64", source="other"))
    assert merge() == 6
    merged = [("", 100, "", "64"), ("", 100, "", "7"), ("", 100, "t", "16"), ("", 200, "", "8"), ("a", 300, "", "32")]
    assert shown(engine) == merged
    assert merge() == 0
    put(engine, window("late", 140, "128"))
    assert merge() == 1
    assert shown(engine)[0] == ("", 100, "", "135")
    assert shown(engine)[1] == ("", 100, "", "64"), "of a version whose number was used again"
    with writing(engine) as session:
        windows.remove(session, before=200)
    assert [window_.counts for window_ in windows.since(engine, "m", 0)] == ["8", "32"]


def test_one_of_many_gets_a_lease_and_keeps_it(engine: Engine) -> None:
    taken: list[str] = []

    def take(holder: str) -> None:
        if leases.take(engine, "controller", holder, 60):
            taken.append(holder)

    threads = [threading.Thread(target=take, args=(f"holder {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [holder] = taken
    assert leases.take(engine, "controller", holder, 60)
    assert not leases.take(engine, "controller", "another", 60)
    assert leases.take(engine, "another lease", "another", 60)
    leases.release(engine, "controller", "another")
    assert not leases.take(engine, "controller", "another", 60)
    leases.release(engine, "controller", holder)
    assert leases.take(engine, "controller", "another", 60)


def test_a_lease_that_ended_is_anybodys(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert leases.take(engine, "controller", "one", 5)
    later = time.time() + 6
    monkeypatch.setattr(time, "time", lambda: later)
    assert leases.take(engine, "controller", "another", 5)
    assert not leases.take(engine, "controller", "one", 5)
