"""`python -m labstack.log_file PATH`: write standard input to a log file of limited size.

A local service logs into this process's pipe, so that a full file is rotated while the service runs, and no line is
lost. The process ends when the last process that logs has ended.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path

FULL_BYTES = 10_000_000
PIPE_BYTES = 65536  # the capacity of a pipe; lines of up to PIPE_BUF are written to it whole


def previous(path: Path) -> Path:
    """The file that holds the lines before those of the log file."""
    return path.with_name(f"{path.name}.1")


def keep(source: int, path: Path) -> None:
    """Append a pipe's bytes to a file until its other end is closed; a full file replaces the previous one.

    Bytes that a full disk cannot take are dropped, so that the service that logs goes on.
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
