"""The cost of the pipeline compared with a plain script, and how it scales: `python -m tests.bench.pipeline`.

Rounds are interleaved, each in a process of its own, imports included; ratios are what counts, as machines differ.
It is written into docs/performance.md.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from labstack.store import datasets
from labstack.store.database import connect, migrate
from tests.bench.common import processor, put_into_docs, report_step
from tests.conftest import environment, free_port, run_mlflow

ROWS, COLUMNS = 20_000, 20
MILLION = 1_000_000
TRIALS, FOLDS, TREES = 12, 5, 50
FOREST = {
    "estimator": "sklearn.ensemble.RandomForestClassifier",
    "params": {"n_estimators": TREES, "random_state": 0, "max_depth": 10},
    "search": {"min_impurity_decrease": {"low": 0.0, "high": 1e-7}},  # so that each trial costs the same
}
BOOSTED = {"estimator": "sklearn.ensemble.HistGradientBoostingClassifier", "params": {"random_state": 0}}


@dataclass(frozen=True)
class Ran:
    """A process that ended: its wall time in seconds, that of its search, and the most memory that it held, in MB."""

    seconds: float
    search_seconds: float
    memory_mb: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write the text into docs/performance.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with run_mlflow(folder, free_port()) as server:
            table = folder / "table.csv"
            make_table(table, ROWS)
            lab = {
                "mlflow_tracking_uri": server.url,
                "lab_database_url": f"sqlite:///{folder}/lab.db",
                "lab_outputs": folder / "outputs",
            }
            taken = searches(folder, table, lab, arguments.rounds)
            store, million = a_million(folder, lab)
    text = report(taken, store, million, arguments.rounds)
    print(text)  # noqa: T201
    if arguments.write:
        put_into_docs("pipeline benchmark", text)


def searches(folder: Path, table: Path, lab: dict[str, Any], rounds: int) -> dict[str, float]:
    """The seconds of the search by hand, of the pipeline, and of the pipeline with two processes: medians."""
    script = Path(__file__).parent / "plain_search.py"
    by_hand = [str(script), *map(str, (table, TRIALS, FOLDS, TREES))]
    taken: dict[str, list[float]] = {}
    for number in range(rounds):
        for kind, command in {
            "by hand": by_hand,
            "pipeline": training(folder, f"one_{number}", {"csv": str(table)}, FOREST, 1),
            "two processes": training(folder, f"two_{number}", {"csv": str(table)}, FOREST, 2),
        }.items():
            fresh = {"search_database_url": f"sqlite:///{folder}/{kind}-{number}.db"}  # lest a search goes on
            ran = run(command, **lab | fresh)
            report_step(step=kind, seconds=round(ran.seconds, 2), memory_mb=round(ran.memory_mb))
            taken.setdefault(kind, []).append(ran.seconds)
            taken.setdefault(f"search, {kind}", []).append(ran.search_seconds)
    return {kind: statistics.median(seconds) for kind, seconds in taken.items()}


def a_million(folder: Path, lab: dict[str, Any]) -> tuple[dict[str, float], Ran]:
    """Rows a second into and out of the store, by what is done, and a training on all of them."""
    table = folder / "million.csv"
    narrow = folder / "narrow.csv"
    make_table(table, MILLION)
    make_table(narrow, MILLION, 5)
    engine = connect(str(lab["lab_database_url"]))
    migrate(engine)
    speeds: dict[str, float] = {}
    for file, width in ((narrow, 6), (table, COLUMNS + 1)):
        speeds[f"in {width}"] = speed(datasets.load_csv, engine, file, file.stem)
        speeds[f"read {width}"] = speed(datasets.read, engine, file.stem)
        speeds[f"out {width}"] = speed(write_out, engine, file.stem, folder / "out.csv")
    report_step(step="store", **{what: round(rows) for what, rows in speeds.items()})
    command = training(folder, "million", {"dataset": "million"}, BOOSTED, 1)
    ran = run(command, **lab | {"search_database_url": f"sqlite:///{folder}/million.db"})
    report_step(step="a million rows", seconds=round(ran.seconds, 1), memory_mb=round(ran.memory_mb))
    return speeds, ran


def speed(do: Callable[..., object], *arguments: object) -> float:
    """Rows a second of each operation on a million rows."""
    began = time.monotonic()
    do(*arguments)
    return MILLION / (time.monotonic() - began)


def write_out(engine: Any, name: str, path: Path) -> None:
    with path.open("w") as file:
        file.writelines(datasets.csv_lines(engine, name))


def make_table(path: Path, rows: int, columns: int = COLUMNS) -> None:
    """A table of numbers with four decimals, and a label that some of them decide, noisily."""
    random = np.random.default_rng(0)
    with path.open("w") as file:
        file.write(",".join([*(f"f{number}" for number in range(columns)), "label\n"]))
        for start in range(0, rows, 50_000):
            part = random.normal(size=(min(50_000, rows - start), columns))
            score = part[:, 0] * part[:, 1] + part[:, 2] + random.normal(size=len(part)) / 2
            for row, label in zip(part.tolist(), np.where(score > 0, "yes", "no").tolist(), strict=True):
                file.write(",".join([f"{value:.4f}" for value in row]) + f",{label}\n")


def training(folder: Path, model: str, source: dict[str, str], candidate: dict[str, Any], processes: int) -> list[str]:
    """The command that trains a pipeline of one candidate."""
    path = folder / f"{model}.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "model": model,
                "task": "classification",
                "data": source | {"target": "label"},
                "preprocessing": {"scale": "none"},
                "candidates": [candidate],
                "search": {"trials": TRIALS, "folds": FOLDS, "prune": False, "processes": processes},
                "metric": "accuracy",
                "after_promotion": "nothing",
            }
        )
    )
    return ["-m", "labstack.cli.main", "train", str(path)]


def run(command: list[str], **settings: Any) -> Ran:
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([sys.executable, *command], env=environment(**settings), stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        output = log.read()
        if process.returncode:
            raise SystemExit(f"{command} failed: {output[-2000:]}")
    return Ran(seconds, search_seconds(output), usage.ru_maxrss / 1024)


def search_seconds(log: str) -> float:
    """Return the seconds from reading the rows to the end of the last trial, by the lines of a log; 0 without any."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    moments = [datetime.fromisoformat(line["timestamp"]) for line in lines if line["message"] in ("rows read", "trial")]
    return (moments[-1] - moments[0]).total_seconds() if moments else 0.0


