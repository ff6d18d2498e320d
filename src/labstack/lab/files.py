"""Files among the arguments of a command, which mean the folder that the caller is in."""

import os
from pathlib import Path

READ = (".csv", ".yaml", ".yml")


def split(argument: str) -> tuple[str, str]:
    """Return an argument's option with its `=`, empty unless it is `--option=value`, and the value."""
    if argument.startswith("--") and "=" in argument:
        option, _, value = argument.partition("=")
        return f"{option}=", value
    return "", argument


def resolved(arguments: list[str], folder: Path) -> list[str]:
    """Return the arguments with absolute paths: of what --output names, and of files in the caller's folder."""
    result: list[str] = []
    previous = ""
    for argument in arguments:
        option, value = split(argument)
        is_output = "--output" in (previous, option.rstrip("="))
        if is_output or (value.endswith(READ) and _is_file(folder / value)):
            value = str(folder / value)
        result.append(option + value)
        previous = argument
    return result


def existing(arguments: list[str]) -> list[Path]:
    """Return the files that the arguments name by absolute paths."""
    paths = [Path(split(argument)[1]) for argument in arguments]
    return [path for path in paths if path.is_absolute() and _is_file(path)]


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113  # Path.is_file raises OSError for a name that is too long
