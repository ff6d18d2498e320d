"""Shared by the benchmarks: progress, the name of the machine, and the figures in the docs."""

import json
import platform
import re
import sys
from pathlib import Path
from typing import Any

from labstack.settings import ROOT


def report_step(**fields: Any) -> None:
    """Print the fields of a step on stderr, as JSON."""
    print(json.dumps(fields), file=sys.stderr, flush=True)  # noqa: T201


def processor() -> str:
    """Return the name of the processor."""
    match = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return " ".join(match[1].replace("(R)", "").split()) if match else platform.machine()


def put_into_docs(mark: str, text: str) -> None:
    """Write a benchmark's text between its marks in docs/performance.md."""
    page = ROOT / "docs/performance.md"
    marks = rf"(<!-- {mark} -->\n).*?(<!-- end -->)"
    page.write_text(re.sub(marks, lambda match: match[1] + text + match[2], page.read_text(), flags=re.DOTALL))
