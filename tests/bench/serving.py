"""The speed of Labstack compared with other servers, on one machine in one run: `python -m tests.bench.serving`.

Each opponent has an environment of its own, two workers, and one row a request on connections that are kept alive.
Rounds are interleaved, each with fresh connections; the table holds medians, and the ratios are what counts, as
machines differ and are shared. It is written into docs/performance.md. Needs wrk.
"""

import argparse
import json
import os
import pickle
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from labstack.model import skops_file
from labstack.registry.client import MlflowRest
from labstack.settings import ROOT, Settings
from labstack.store import datasets
from labstack.store.database import connect, migrate
from labstack.training import config
from labstack.training.train import train
from tests.bench.common import processor, put_into_docs, report_step
from tests.conftest import IRIS_ROW, ask, free_port, run_api, run_mlflow, wait_until

OPPONENTS = Path(__file__).parent / "opponents"
CONNECTIONS = (16, 64)
MODELS = {
    "iris": "logistic regression",
    "forest": "random forest of 100 trees",
}
SKLEARN = ("scikit-learn==1.8.0", "numpy==2.4.6")  # as in conda-cfg
ENVIRONMENTS = {
    "mlflow": ("mlflow==3.12.0", "uvloop==0.23.0", "httptools==0.9.0", "skops==0.14.*", *SKLEARN),
    "fastapi": ("fastapi==0.165.0", "uvicorn[standard]==0.54.0", *SKLEARN),
}


@dataclass
class Service:
    """A server under test: its URL and process for each model, and the body of a request."""

    name: str
    urls: dict[str, str]
    pids: dict[str, int]
    body: Any = field(default_factory=lambda: IRIS_ROW)


@dataclass(frozen=True)
class Measured:
    """One round of wrk."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    cpu_us: float  # of the service, for each request


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each round")
    parser.add_argument("--write", action="store_true", help="write the table into docs/performance.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        report_step(step="environments")
        pythons = {opponent: environment(opponent) for opponent in ENVIRONMENTS}
        report_step(step="models")
        url = stack.enter_context(run_mlflow(folder, free_port())).url
        prepare(url, folder)
        api, start_seconds = stack.enter_context(started_api(url, folder))
        services = [
            api,
            floor(stack, folder, "empty Flask on gunicorn", "flask_floor"),
            floor(stack, folder, "bare WSGI on gunicorn", "wsgi_floor"),
            mlflow_serve(stack, folder, pythons["mlflow"], url),
            fastapi(stack, folder, pythons["fastapi"]),
        ]
        results = measure(services, folder, arguments.rounds, arguments.seconds)
        memory = memory_mb(api.pids["iris"])
        ratio = {model: batch_ratio(api, model, url, folder) for model in MODELS}
    text = report(services, results, start_seconds, memory, ratio)
    print(text)  # noqa: T201
    if arguments.write:
        put_into_docs("serving benchmark", text)


def environment(name: str) -> Path:
    """The Python of an opponent's own environment, made when it is not there."""
    folder = ROOT / ".lab" / "bench" / name
    stamp, wanted = folder / "requirements.txt", "\n".join(ENVIRONMENTS[name])
    if not (stamp.exists() and stamp.read_text() == wanted):
        uv: list[str | Path] = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
        install = [*uv, "pip", "install", "--quiet", "--python", folder / "bin" / "python", *ENVIRONMENTS[name]]
        subprocess.run(install, check=True)
        stamp.write_text(wanted)
    return folder / "bin" / "python"


def prepare(url: str, folder: Path) -> None:
    """Both models in production, and as pickles in the folder for those who take no other."""
    engine = connect(f"sqlite:///{folder}/lab.db")
    migrate(engine)
    list(datasets.load_bundled(engine))
    client = MlflowRest(url)
    settings = Settings(mlflow_tracking_uri=url, lab_outputs=folder / "outputs")
    forest = {
        "estimator": "sklearn.ensemble.RandomForestClassifier",
        "params": {"n_estimators": 100, "random_state": 0},
    }
    for changes in ({}, {"model": "forest", "candidates": [forest]}):
        given = config.read("iris").model_dump(by_alias=True) | {"after_promotion": "nothing"}
        pipeline = config.Pipeline.model_validate(given | changes)
        train(pipeline, client, engine, settings)
        client.download(pipeline.model, 1, skops_file.FILE_NAME, folder, 1 << 30, 60)
        core = skops_file.load(folder, 1 << 30)[1:]  # without the step that takes frames, so that arrays do
        (folder / f"{pipeline.model}.pickle").write_bytes(pickle.dumps(core))


