"""What the benches share: how they tell of their steps, name the machine, and write into the README."""

import json
import platform
import re
import sys
from pathlib import Path
from typing import Any

from labstack.settings import ROOT


def tell(**fields: Any) -> None:
    print(json.dumps(fields), file=sys.stderr, flush=True)  # noqa: T201


def processor() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return " ".join(found[1].replace("(R)", "").split()) if found else platform.machine()


def put_into_readme(mark: str, text: str) -> None:
    """Write a bench's text between the marks that the README has for it."""
    readme = ROOT / "README.md"
    marks = rf"(<!-- {mark} -->\n).*?(<!-- end -->)"
    readme.write_text(re.sub(marks, lambda found: found[1] + text + found[2], readme.read_text(), flags=re.DOTALL))
