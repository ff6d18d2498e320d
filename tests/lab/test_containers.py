"""The commands of the place `containers`, without an engine; tests/containers runs them."""

import os
import re
from pathlib import Path

import pytest

from labstack.lab import commands, containers
from labstack.lab.commands import CommandError


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `docker` that notes its arguments in the file `calls` and does what the file `script` says."""
    docker = tmp_path / "docker"
    docker.write_text(f"#!/bin/sh\necho \"$*\" >>'{tmp_path}/calls'\n. '{tmp_path}/script'\n")
    docker.chmod(0o755)
    (tmp_path / "script").touch()
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(containers, "BUILD_LOG", tmp_path / "logs/build.log")
    return tmp_path


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("true", ""),
        ('[ "$2" != version ]', "docker has no Compose plugin here"),
        ('[ "$1" != info ]', "no container engine answers"),
        ('[ "$2" != config ] || { echo wrong >&2; false; }', "Compose rejects the settings: wrong"),
    ],
)
def test_the_obstacle_is_named(engine: Path, script: str, reason: str) -> None:
    (engine / "script").write_text(script)
    assert containers.obstacle() == reason


def test_without_docker_there_is_no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert containers.obstacle() == "there is no docker command here"


def test_an_engine_that_hangs_does_not_answer(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "ENGINE_SECONDS", 0.5)
    (engine / "script").write_text('[ "$1" != info ] || exec sleep 30')
    assert containers.obstacle() == "no container engine answers"


def test_a_failed_build_gives_the_end_of_its_log(engine: Path) -> None:
    (engine / "script").write_text("seq 30; echo the reason >&2; exit 17")
    with pytest.raises(CommandError) as raised:
        containers.build()
    assert raised.value.code == 17
    assert str(raised.value).splitlines() == [*map(str, range(12, 31)), "the reason"]
    with pytest.raises(CommandError):
        containers.labstack(["train"])
    assert (engine / "calls").read_text().splitlines()[-1] == "compose --profile mlops build mlops"


def test_files_of_the_caller_are_mounted_at_their_own_path(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_COMMIT", "abc")
    for name in ("a.csv", "b.yaml"):
        (engine / name).touch()
    arguments = ["x", f"{engine}/a.csv", f"--file={engine}/b.yaml", f"--output={engine}/none.csv", "a b"]
    command = containers.labstack(arguments)
    assert command[-len(arguments) - 1 :] == ["mlops", *arguments]
    mounted = ["--user", f"{os.getuid()}:0", "--volume", f"{engine}:{engine}:ro"]
    assert command[4:-6] == ["run", "--rm", *mounted, "--env", "GIT_COMMIT=abc", "-T"]
    assert "--user" not in containers.labstack(["status"])


def test_the_status_is_that_of_the_containers(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (engine / "script").write_text(
        'case "$*" in\n'
        "'compose ps --quiet '*) echo id ;;\n"
        "inspect*) echo healthy ;;\n"
        "stats*) echo 1MiB ;;\n"
        "'compose port server_mlflow 5001') echo 0.0.0.0:6001 ;;\n"
        "'compose port api 5002') echo 192.0.2.1:6002 ;;\n"
        "esac\n"
    )
    assert containers.status() == 0
    assert capsys.readouterr().out == (
        "server_mlflow  up             http://localhost:6001  1MiB\n"
        "api            up             http://192.0.2.1:6002  1MiB\n"
    )
    (engine / "script").write_text('[ "$1" != inspect ] || echo starting; [ "$4" != api ] || echo id; [ "$2" != port ]')
    assert containers.status() == 1
    assert re.fullmatch(r"server_mlflow  down\napi +starting +no address\s+", capsys.readouterr().out)


def test_folders_of_the_settings_are_made_for_the_group(engine: Path) -> None:
    folder = engine / "lab/data"
    volumes = f'[{{"type": "bind", "source": "{folder}"}}, {{"type": "volume", "source": "lab-db"}}]'
    (engine / "script").write_text(f'echo \'{{"services": {{"api": {{"volumes": {volumes}}}, "x": {{}}}}}}\'')
    umask = commands.output(["sh", "-c", "umask"])
    containers.prepare()
    assert folder.stat().st_mode & 0o777 == 0o775
    assert commands.output(["sh", "-c", "umask"]) == umask
