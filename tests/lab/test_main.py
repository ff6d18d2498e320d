"""The tasks, on a place that is made up."""

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from labstack.errors import LabError
from labstack.lab import main, places
from labstack.lab.commands import CommandError
from labstack.lab.main import TaskCall
from labstack.settings import ROOT


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a project with a lab, which the tasks are called from."""
    monkeypatch.setattr(main, "ROOT", tmp_path)
    monkeypatch.setattr(main, "ENV_FILE", tmp_path / ".env")
    monkeypatch.setattr(main, "STATE", tmp_path / ".lab")
    monkeypatch.setattr(places, "RECORD", tmp_path / ".lab/place")
    monkeypatch.setattr(places, "SAVED", tmp_path / ".lab/saved")
    (tmp_path / ".lab").mkdir()
    return tmp_path


@pytest.fixture
def place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A place whose archive is the line `data`, and whose commands are noted in the file `calls`."""
    script = {"write": "echo data", "read": "cat >read"}
    place = SimpleNamespace(
        NAME="local",
        archive=lambda direction: ["sh", "-c", f"cd '{folder}'; {script[direction]}"],
        down=lambda: ["sh", "-c", f"echo down >>'{folder}/calls'"],
        start=lambda service: f"started {service}",
        is_running=lambda: True,
        clean=lambda: None,
        script=script,
    )
    monkeypatch.setitem(places.PLACES, "local", place)
    places.record(place)
    return place


def test_a_token_is_made_once_and_only_its_owner_reads_it(folder: Path) -> None:
    env = folder / ".env"
    main._ensure_token()
    assert re.fullmatch(r"# Settings of this lab.*\nAPI_ADMIN_TOKEN=[0-9a-f]{48}\n", env.read_text())
    assert env.stat().st_mode & 0o777 == 0o600
    made = env.read_text()
    main._ensure_token()
    assert env.read_text() == made
    for text in ("API_ADMIN_TOKEN=\n", "A=b\n export API_ADMIN_TOKEN=x\n"):
        env.write_text(text)
        main._ensure_token()
        assert env.read_text() == text
    env.write_bytes(b"NAME=\xff # API_ADMIN_TOKEN=x\n\n")
    main._ensure_token()
    assert re.fullmatch(rb"NAME=\xff # API_ADMIN_TOKEN=x\nAPI_ADMIN_TOKEN=[0-9a-f]{48}\n", env.read_bytes())


def test_a_token_that_cannot_be_written_stops_it(folder: Path) -> None:
    (folder / ".env").mkdir()
    with pytest.raises(LabError, match=r"^\.env cannot be read or written: Is a directory\.$"):
        main._ensure_token()


def test_a_backup_is_whole_or_not_there(folder: Path, place: SimpleNamespace) -> None:
    archive = folder / "lab.tar.gz"
    for script, error in (("echo half; exit 1", "Nothing was written."), ("kill -INT $PPID; sleep 1", None)):
        place.script["write"] = script
        with pytest.raises((LabError, KeyboardInterrupt)) as raised:
            main.backup(TaskCall(["lab.tar.gz"], folder))
        assert (str(raised.value) or None) == error
        assert not list(folder.glob("lab.tar.gz*"))
        assert not places.SAVED.exists()
    place.script["write"] = "echo data"
    assert main.backup(TaskCall(["lab.tar.gz"], folder)) == 0
    assert archive.read_text() == "data\n"
    assert archive.stat().st_mode & 0o777 == 0o600
    assert places.SAVED.exists()
    with pytest.raises(LabError, match=r"lab\.tar\.gz exists already\. Nothing was written\."):
        main.backup(TaskCall(["lab.tar.gz"], folder))
    with pytest.raises(LabError, match=r"/none/x cannot be written: No such file or directory\. Nothing was written\."):
        main.backup(TaskCall(["none/x"], folder))
    assert main.backup(TaskCall([], folder)) == 0
    assert len(list(folder.glob("labstack-*.tar.gz"))) == 1


@pytest.mark.usefixtures("place")
def test_a_restore_stops_the_lab_reads_the_archive_and_starts_it_again(
    folder: Path, place: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "lab.tar.gz").write_text("data")
    call = TaskCall(["lab.tar.gz", "--yes"], folder)
    assert main.restore(call) == 0
    assert (folder / "read").read_text() == "data"
    assert (folder / "calls").read_text() == "down\n"
    assert capsys.readouterr().out == "started server_mlflow\nstarted api\n"
    place.script["read"] = "exit 1"
    with pytest.raises(LabError, match=r"^Nothing was replaced\.$"):
        main.restore(call)
    assert capsys.readouterr().out == "started server_mlflow\nstarted api\n"
    place.is_running = lambda: False
    with pytest.raises(LabError, match=r"^Nothing was replaced\.$"):
        main.restore(call)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("answer", "code"), [("yes", 0), ("no", 1), ("", 1), ("yes!", 1)])
def test_a_person_is_asked(answer: str, code: int) -> None:
    """At a terminal, where the question stands on standard error."""
    terminal, other_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "from labstack.lab import main; main._confirm('Delete all?', 'deleted', [])"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        stdin=other_end,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.write(terminal, f"{answer}\n".encode())
    printed, errors = process.communicate(timeout=30)
    os.close(terminal)
    os.close(other_end)
    assert (process.returncode, printed) == (code, b"")
    assert errors.startswith(b"Delete all? Type yes: ")
    assert (b"Nothing was deleted." in errors) == bool(code)


def test_without_a_terminal_yes_is_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115
    with sys.stdin, pytest.raises(LabError, match=r"^Nothing was deleted\. Without a terminal, confirm with --yes\.$"):
        main._confirm("Delete all?", "deleted", [])
    main._confirm("Delete all?", "deleted", ["--yes"])


@pytest.mark.usefixtures("place")
def test_clean_deletes_what_was_made_and_nothing_else(folder: Path) -> None:
    made = (".venv/bin/python", ".env", "db/lab.db", "db/lab.db-wal", "db/mlartifacts/x", "outputs/x", ".lab/logs/x")
    caches = ("src/a/__pycache__/x.pyc", ".mypy_cache/x")
    kept = ("db/datasets/iris.csv", "src/a/x.py", "mine.csv", ".lab/lock")
    for name in (*made, *caches, *kept):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "outputs/link").symlink_to(folder / "src")
    assert main.clean(TaskCall(["--yes"], folder)) == 0
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == set(kept)


def test_tasks_that_take_no_arguments_refuse_them(folder: Path) -> None:
    for task in (main.status, main.down):
        with pytest.raises(LabError, match=r"^This task takes no argument 'now'\.$"):
            task(TaskCall(["now"], folder))


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (LabError("the reason"), 1, "the reason\n"),
        (CommandError("the reason", 7), 7, "the reason\n"),
        (CommandError("", 7), 7, ""),
        (KeyboardInterrupt(), 130, "Interrupted. Services keep running: "),
    ],
)
def test_a_failure_is_an_exit_code_and_a_message(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    message: str,
) -> None:
    def failing(_call: TaskCall) -> int:
        raise error

    monkeypatch.setitem(main.TASKS, "status", failing)
    monkeypatch.setattr(sys, "argv", ["main.py", "/", "status"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # those of the tests stay
    assert main.main() == code
    assert capsys.readouterr().err.startswith(message)
