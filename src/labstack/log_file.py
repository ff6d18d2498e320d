"""`python -m labstack.log_file PATH`: write standard input to a log file that never grows beyond a size.

A local service logs into this process's pipe, so that a full file is replaced while the service runs, and no line is
lost. It ends with the last process that logs.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path

FULL_BYTES = 10_000_000
PIPE_BYTES = 65536  # what a pipe holds; lines of up to PIPE_BUF are whole in it


def previous(path: Path) -> Path:
    """The file of what was logged before the log file's first line."""
    return path.with_name(f"{path.name}.1")


def keep(source: int, path: Path) -> None:
    """Append a pipe to a file until nobody has its other end; a full file takes the place of the previous one.

    What a full disk does not take is dropped: the service behind the pipe goes on.
    """
    while chunk := os.read(source, PIPE_BYTES):
        with suppress(OSError):
            if path.exists() and path.stat().st_size + len(chunk) > FULL_BYTES:
                end = chunk.rfind(b"\n") + 1
                _append(path, chunk[:end])
                path.replace(previous(path))
                chunk = chunk[end:]
            _append(path, chunk)


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


if __name__ == "__main__":
    keep(sys.stdin.fileno(), Path(sys.argv[1]))
