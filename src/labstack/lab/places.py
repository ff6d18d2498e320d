"""The choice of where the lab runs, which `up` writes to `.lab/place` and every other task reads."""

import sys
from typing import Protocol

from labstack.errors import LabError
from labstack.lab import STATE, containers, local
from labstack.lab.commands import CommandError, Stream
from labstack.lab.steps import Step

RECORD = STATE / "place"
SAVED = STATE / "saved"  # exists when the data have a backup since the last start


class Place(Protocol):
    """The functions that the tasks call; the modules `containers` and `local` are such places."""

    NAME: str
    DESCRIPTION: str

    def steps(self) -> list[Step]: ...
    def prepare(self) -> None: ...
    def start(self, service: str, /) -> str: ...
    def addresses(self) -> str: ...
    def is_running(self) -> bool: ...
    def status(self) -> int: ...
    def clean(self) -> None: ...
    def labstack(self, arguments: list[str], stderr: Stream = None, /) -> list[str]: ...
    def predict(self, arguments: list[str], /) -> list[str]: ...
    def logs(self, arguments: list[str], /) -> list[str]: ...
    def archive(self, direction: str, /) -> list[str]: ...
    def down(self) -> list[str]: ...


PLACES: dict[str, Place] = {"containers": containers, "local": local}


def find() -> Place:
    """Return the place of this lab. Raises LabError when there is no lab, or no engine for one in containers."""
    name = _recorded()
    if name is None:
        raise LabError("There is no lab here yet. Bring it up: ./run_all.sh")
    if name == containers.NAME:
        containers.require_engine()
    return PLACES[name]


def record(place: Place) -> None:
    RECORD.write_text(f"{place.NAME}\n")


def choose(arguments: list[str]) -> Place:
    """Return the place that the arguments of `up` ask for, else that of before, else the one that is possible.

    Prints which it is. Raises LabError when it is not possible, and when the data of another place would be left.
    """
    before = _recorded()
    wanted = _wanted(arguments) or before
    advice = ""
    if before and wanted != before:
        advice = (
            f"To carry it over: ./run_all.sh backup <file>, down, up --{wanted}, restore <file>. "
            "To begin anew: ./run_all.sh clean."
        )
    if before == containers.NAME:
        containers.require_engine(advice)
    if before and advice:
        _leave(PLACES[before], advice)
    reason = ""
    if wanted != local.NAME and before != containers.NAME:
        reason = containers.obstacle() or ("" if wanted else _build_failure())
        if wanted and reason:
            raise LabError(f"This lab is to be in containers, and {reason}. Nothing was started.")
    place = PLACES[wanted or (local.NAME if reason else containers.NAME)]
    print(f"Labstack, {place.DESCRIPTION}{reason and f': {reason}'}")
    return place


def _wanted(arguments: list[str]) -> str | None:
    match arguments:
        case []:
            return None
        case ["--containers" | "--local"]:
            return arguments[0].removeprefix("--")
    raise LabError("up takes --containers or --local, and nothing else.")


def _recorded() -> str | None:
    return RECORD.read_text().strip() if RECORD.exists() else None


def _leave(place: Place, advice: str) -> None:
    """Raise LabError unless the lab of a place is stopped and saved: an empty one would begin in the other."""
    if place.is_running():
        raise LabError(
            f"This lab is running in the other place ({place.NAME}). Stop it first: ./run_all.sh down. {advice}"
        )
    if not SAVED.exists():
        raise LabError(f"The lab's data ({place.NAME}) have no backup since the last start. {advice}")
    print(f"The earlier data ({place.NAME}) stay where they are. To copy them here: ./run_all.sh restore <file>")


def _build_failure() -> str:
    """Build the images; return that they cannot be built, or nothing."""
    print("A container engine answers; its images are built now, which takes minutes the first time.")
    try:
        containers.build()
    except CommandError as error:
        print(error, file=sys.stderr)
        return "the images cannot be built"
    return ""
