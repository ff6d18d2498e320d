"""The lab runs as asked for, else as before, else in containers if an engine answers, else as processes."""

from pathlib import Path

import pytest

from labstack.errors import LabError
from labstack.lab import containers, local, places
from labstack.lab.commands import CommandError


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lab that is not there yet, on a machine whose engine answers and builds images."""
    monkeypatch.setattr(places, "RECORD", tmp_path / "place")
    monkeypatch.setattr(places, "SAVED", tmp_path / "saved")
    monkeypatch.setattr(containers, "obstacle", lambda: "")
    monkeypatch.setattr(containers, "build", lambda: "")
    for place in places.PLACES.values():
        monkeypatch.setattr(place, "is_running", lambda: False)
    return tmp_path


def name(*arguments: str) -> str:
    return places.choose(list(arguments)).NAME


def without_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "obstacle", lambda: "no container engine answers")


def test_it_is_in_containers_where_an_engine_answers_and_builds_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert name() == "containers"
    assert capsys.readouterr().out.endswith("\nLabstack, in containers\n")

    def failing() -> str:
        raise CommandError("no such image", 1)

    monkeypatch.setattr(containers, "build", failing)
    assert name() == "local"
    printed = capsys.readouterr()
    assert printed.err == "no such image\n"
    assert printed.out.endswith("\nLabstack, as processes of this machine: the images cannot be built\n")
    assert name("--containers") == "containers"  # its first step builds them, and fails


def test_without_an_engine_it_is_local_and_containers_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_engine(monkeypatch)
    assert name() == "local"
    assert capsys.readouterr().out == "Labstack, as processes of this machine: no container engine answers\n"
    with pytest.raises(LabError, match=r"in containers, and no container engine answers\. Nothing was started"):
        name("--containers")
    assert name("--local") == "local"


def test_it_stays_where_it_was(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for place in (local, containers):
        places.record(place)
        assert name() == place.NAME
        assert places.find() is place
    without_engine(monkeypatch)
    for call in (places.find, name):
        with pytest.raises(LabError, match=r"^This lab is in containers, and no container engine answers\. Start the"):
            call()


@pytest.mark.parametrize(("before", "wanted"), [("local", "containers"), ("containers", "local")])
def test_it_moves_only_when_it_is_stopped_and_saved(
    state: Path, monkeypatch: pytest.MonkeyPatch, before: str, wanted: str
) -> None:
    places.record(places.PLACES[before])
    with pytest.raises(LabError, match=f"no backup since the last start.* down, up --{wanted}, restore <file>"):
        name(f"--{wanted}")
    (state / "saved").touch()
    assert name(f"--{wanted}") == wanted
    monkeypatch.setattr(places.PLACES[before], "is_running", lambda: True)
    with pytest.raises(LabError, match=rf"running in the other place \({before}\)\. Stop it first: ./run_all.sh down"):
        name(f"--{wanted}")


def test_other_arguments_are_refused() -> None:
    for arguments in (["--sideways"], ["--local", "--containers"]):
        with pytest.raises(LabError, match=r"^up takes --containers or --local, and nothing else\.$"):
            name(*arguments)


def test_without_a_lab_there_is_no_place() -> None:
    with pytest.raises(LabError, match=r"^There is no lab here yet\. Bring it up: ./run_all.sh$"):
        places.find()
