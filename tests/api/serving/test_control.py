"""The control folder."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from labstack.api.serving.control import Control, WorkerState


def test_each_reload_raises_the_generation_by_one_even_at_once(tmp_path: Path) -> None:
    control = Control(tmp_path)
    assert control.desired() == 0
    with ThreadPoolExecutor(8) as pool:
        raised = list(pool.map(lambda _: Control(tmp_path).raise_desired(), range(100)))
    assert sorted(raised) == list(range(1, 101))
    assert control.desired() == 100


def test_states_come_back_and_are_forgotten(tmp_path: Path) -> None:
    control = Control(tmp_path)
    states = [WorkerState(1, 4, {"iris": {"production": 2}}), WorkerState(22, -1, {}, {"": "not reached"})]
    for state in reversed(states):
        control.report(state)
    assert control.states() == states
    control.forget(1)
    control.forget(1)
    assert control.states() == states[1:]


def test_readers_never_see_half_a_state(tmp_path: Path) -> None:
    control = Control(tmp_path)
    state = WorkerState(os.getpid(), 1, {f"model_{number}": {"production": number} for number in range(1000)})
    control.report(state)
    with ThreadPoolExecutor(2) as pool:
        writer = pool.submit(lambda: list(map(control.report, [state] * 200)))
        while not writer.done():
            assert control.states() == [state]
        writer.result()  # raises what the writer raised


def test_a_counter_that_was_cleaned_away_never_falls_behind_what_workers_reached(tmp_path: Path) -> None:
    control = Control(tmp_path)
    control.report(WorkerState(1, 7, {}))
    assert control.raise_desired() == 8
