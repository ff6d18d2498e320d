"""Archives: one state of a running lab, and nothing lost by a bad one."""

import io
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from labstack import archive, registry
from labstack.archive import ArchiveError
from labstack.settings import Settings
from tests.conftest import Lab, environment


def settings(folder: Path, **others: str) -> Settings:
    return Settings.model_validate(
        {
            "lab_database_url": f"sqlite:///{folder}/lab.db",
            "mlflow_backend_store_uri": f"sqlite:///{folder}/mlruns.db",
            "mlflow_artifacts_destination": str(folder / "mlartifacts"),
        }
        | others
    )


def written(folder: Path) -> bytes:
    stream = io.BytesIO()
    archive.write(settings(folder), stream)
    return stream.getvalue()


def ask(database: Path, query: str, *parameters: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query, parameters).fetchall()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder with the least that a lab is."""
    folder = tmp_path / "small"
    (folder / "mlartifacts/1").mkdir(parents=True)
    (folder / "mlartifacts/1/model").write_text("weights")
    for name in ("lab.db", "mlruns.db"):
        with closing(sqlite3.connect(folder / name)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("CREATE TABLE said (word TEXT)")
            connection.execute("INSERT INTO said VALUES (?)", (name,))
            connection.commit()
    return folder


def state(folder: Path) -> dict[str, object]:
    """All that a lab's folder holds."""
    files: dict[str, object] = {
        str(path): path.read_text() for path in (folder / "mlartifacts").rglob("*") if path.is_file()
    }
    return (
        files
        | {name: ask(folder / name, "SELECT * FROM said") for name in ("lab.db", "mlruns.db")}
        | {
            "entries": {path.name for path in folder.iterdir()}
            - {f"{name}.db-{log}" for name in ("lab", "mlruns") for log in ("wal", "shm")}
        }
    )


def test_of_a_lab_at_work_it_is_one_state(lab: Lab, model: str, tmp_path: Path) -> None:
    """Whatever the moment, the audit's last word on each role is the registry's, and every version has its files."""
    for number in (1, 2):
        registry.promote(lab.registry, lab.engine, model, number, reason="a first")
    stop = threading.Event()

    def move() -> None:
        while not stop.wait(random.uniform(0, 0.1)):  # noqa: S311  # SQLite retries in step with an even pace
            registry.rollback(lab.registry, lab.engine, model, reason="to and fro")

    mover = threading.Thread(target=move)
    mover.start()
    seen = set()
    try:
        for number in range(8):
            copy = tmp_path / str(number)
            archive.read(settings(copy), io.BytesIO(written(lab.folder)))
            aliases = ask(
                copy / "mlruns.db", "SELECT alias, version FROM registered_model_aliases WHERE name = ?", model
            )
            audit = ask(
                copy / "lab.db",
                "SELECT role, to_version FROM audit WHERE id IN "
                "(SELECT max(id) FROM audit WHERE model = ? AND action = 'move' GROUP BY role)",
                model,
            )
            assert sorted(aliases) == sorted(audit)
            seen.add(tuple(sorted(aliases)))
            locations = ask(
                copy / "mlruns.db", "SELECT storage_location FROM model_versions WHERE storage_location <> ''"
            )
            assert locations
            for (location,) in locations:
                assert (
                    copy / "mlartifacts" / str(location).removeprefix("mlflow-artifacts:/") / "contract.json"
                ).exists()
    finally:
        stop.set()
        mover.join()
    assert len(seen) == 2


def test_read_it_takes_the_place_of_what_was_there(small: Path, tmp_path: Path) -> None:
    packed, before = written(small), state(small)
    (small / "mlartifacts/1/model").write_text("others")
    (small / "mlartifacts/2").mkdir()
    with closing(sqlite3.connect(small / "lab.db")) as connection:
        connection.execute("DELETE FROM said")
        connection.commit()
    archive.read(settings(small), io.BytesIO(packed))
    assert state(small) == before
    archive.read(settings(tmp_path / "new"), io.BytesIO(packed))
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"lab.db", "mlruns.db", "mlartifacts"}


def test_a_lab_may_lie_on_several_file_systems(small: Path, tmp_path: Path) -> None:
    packed, before = written(small), state(small)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        shutil.move(small / "lab.db", memory)
        assert os.stat(memory).st_dev != tmp_path.stat().st_dev
        archive.read(settings(small, lab_database_url=f"sqlite:///{memory}/lab.db"), io.BytesIO(packed))
        assert os.listdir(memory) == ["lab.db"]
        shutil.move(f"{memory}/lab.db", small)
    assert state(small) == before