def report(taken: dict[str, float], store: dict[str, float], million: Ran, rounds: int) -> str:
    by_hand, alone, two = (taken[kind] for kind in ("by hand", "pipeline", "two processes"))
    alone, shared = taken["search, pipeline"], taken["search, two processes"]
    wide = COLUMNS + 1
    machine = f"{os.cpu_count()} cores of {processor()}, with Python {platform.python_version()}"
    search = f"{TRIALS} trials of a forest of {TREES} trees, {FOLDS} folds, {ROWS:,} rows of {COLUMNS} features"
    speeds = {what: f"{store[f'{what} 6']:,.0f} and {store[f'{what} {wide}']:,.0f}" for what in ("in", "read", "out")}
    lines = [
        f"Measured on {machine}; {rounds} rounds, medians, each in a process of its own from its start to its end.",
        "",
        f"| a search: {search} | |",
        "|---|---|",
        f"| a script by hand with scikit-learn and optuna, which prints one number | {by_hand:.1f} s |",
        f"| a pipeline: trials in MLflow, intervals, plots, gates, package, registration | {alone:.1f} s "
        f"({alone / by_hand:.2f}x) |",
        f"| the same with `processes: 2` | {two:.1f} s ({alone / two:.2f}x as fast), its search {shared:.1f} s "
        f"instead of {alone:.1f} s ({alone / shared:.2f}x) |",
        "",
        f"A million rows of {COLUMNS} features, from the store to a gated version of gradient boosting: "
        f"{million.seconds:.0f} s, with {million.memory_mb / 1024:.1f} GB at most. Rows a second of a million with 6 "
        f"columns, and with {wide}: CSV into the store {speeds['in']}, into memory {speeds['read']}, out as CSV "
        f"{speeds['out']}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
