"""A local service's log is replaced while the service runs, and holds every line."""

import re
import subprocess
import sys
from pathlib import Path

from labstack import log_file
from tests.conftest import environment, wait_until

WRITER = """
import os, sys
for number in range({lines}):
    os.write(1, f"{{sys.argv[1]}} {{number}} ".encode().ljust({length}, b"x") + b"\\n")
"""


def start(path: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "labstack.log_file", str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment())


def read(path: Path) -> list[tuple[str, int]]:
    lines = path.read_text().splitlines()
    matches = [re.fullmatch(r"(\w) (\d+) x+", line) for line in lines]
    return [(match[1], int(match[2])) for match in matches if match] + [("broken", 0)] * matches.count(None)


def test_every_line_of_several_processes_is_there_once_in_two_files_of_bounded_size(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    keeper = start(log)
    code = WRITER.format(lines=1500, length=4000)
    writers = [subprocess.Popen([sys.executable, "-c", code, name], stdout=keeper.stdin) for name in "abc"]
    assert keeper.stdin is not None
    keeper.stdin.close()
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert keeper.wait(30) == 0
    older, newer = log_file.previous(log), log
    assert log_file.FULL_BYTES * 0.9 < older.stat().st_size <= log_file.FULL_BYTES + log_file.PIPE_BYTES
    assert newer.stat().st_size <= log_file.FULL_BYTES
    lines = read(older) + read(newer)
    for name in "abc":
        assert [number for writer, number in lines if writer == name] == list(range(1500))
    assert len(lines) == 4500


def test_it_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    for text in (b"first\n", b"second\n"):
        keeper = start(log)
        keeper.communicate(text)
        assert keeper.returncode == 0
    assert log.read_bytes() == b"first\nsecond\n"


def test_a_removed_folder_does_not_stop_the_writers(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs/api.log"
    keeper = start(log)
    assert keeper.stdin is not None
    keeper.stdin.write(b"first\n")
    keeper.stdin.flush()
    wait_until(log.exists)
    log.unlink()
    log.parent.rmdir()
    keeper.stdin.write(b"lost\n")
    keeper.stdin.flush()
    log.parent.mkdir()
    wait_until(lambda: keeper.stdin and (keeper.stdin.write(b"again\n"), keeper.stdin.flush()) and log.exists())
    keeper.stdin.close()
    assert keeper.wait(30) == 0