def test_what_is_read_may_be_written_by_the_group(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run(
        ["sh", "-c", f"umask 0002; exec '{sys.executable}' -m labstack.archive read"],
        input=written(small),
        env=environment(
            **settings(small).model_dump(
                include={"lab_database_url", "mlflow_backend_store_uri", "mlflow_artifacts_destination"}
            )
        ),
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (small / "lab.db").stat().st_mode & 0o777 == 0o664
    assert (small / "mlartifacts/1").stat().st_mode & 0o777 == 0o775


def packed(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as written_to:
        for name, body in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            written_to.addfile(entry, io.BytesIO(body))
    return stream.getvalue()


BAD: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "nothing": (lambda whole: b"", "no archive of a lab"),
    "no archive": (lambda whole: b"hello", "no archive of a lab"),
    "cut off": (lambda whole: whole[: len(whole) // 2], "damaged"),
    "another's": (lambda whole: packed(a=b"b"), "holds lab.db, mlruns.db, mlartifacts and nothing else"),
    "one that climbs out": (lambda whole: packed(**{"../x": b"b"}), "outside the destination"),
    "damaged databases": (
        lambda whole: packed(**{"lab.db": b"x" * 5000, "mlruns.db": b"x" * 5000}),
        "lab.db is damaged",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_archive_changes_nothing(small: Path, kind: str) -> None:
    make, message = BAD[kind]
    before = state(small)
    with pytest.raises(ArchiveError, match=message):
        archive.read(settings(small), io.BytesIO(make(written(small))))
    assert state(small) == before
    assert {path.name for path in small.parent.iterdir()} == {"small"}


def test_a_database_in_use_is_left_alone(small: Path) -> None:
    whole, before = written(small), state(small)
    with closing(sqlite3.connect(small / "mlruns.db")) as connection:
        connection.execute("SELECT * FROM said").fetchall()
        with pytest.raises(ArchiveError, match=r"mlruns.db is in use .*: stop the lab first"):
            archive.read(settings(small), io.BytesIO(whole))
    assert state(small) == before


def test_a_running_lab_is_not_replaced(lab: Lab, small: Path) -> None:
    with pytest.raises(ArchiveError, match="is in use"):
        archive.read(settings(lab.folder), io.BytesIO(written(small)))


def test_without_a_lab_there_is_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="There is no lab here yet"):
        written(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_stores_have_tools_of_their_own(small: Path) -> None:
    for other, name in (
        ({"lab_database_url": "postgresql://u:hush@h/d"}, "LAB_DATABASE_URL"),
        ({"mlflow_artifacts_destination": "s3://bucket"}, "MLFLOW_ARTIFACTS_DESTINATION"),
    ):
        with pytest.raises(ArchiveError, match=f"{name} is no .*: archive it with the tools of ") as error:
            archive.write(settings(small, **other), io.BytesIO())
        assert "hush" not in str(error.value)


@pytest.fixture
def site(small: Path) -> Iterator[str]:
    """A web site with the small lab's archive at /lab.tar.gz."""
    (small / "lab.tar.gz").write_bytes(written(small))
    handler = partial(SimpleHTTPRequestHandler, directory=str(small))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_lab_without_data_begins_with_the_archive_that_is_named(
    site: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, named in enumerate((f"{site}/lab.tar.gz", str(small / "lab.tar.gz"))):
        config = settings(tmp_path / str(number), lab_archive=named)
        archive.begin(config)
        assert ask(tmp_path / str(number) / "lab.db", "SELECT * FROM said") == [("lab.db",)]
        assert f"This lab begins with the data of {named}." in capsys.readouterr().err
        archive.begin(config)  # it has data now
        assert "begins" not in capsys.readouterr().err
    archive.begin(settings(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_an_archive_that_cannot_be_fetched_stops_the_start(site: str, tmp_path: Path) -> None:
    missing = site.replace("http://", "http://user:hush@")
    done = subprocess.run(
        [sys.executable, "-m", "labstack.tracking_server"],
        env=environment(
            lab_archive=f"{missing}/none.tar.gz",
            **{
                "lab_database_url": f"sqlite:///{tmp_path}/new/lab.db",
                "mlflow_backend_store_uri": f"sqlite:///{tmp_path}/new/mlruns.db",
            },
        ),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"LAB_ARCHIVE {site}/none.tar.gz cannot be fetched: ")
    assert done.stderr.count("\n") == 1
    assert "hush" not in done.stderr
    assert not (tmp_path / "new/mlruns.db").exists()
