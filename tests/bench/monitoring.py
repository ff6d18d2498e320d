"""The cost of keeping predictions, and the latency of the pages and metrics about them.

`python -m tests.bench.monitoring [--write]`; wrk and chromium must be installed.
"""

import argparse
import os
import platform
import re
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service as Driver

from tests.bench.common import processor, put_into_docs, report_step
from tests.bench.serving import Measured, Service, prepare, wrk
from tests.browser.conftest import QUIET, Browser
from tests.conftest import IRIS_ROW, Process, ask, free_port, run_api, run_mlflow, wait_until

MODES = ("off", "batched", "durable")
CONNECTIONS = (16, 64)
PAGE = """
const [page] = performance.getEntriesByType("navigation");
const all = [page, ...performance.getEntriesByType("resource")];
const [paint] = performance.getEntriesByName("first-contentful-paint");
return {paint: paint.startTime, html: page.transferSize, all: all.reduce((sum, one) => sum + one.transferSize, 0)};
"""
TIMES = 50  # requests to an endpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each round")
    parser.add_argument("--write", action="store_true", help="write the figures into docs/performance.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        url = stack.enter_context(run_mlflow(folder, free_port())).url
        prepare(url, folder)
        apis = {}
        for mode in MODES:
            (folder / mode).mkdir()
            apis[mode] = stack.enter_context(run_api(folder / mode, mlflow_tracking_uri=url, prediction_log=mode))
        rates, kept = measure(apis, folder, arguments.rounds, arguments.seconds)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        url = stack.enter_context(run_mlflow(folder, free_port())).url
        prepare(url, folder)
        api = stack.enter_context(run_api(folder, mlflow_tracking_uri=url, api_workers=4))
        wrk(served("4 workers", api), "iris", folder, 64, 5)
        wait_until(lambda: waiting(api) == 0, 30, "all is kept")
        times = {path: median_ms(api, path) for path in ("/metrics", "/drift", "/console")}
        page = looked_at(f"{api.url}/console")
    text = report(rates, kept, times, page)
    print(text)  # noqa: T201
    if arguments.write:
        put_into_docs("monitoring benchmark", text)


def served(name: str, api: Process) -> Service:
    return Service(name, {"iris": f"{api.url}/predict"}, {"iris": api.popen.pid}, IRIS_ROW)


def measure(
    apis: dict[str, Process], folder: Path, rounds: int, seconds: int
) -> tuple[dict[tuple[str, int], list[Measured]], tuple[float, float]]:
    """All rounds by mode and connections, the modes in turn; and rows kept and dropped a second in batched mode."""
    rates: dict[tuple[str, int], list[Measured]] = {}
    kept, dropped, spent = 0.0, 0.0, 0.0
    for number in range(rounds + 1):  # the first warms up
        for connections in CONNECTIONS:
            for mode, api in apis.items():
                before, began = counted(api), time.monotonic()
                round_ = wrk(served(mode, api), "iris", folder, connections, seconds)
                if mode == "batched" and number:
                    spent += time.monotonic() - began
                    after = counted(api)
                    kept, dropped = kept + after[0] - before[0], dropped + after[1] - before[1]
                wait_until(lambda: waiting(api) == 0, 30, "all is kept")  # noqa: B023
                if number:
                    rates.setdefault((mode, connections), []).append(round_)
                report_step(round=number, connections=connections, mode=mode, **vars(round_))
    return rates, (kept / spent, dropped / spent)


def counted(api: Process) -> tuple[float, float]:
    """Predictions that were kept, and dropped."""
    return value(api, "labstack_kept_total"), value(api, "labstack_dropped_total")


def waiting(api: Process) -> float:
    return value(api, "labstack_waiting")


def value(api: Process, metric: str) -> float:
    values = re.findall(rf'^{metric}{{what="predictions"}} (\S+)', ask(f"{api.url}/metrics").text, re.MULTILINE)
    return sum(map(float, values))


def median_ms(api: Process, path: str) -> float:
    times = []
    for _ in range(TIMES):
        began = time.perf_counter()
        assert ask(api.url + path).status == 200
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def looked_at(url: str) -> dict[str, float]:
    """The console in Chromium: bytes over the network, and milliseconds to its first paint and to its charts."""
    options = webdriver.ChromeOptions()
    for argument in QUIET.split():
        options.add_argument(argument)
    driver = webdriver.Chrome(options, Driver())
    try:
        browser, measurements = Browser(driver), list[dict[str, Any]]()
        for _ in range(5):
            driver.execute_cdp_cmd("Network.clearBrowserCache", {})
            driver.get(url)
            wait_until(lambda: browser.all("svg.main-svg"), 20, "the charts are drawn")
            measurements.append(browser.run(PAGE))
        return {name: statistics.median(each[name] for each in measurements) for name in measurements[0]}
    finally:
        driver.quit()


def report(
    rates: dict[tuple[str, int], list[Measured]],
    kept: tuple[float, float],
    times: dict[str, float],
    page: dict[str, float],
) -> str:
    """The figures as Markdown."""

    def median(mode: str, connections: int, figure: str) -> float:
        return float(statistics.median(getattr(round_, figure) for round_ in rates[mode, connections]))

    lines = [
        f"Measured on {os.cpu_count()} cores of {processor()} that the load generator shares, with Python "
        f"{platform.python_version()}; {len(next(iter(rates.values())))} rounds by turns, medians, two workers, "
        "logistic regression, SQLite.\n",
        "| `PREDICTION_LOG` | requests/s at 16 / 64 connections | of `off` | CPU µs a request |",
        "|---|---|---|---|",
    ]
    for mode in MODES:
        speed = [median(mode, number, "requests_per_second") for number in CONNECTIONS]
        share = [
            mine / median("off", number, "requests_per_second") for mine, number in zip(speed, CONNECTIONS, strict=True)
        ]
        cpu = [median(mode, number, "cpu_us") for number in CONNECTIONS]
        cells = (
            " / ".join(f"{rate:,.0f}" for rate in speed),
            " / ".join(f"{ratio:.0%}" for ratio in share),
            " / ".join(f"{microseconds:.0f}" for microseconds in cpu),
        )
        lines.append(f"| `{mode}` | {' | '.join(cells)} |")
    lines += [
        "",
        f"In batches {kept[0]:,.0f} predictions a second were kept, {kept[1]:,.0f} dropped. With four workers "
        f"`/metrics` takes {times['/metrics']:.0f} ms, `/drift` {times['/drift']:.0f} ms, the console "
        f"{times['/console']:.0f} ms; its page is {page['html'] / 1000:.0f} kB, with the chart library "
        f"{page['all'] / 1000:,.0f} kB, and first paints after {page['paint']:.0f} ms in an empty Chromium.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