@contextmanager
def started_api(url: str, folder: Path) -> Iterator[tuple[Service, float]]:
    """The API with all recording on, and the seconds from its start to its first prediction."""
    began = time.monotonic()
    with run_api(folder, until="/health", mlflow_tracking_uri=url) as process:
        wait_until(lambda: ask(f"{process.url}/predict", IRIS_ROW).status == 200, 30, "the first prediction")
        seconds = time.monotonic() - began
        urls = {model: f"{process.url}/models/{model}/predict" for model in MODELS}
        yield Service("**Labstack**", urls, dict.fromkeys(MODELS, process.popen.pid)), seconds


def floor(stack: ExitStack, folder: Path, name: str, module: str) -> Service:
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "-k", "gthread", "--threads", "4", "-w", "2", "--keep-alive", "5"]
    pid = run(stack, folder, [*command, "-b", f"127.0.0.1:{port}", f"{module}:app"], port)
    url = f"http://127.0.0.1:{port}/predict"
    return Service(name, dict.fromkeys(MODELS, url), dict.fromkeys(MODELS, pid))


def mlflow_serve(stack: ExitStack, folder: Path, python: Path, url: str) -> Service:
    urls, pids = {}, {}
    for model in MODELS:
        port = free_port()
        serve = ["models", "serve", "-m", f"models:/{model}@production", "--env-manager", "local", "--workers", "2"]
        command = [python, "-m", "mlflow", *serve, "--host", "127.0.0.1", "--port", str(port)]
        path = f"{python.parent}:{os.environ['PATH']}"
        pids[model] = run(stack, folder, command, port, MLFLOW_TRACKING_URI=url, PATH=path)
        urls[model] = f"http://127.0.0.1:{port}/invocations"
    return Service("`mlflow models serve` with uvloop", urls, pids, {"dataframe_records": [IRIS_ROW]})


def fastapi(stack: ExitStack, folder: Path, python: Path) -> Service:
    urls, pids = {}, {}
    for model in MODELS:
        port = free_port()
        serve = ["fastapi_app:app", "--workers", "2", "--port", str(port), "--no-access-log", "--log-level", "warning"]
        pids[model] = run(stack, folder, [python, "-m", "uvicorn", *serve], port, MODEL=f"{folder}/{model}.pickle")
        urls[model] = f"http://127.0.0.1:{port}/predict"
    return Service("FastAPI and uvicorn, by hand", urls, pids)


def run(stack: ExitStack, folder: Path, command: list[Any], port: int, **variables: str) -> int:
    """Start a service and wait for its port; its process id."""
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}  # as Labstack has it
    environ = os.environ | threads | {"PYTHONPATH": str(OPPONENTS)} | variables
    with (folder / f"{port}.log").open("w") as log:
        process = subprocess.Popen(list(map(str, command)), cwd=folder, env=environ, stdout=log, stderr=log)
    stack.callback(process.wait, 30)
    stack.callback(process.terminate)
    wait_until(lambda: listens(port) or process.poll() is not None, 120, str(command))
    assert process.poll() is None, (folder / f"{port}.log").read_text()
    return process.pid


def listens(port: int) -> bool:
    try:
        ask(f"http://127.0.0.1:{port}/")
    except OSError:
        return False
    return True


def measure(
    services: list[Service], folder: Path, rounds: int, seconds: int
) -> dict[tuple[str, str, int], list[Measured]]:
    """All rounds, by service, model and connections. The first of each, which warms up, is left out."""
    results: dict[tuple[str, str, int], list[Measured]] = {}
    for number in range(rounds + 1):
        for connections in CONNECTIONS:
            for model in MODELS:
                for service in services:
                    round_ = wrk(service, model, folder, connections, seconds)
                    if number:
                        results.setdefault((service.name, model, connections), []).append(round_)
                    report_step(
                        round=number, connections=connections, model=model, service=service.name, **vars(round_)
                    )
    return results


