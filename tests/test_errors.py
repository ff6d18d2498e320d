"""The tree of errors."""

import importlib
import pkgutil

import labstack
from labstack import errors
from labstack.errors import LabError

NOT_IMPORTED = ("labstack.api.server.", "labstack.store.__main__")  # importing them starts a service


def room(error: type[LabError]) -> str:
    """The package that an error is from, or the module at the root."""
    module = error.__module__.removeprefix("labstack.")
    return module.rpartition(".")[0] or module


def tree(error: type[LabError], depth: int = 0) -> list[str]:
    """Draw an error and its subclasses, a line for each, with its room at the end."""
    name = f"{'    ' * depth}{error.__name__}"
    subclasses = [subclass for subclass in error.__subclasses__() if subclass.__module__.startswith("labstack.")]
    lines = [f"{name:<40}{room(error)}" if depth else name]
    for subclass in sorted(subclasses, key=lambda subclass: (room(subclass), subclass.__name__)):
        lines += tree(subclass, depth + 1)
    return lines


def test_the_drawing_shows_every_error() -> None:
    for module in pkgutil.walk_packages(labstack.__path__, "labstack."):
        if not module.name.startswith(NOT_IMPORTED):
            importlib.import_module(module.name)
    _, _, drawing = (errors.__doc__ or "").partition("\n\n")
    assert drawing.rstrip().splitlines() == tree(LabError)
