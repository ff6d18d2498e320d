"""The numbered steps of `up`, each a line with its name, its time and what it came to."""

import sys
import time
from collections.abc import Callable

from labstack.errors import LabError

Step = tuple[str, Callable[[], str]]


def run(step: Step, number: int, count: int) -> None:
    """Run one step of several and print what it returns. Raises LabError when it fails."""
    name, work = step
    position = f"[{number}/{count}]"
    if sys.stdout.isatty():
        print(f"{position} {name} ...", end="\r", flush=True)
    begun = time.monotonic()
    try:
        result = work()
    except LabError as error:
        raise LabError(f"{error}\n{position} {name} failed.".lstrip("\n")) from error
    if "\n" in result:
        result = f"\n{result}"
    print(f"{position} {name:<14} {time.monotonic() - begun:6.1f} s  {result}")