def wrk(service: Service, model: str, folder: Path, connections: int, seconds: int) -> Measured:
    body = json.dumps(service.body)
    script = folder / "post.lua"
    script.write_text(
        f"wrk.method = 'POST'\nwrk.headers['Content-Type'] = 'application/json'\nwrk.body = [==[{body}]==]\n"
    )
    before = cpu_seconds(service.pids[model])
    options = ["-t1", f"-c{connections}", f"-d{seconds}", "--latency", "-s", str(script)]
    output = subprocess.run(["wrk", *options, service.urls[model]], capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in output, output
    used = cpu_seconds(service.pids[model]) - before

    def figure(pattern: str) -> str:
        match = re.search(pattern, output)
        assert match, output
        return match[1]

    return Measured(
        float(figure(r"Requests/sec:\s+([\d.]+)")),
        milliseconds(figure(r"\n\s+50%\s+(\S+)")),
        milliseconds(figure(r"\n\s+99%\s+(\S+)")),
        used / int(figure(r"(\d+) requests in")) * 1e6,
    )


def milliseconds(text: str) -> float:
    number = float(text.rstrip("mus"))
    return number * (0.001 if text.endswith("us") else 1 if text.endswith("ms") else 1000)


def cpu_seconds(pid: int) -> float:
    """Of a process and all beneath it."""
    root = psutil.Process(pid)
    times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def memory_mb(pid: int) -> tuple[float, float]:
    """Of a process and all beneath it: together, with shared pages counted once, and each counting its own."""
    root = psutil.Process(pid)
    full = [process.memory_full_info() for process in (root, *root.children(recursive=True))]
    return sum(memory.pss for memory in full) / 1e6, sum(memory.rss for memory in full) / 1e6


IN_PROCESS = """
import sys, time, statistics
from pathlib import Path
import orjson
from labstack.model import predictor
from labstack.model.contract import Contract, Plan
folder, body = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes()
contract = Contract.read(folder)
loaded, plan, times = predictor.load(folder, contract, predictor.Limits(10, 1 << 30)), Plan(contract), []
for _ in range(500):
    began = time.perf_counter()
    loaded.predict(plan.parse(orjson.loads(body))[0])
    times.append(time.perf_counter() - began)
print(statistics.median(times) * 1000)
"""


def batch_ratio(api: Service, model: str, url: str, folder: Path) -> tuple[float, float]:
    """Milliseconds of 1,000 rows in one request, and of parsing and predicting them within a process; medians."""
    body = folder / "batch.json"
    body.write_text(json.dumps([IRIS_ROW] * 1000))
    files = folder / model
    files.mkdir()
    for name in ("contract.json", "model.onnx"):
        MlflowRest(url).download(model, 1, name, files, 1 << 30, 60)
    command = [sys.executable, "-c", IN_PROCESS, str(files), str(body)]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    within = float(subprocess.run(command, capture_output=True, text=True, check=True, env=environ).stdout)
    batch = Service(api.name, api.urls, api.pids, [IRIS_ROW] * 1000)
    rounds = [wrk(batch, model, folder, connections=1, seconds=3).p50_ms for _ in range(3)]
    return statistics.median(rounds), within


def report(
    services: list[Service],
    results: dict[tuple[str, str, int], list[Measured]],
    start_seconds: float,
    memory: tuple[float, float],
    batches: dict[str, tuple[float, float]],
) -> str:
    """The table and the other figures as Markdown."""

    def median(service: Service, model: str, connections: int, figure: str) -> float:
        return float(statistics.median(getattr(round_, figure) for round_ in results[service.name, model, connections]))

    lines = [
        f"Measured on {os.cpu_count()} cores of {processor()} that the load generator shares, with Python "
        f"{platform.python_version()}; {len(next(iter(results.values())))} rounds, medians.\n",
        "| requests/s at 16 / 64 connections | " + " | ".join(MODELS.values()) + " | CPU µs a request |",
        "|---|---|---|---|",
    ]
    for service in services:
        cells = []
        for model in MODELS:
            rates = [median(service, model, number, "requests_per_second") for number in CONNECTIONS]
            ours = [median(services[0], model, number, "requests_per_second") for number in CONNECTIONS]
            times = " / ".join(f"{mine / theirs:.2g}x" for mine, theirs in zip(ours, rates, strict=True))
            shown = " / ".join(f"{rate:,.0f}" for rate in rates)
            cells.append(shown if service is services[0] else f"{shown} (Labstack {times})")
        cpu = " / ".join(f"{median(service, 'iris', number, 'cpu_us'):.0f}" for number in CONNECTIONS)
        lines.append(f"| {service.name} | {' | '.join(cells)} | {cpu} |")
    p50, p99 = (median(services[0], "iris", 64, name) for name in ("p50_ms", "p99_ms"))
    floor50, floor99 = (median(services[1], "iris", 64, name) for name in ("p50_ms", "p99_ms"))
    batch = ", ".join(
        f"{MODELS[model]} {there:.1f} ms against {within:.1f} ms ({there / within:.1f}x)"
        for model, (there, within) in batches.items()
    )
    lines += [
        "",
        f"At 64 connections p50 is {p50:.1f} ms and p99 {p99:.1f} ms, "
        f"{p99 / p50:.1f}x (empty Flask: {floor99 / floor50:.1f}x). 1,000 rows in one request, against parsing and "
        f"predicting them within a process: {batch}. Two workers with both models take {memory[0]:.0f} MB, pages that "
        f"they share counted once ({memory[1]:.0f} MB where each counts its own); from gunicorn's start to the first "
        f"prediction it is {start_seconds:.1f} s.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
