"""Log lines: whole, short enough for several processes to write to one pipe, and never waited for."""

import io
import json
import os
import subprocess
import sys
import threading
from typing import Any

import pytest

from labstack import logs
from tests.conftest import wait_until


class Blocked(io.StringIO):
    """A stream whose reader does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()

    def flush(self) -> None:
        self.open.wait(30)


def test_a_line_that_is_too_long_is_shortened() -> None:
    fields: dict[str, Any] = {"message": "x", "input": [[1.5] * 2000], "text": "ü" * 5000 + "the end"}
    line = logs._line(fields)
    assert len(line.encode()) <= logs.LINE_BYTES
    logged = json.loads(line)
    assert (logged["message"], logged["shortened"]) == ("x", True)
    assert "left out" in logged["input"]
    assert logged["text"].endswith("the end")


def test_a_text_that_grows_in_json_is_shortened_too() -> None:
    assert len(logs._line({"message": "x", "endpoint": "\x01" * 1300}).encode()) <= logs.LINE_BYTES


def test_no_caller_waits_for_a_reader_and_dropped_lines_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "WAITING_LINES", 100)
    stream, dropped = Blocked(), []
    output = logs.LogOutput(stream)
    output.start(lambda: dropped.append(1))
    output.put("first")
    wait_until(lambda: output._background and output._background.waiting == 0, 10, "the first line is being written")
    for number in range(150):
        output.put(str(number))
    assert len(dropped) == 50
    stream.open.set()
    output.stop()
    assert stream.getvalue().split() == ["first", *map(str, range(100))]
    output.put("straight")
    assert stream.getvalue().endswith("straight\n")


def test_a_stream_that_cannot_be_written_raises_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    logs.LogOutput(stream).put("nobody reads")
    with pytest.raises(BrokenPipeError):
        stream.close()


WRITER = """
import sys
from labstack import logs
logs.configure("INFO")
logs.output.start(lambda: None)
for number in range(3000):
    logs.info("line", {"number": number, "filler": sys.argv[1] * (number % 3500)})
logs.output.stop()
"""


def test_lines_of_several_processes_never_mix() -> None:
    reader, writer = os.pipe()
    processes = [subprocess.Popen([sys.executable, "-c", WRITER, name], stdout=writer) for name in "abc"]
    os.close(writer)
    with os.fdopen(reader) as stream:
        lines = [json.loads(line) for line in stream]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(lines) == 9000
    assert all(len(set(line["filler"])) <= 1 for line in lines)
