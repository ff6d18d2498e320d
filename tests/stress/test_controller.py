"""Canaries that the controller judges and moves: two APIs of four workers on one registry, and real versions.

Version 1 is production; each other version is good or bad in one way.
"""

import http.client
import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import skops.io
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, PowerTransformer

from labstack.model.contract import Contract
from labstack.registry import moves
from labstack.registry.roles import Rollout, read_roles
from labstack.store import audit, datasets
from tests.api.conftest import stored
from tests.conftest import Lab, Process, ask, run_api, wait_until

STEPS = "0.3,0.6,1"
MINIMUM = 60


class Trial(NamedTuple):
    """A model whose versions are good or bad by design, and the two APIs that serve it."""

    model: str
    versions: dict[str, int]
    apis: tuple[Process, Process]


@pytest.fixture(scope="module")
def trial(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    model = "trial"
    made = {"production": lab.train("iris", model=model)}
    made["good"] = lab.train("iris", model=model, params={"C": 2.0, "max_iter": 1000})
    made["wrong"] = lab.train("iris", model=model, estimator="sklearn.dummy.DummyClassifier", params={})
    slow = {"estimator": "sklearn.ensemble.RandomForestClassifier", "params": {"n_estimators": 400}}
    made["slow"] = lab.train("iris", model=model, **slow, gates={"onnx": "off"})
    made["failing"] = lab.train("iris", model=model, params={"C": 1.5, "max_iter": 1000})
    fail_on_negative_numbers(lab, stored(lab, model, made["failing"]))
    if read_roles(lab.registry, model).production != 1:
        moves.promote(lab.registry, lab.engine, model, 1, reason="first")
    settings: dict[str, Any] = {
        "mlflow_tracking_uri": lab.tracking_uri,
        "lab_database_url": lab.database_url,
        "default_model_name": model,
        "api_workers": 4,
        "follow_interval_seconds": 0.5,
        "canary_auto": "true",
        "canary_steps": STEPS,
        "canary_interval_seconds": 0.3,
        "canary_minimum_requests": MINIMUM,
        "canary_failure_budget": 5,
        "canary_agreement": 0.7,
    }
    folders = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    with run_api(folders[0], **settings) as first, run_api(folders[1], **settings) as second:
        yield Trial(model, made, (first, second))


def fail_on_negative_numbers(lab: Lab, folder: Path) -> None:
    """Have a version predict its sample and all that is positive, and fail on anything else."""
    table = datasets.read(lab.engine, "iris")
    rows = [list(row.values())[:-1] for row in table.dicts()]
    classes = [row["species"] for row in table.dicts()]
    core = Pipeline([("scale", PowerTransformer("box-cox")), ("model", LogisticRegression(max_iter=1000))])
    core.fit(rows, classes)
    skops.io.dump(Pipeline([("encode", FunctionTransformer()), *core.steps]), folder / "model.skops")
    contract = Contract.read(folder)
    [output] = core.predict([list(contract.sample.input.values())])
    sample = contract.sample.model_copy(update={"output": str(output)})
    contract.model_copy(update={"onnx": None, "sample": sample}).write(folder)


def flower(rng: random.Random, rows: list[dict[str, Any]]) -> tuple[dict[str, float], str]:
    """A row near one of training's, one in ten with a number that is none of a flower's, and its true class."""
    row = dict(rng.choice(rows))
    truth = row.pop("species")
    row["sepal_length"] = round(row["sepal_length"] + rng.gauss(0, 0.05), 4)
    if rng.random() < 0.1:
        row["petal_width"] = -0.1
    return row, truth


class Answered(NamedTuple):
    """The answer to a caller."""

    status: int
    request_id: str
    version: int
    truth: str


@contextmanager
def callers(lab: Lab, trial: Trial) -> Iterator[list[Answered]]:
    """Callers of both APIs, until the end of the context; the list grows meanwhile."""
    rows = list(datasets.read(lab.engine, "iris").dicts())
    done, seen = threading.Event(), list[Answered]()

    def call(api: Process, seed: int) -> None:
        rng = random.Random(seed)  # noqa: S311
        connection = http.client.HTTPConnection("localhost", int(api.url.rpartition(":")[2]), timeout=30)
        while not done.is_set():
            row, truth = flower(rng, rows)
            connection.request("POST", "/predict", json.dumps(row), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            body = json.loads(answer.read())
            version = body.get("model", {}).get("version", 0)
            seen.append(Answered(answer.status, body["request_id"], version, truth))
            time.sleep(0.005)  # the machine is to serve, not to be full
        connection.close()

    seeds = random.Random(1)  # noqa: S311
    threads = [threading.Thread(target=call, args=(api, seeds.random())) for api in trial.apis * 2]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        done.set()
        for thread in threads:
            thread.join()


def moved(lab: Lab, trial: Trial, since: int) -> list[audit.Entry]:
    """The moves of the controller, oldest first."""
    entries = [entry for entry in audit.role_moves(lab.engine, trial.model) if entry.id > since]
    return [entry for entry in reversed(entries) if entry.actor.startswith("controller")]


def newest(lab: Lab) -> int:
    return audit.history(lab.engine, limit=1)[0].id


def try_canary(lab: Lab, trial: Trial, name: str, mode: Any = "split") -> int:
    """Start a canary; the audit's newest entry before."""
    if read_roles(lab.registry, trial.model).production != 1:
        moves.promote(lab.registry, lab.engine, trial.model, 1, reason="as it was")
    before = newest(lab)
    rollout = Rollout(0.3 if mode == "split" else 1, mode)
    number = trial.versions[name]
    moves.start_canary(lab.registry, lab.engine, trial.model, number, rollout, reason="try", who="test")
    for api in trial.apis:
        ask(f"{api.url}/admin/reload", b"", "POST")
    return before


def ended(lab: Lab, trial: Trial) -> Callable[[], bool]:
    return lambda: read_roles(lab.registry, trial.model).canary is None


@pytest.mark.parametrize(
    ("name", "why"),
    [("wrong", "agrees with production on"), ("slow", "p50"), ("failing", "failed predictions|errors")],
)
def test_a_bad_canary_is_taken_out_and_no_caller_fails(lab: Lab, trial: Trial, name: str, why: str) -> None:
    before = try_canary(lab, trial, name)
    with callers(lab, trial) as seen:
        entries = wait_until(lambda: moved(lab, trial, before), 60, "the canary is taken out")
    assert [(entry.role, entry.from_version, entry.to_version) for entry in entries] == [
        ("canary", trial.versions[name], None)
    ]
    assert entries[0].reason.startswith("roll back: ")
    assert re.search(why, entries[0].reason)
    assert entries[0].evidence is not None
    assert entries[0].evidence["outcome"] == "roll back"
    assert read_roles(lab.registry, trial.model).production == 1
    assert {answer.status for answer in seen} == {200}
    assert trial.versions[name] in {answer.version for answer in seen}


def test_a_good_canary_goes_step_by_step_to_production(lab: Lab, trial: Trial) -> None:
    """Each step is made once, although eight workers of two APIs judge it."""
    before = try_canary(lab, trial, "good")
    with callers(lab, trial) as seen:
        wait_until(ended(lab, trial), 90, "the canary is accepted")
        wait_until(lambda: len(moved(lab, trial, before)) >= 4, 5, "the last move is in the audit")
        entries = moved(lab, trial, before)
    number = trial.versions["good"]
    assert [(entry.role, entry.from_version, entry.to_version) for entry in entries] == [
        ("canary", number, number),
        ("production", 1, number),
        ("canary", number, None),
        ("previous", None, 1) if entries[-1].from_version is None else ("previous", entries[-1].from_version, 1),
    ]
    assert all(entry.reason.startswith("advance: not worse") for entry in entries)
    assert entries[0].evidence is not None
    assert entries[0].evidence["next_weight"] == 0.6
    assert {answer.status for answer in seen} == {200}


def test_a_shadow_that_holds_answers_callers_next(lab: Lab, trial: Trial) -> None:
    before = try_canary(lab, trial, "good", "shadow")
    with callers(lab, trial) as seen:

        def stepped() -> Any:
            rollout = read_roles(lab.registry, trial.model).rollout
            return rollout is None or rollout.mode == "split"

        wait_until(stepped, 60, "the canary answers a share")
        answered = [answer.version for answer in seen]
        wait_until(ended(lab, trial), 90, "the canary is accepted")
    first = moved(lab, trial, before)[0]
    assert first.role == "canary"
    assert first.evidence is not None
    assert first.evidence["next_weight"] == 0.3
    assert set(answered[: MINIMUM // 2]) == {1}


def test_a_tie_stays_where_it_is(lab: Lab, trial: Trial) -> None:
    """Outcomes are fed back, too few to tell the two apart: the controller neither advances nor rolls back."""
    before = try_canary(lab, trial, "good")
    api = trial.apis[0]
    with callers(lab, trial) as seen:
        number, few = trial.versions["good"], MINIMUM // 2 + 5

        def by_canary() -> list[int]:
            return [index for index, answer in enumerate(list(seen)) if answer.version == number]

        wait_until(lambda: len(by_canary()) >= few, 30, "some are answered by the canary")
    known = seen[: by_canary()[few - 1] + 1]  # on a busy machine there are more, which may tell the two apart
    outcomes = [{"request_id": answer.request_id, "outcome": answer.truth} for answer in known]

    def feed() -> bool:
        fed = ask(f"{api.url}/feedback", outcomes).json
        return "unknown" in fed and not fed["unknown"]

    wait_until(feed, 10, "all outcomes are known")
    with callers(lab, trial) as seen:
        wait_until(lambda: answered_all(api) >= MINIMUM, 30, "the canary has had its requests")
    for _ in range(3):
        time.sleep(0.5)  # several turns of the controller, that do nothing
        verdict = ask(f"{api.url}/canary-status").json["verdict"]
        assert verdict["outcome"] == "inconclusive", verdict
    findings = {check["name"]: check["found"] for check in verdict["checks"]}
    assert findings["outcomes"] == "unsure"
    assert moved(lab, trial, before) == []
    assert read_roles(lab.registry, trial.model).canary == trial.versions["good"]
    moves.stop_canary(lab.registry, lab.engine, trial.model, reason="end of the test")


def answered_all(api: Process) -> int:
    """The canary's requests in this step, of all workers and both APIs."""
    checks = ask(f"{api.url}/canary-status").json["verdict"]["checks"]
    [agreement] = [check for check in checks if check["name"] == "agreement"]
    return int(agreement["evidence"]["rows"])
