"""An archive is a consistent snapshot of a running lab, and a bad archive changes nothing."""

import gzip
import io
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, repeat
from pathlib import Path
from typing import IO, Any, cast

import pytest

from labstack.mlflow_server import archive
from labstack.mlflow_server.archive import ArchiveError
from labstack.registry import moves
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
    """The folder of the smallest lab."""
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
    """Return the contents of a lab's folder."""
    files: dict[str, object] = {
        str(path): path.read_text() for path in (folder / "mlartifacts").rglob("*") if path.is_file()
    }
    return (
        files
        | {name: ask(folder / name, "SELECT * FROM said") for name in ("lab.db", "mlruns.db")}
        | {
            "entries": {path.name for path in folder.iterdir()}
            - {f"{name}.db-{beside}" for name in ("lab", "mlruns") for beside in ("moves", "shm", "wal")}
        }
    )


def test_the_archive_of_a_running_lab_is_a_consistent_snapshot(lab: Lab, model: str, tmp_path: Path) -> None:
    """At any moment, the last audit entry of each role agrees with the registry, and every version has its files."""
    for number in (1, 2):
        moves.promote(lab.registry, lab.engine, model, number, reason="a first")
    stop = threading.Event()

    def move() -> None:
        while not stop.wait(random.uniform(0, 0.1)):  # noqa: S311  # SQLite retries in step with an even pace
            moves.rollback(lab.registry, lab.engine, model, reason="to and fro")

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


def test_reading_an_archive_replaces_the_data(small: Path, tmp_path: Path) -> None:
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


def test_the_group_may_write_what_was_read(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run(
        ["sh", "-c", f"umask 0002; exec '{sys.executable}' -m labstack.mlflow_server.archive read"],
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
    return gzip.compress(b"".join(member(name, body) for name, body in files.items()) + END)


END = bytes(1024)


def member(name: str | bytes, body: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: Any) -> bytes:
    """A member of a tar file: its header and its padded content."""
    entry = tarfile.TarInfo(name if isinstance(name, str) else name.decode("utf-8", "surrogateescape"))
    entry.type, entry.size = kind, len(body)
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + filled(body)


def filled(body: bytes) -> bytes:
    return body + bytes(-len(body) % 512)


def pax(body: bytes) -> bytes:
    return member("x", body, tarfile.XHDTYPE)


def record(key: str, value: bytes) -> bytes:
    rest = f" {key}=".encode() + value + b"\n"
    size = len(rest)
    while len(b"%d%b" % (size, rest)) != size:
        size += 1
    return b"%d%b" % (size, rest)


def with_more(*members: bytes) -> Callable[[bytes], bytes]:
    """Return a function that puts other members before those of the lab's archive."""
    return lambda whole: gzip.compress(b"".join(members) + gzip.decompress(whole))


def behind(*members: bytes) -> Callable[[bytes], bytes]:
    """Return a function that puts other members after those of the lab's archive."""
    return lambda whole: gzip.compress(gzip.decompress(whole)[: last(whole)] + b"".join(members) + END)


def last(whole: bytes) -> int:
    """Return the offset at which the archive's members end."""
    with tarfile.open(fileobj=io.BytesIO(whole), mode="r:gz") as archive:
        entry = archive.getmembers()[-1]
        return entry.offset_data + -(-entry.size // 512) * 512


BAD: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "nothing": (lambda whole: b"", "no archive of a lab"),
    "no archive": (lambda whole: b"hello", "no archive of a lab"),
    "cut off": (lambda whole: whole[: len(whole) // 2], "damaged"),
    "another's": (lambda whole: packed(a=b"b"), "holds lab.db, mlruns.db, mlartifacts and nothing else"),
    "one that climbs out": (with_more(member("../x", b"b")), r"nothing else: it holds '\.\./x'"),
    "one that climbs out late": (with_more(member("mlartifacts/../../x", b"b")), "nothing else: it holds"),
    "an absolute path": (with_more(member("/etc/x", b"b")), "nothing else: it holds '/etc/x'"),
    "another's file": (behind(member("cron.d", b"b")), "nothing else: it holds 'cron.d'"),
    "a folder for a database": (with_more(member("lab.db", kind=tarfile.DIRTYPE)), "nothing else: it holds 'lab.db'"),
    "a file for a folder": (with_more(member("mlartifacts", b"x")), "nothing else: it holds 'mlartifacts'"),
    "a file in a database": (with_more(member("lab.db/x", b"x")), "nothing else: it holds 'lab.db/x'"),
    "a symbolic link": (
        with_more(member("mlartifacts/l", kind=tarfile.SYMTYPE, linkname="/etc")),
        "'mlartifacts/l' is neither a regular file nor a folder",
    ),
    "a link of the folder": (
        with_more(member("mlartifacts", kind=tarfile.SYMTYPE, linkname=".."), member("mlartifacts/x", b"x")),
        "'mlartifacts' is neither",
    ),
    "a hard link": (with_more(member("mlartifacts/l", kind=tarfile.LNKTYPE, linkname="../lab.db")), "is neither"),
    "a device": (with_more(member("mlartifacts/d", kind=tarfile.CHRTYPE, devmajor=1, devminor=5)), "is neither"),
    "a block device": (with_more(member("mlartifacts/d", kind=tarfile.BLKTYPE)), "is neither"),
    "a pipe": (with_more(member("mlartifacts/p", kind=tarfile.FIFOTYPE)), "is neither"),
    "a contiguous file": (with_more(member("mlartifacts/c", b"x", kind=tarfile.CONTTYPE)), "is neither"),
    "a kind of its own": (with_more(member("mlartifacts/c", b"x", kind=b"Q")), "is neither"),
    "a sparse file": (with_more(member("mlartifacts/s", b"x", kind=tarfile.GNUTYPE_SPARSE)), "is neither"),
    "a sparse file of pax": (
        with_more(
            pax(record("GNU.sparse.major", b"1") + record("GNU.sparse.minor", b"0")),
            member("mlartifacts/s", b"99999999999\n" * 99),
        ),
        "a sparse file",
    ),
    "a header for all": (with_more(member("g", record("path", b"x"), tarfile.XGLTYPE)), "is neither"),
    "a file twice": (behind(member("lab.db", b"x")), "'lab.db' is in it twice"),
    "a file that was a folder": (behind(member("mlartifacts/1", b"x")), "'mlartifacts/1' is in it twice"),
    "a folder that was a file": (behind(member("mlartifacts/1/model/x", b"x")), "is in it twice"),
    "NUL in a name": (with_more(pax(record("path", b"mlartifacts/a\0b")), member("x")), "nothing else: it holds"),
    "a long name that climbs out": (
        with_more(member("x", b"mlartifacts/" + b"../" * 99 + b"x\0", tarfile.GNUTYPE_LONGNAME), member("x")),
        "nothing else: it holds",
    ),
    "a name as long as no file's": (
        with_more(member("x", b"mlartifacts/" + b"x" * 3000, tarfile.GNUTYPE_LONGNAME), member("x")),
        "File name too long",
    ),
    "folders in folders": (
        with_more(member("x", b"mlartifacts" + b"/x" * 2000, tarfile.GNUTYPE_LONGNAME), member("x")),
        "nothing else: it holds",
    ),
    "a huge header": (with_more(pax(record("comment", bytes(1 << 17)))), "A header .* more than 65,536 bytes"),
    "a header that says nothing": (with_more(pax(b"0 x=y\n")), "damaged one: one of its headers is invalid"),
    "a header of half a record": (with_more(pax(b"99 path=y\n")), "one of its headers is invalid"),
    "a negative size": (with_more(pax(record("size", b"-512")), member("mlartifacts/x")), "negative"),
    "a negative size of a header": (with_more(member("mlartifacts/x", size=-512)), "negative"),
    "a size that is not there": (with_more(pax(record("size", b"9" * 15)), member("mlartifacts/x")), "is larger than"),
    "a header that ends early": (lambda whole: gzip.compress(gzip.decompress(whole)[:700]), "it ends too early"),
    "a wrong checksum of a header": (with_more(b"x" * 512), "invalid header"),
    "no end": (lambda whole: gzip.compress(gzip.decompress(whole)[: last(whole)]), "it ends too early"),
    "more behind the end": (lambda whole: gzip.compress(gzip.decompress(whole) + b"x"), "something follows its end"),
    "garbage behind the end": (lambda whole: whole + b"garbage", "[Nn]ot a gzipped file"),
    "another checksum": (lambda whole: whole[:-8] + bytes(4) + whole[-4:], "CRC check failed"),
    "another content": (lambda whole: whole[:300] + bytes(9) + whole[309:], "damaged one"),
    "the end missing": (lambda whole: whole[:-4], "ended before the end"),
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


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 100)


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize(
    ("members", "message"),
    [
        (member("mlartifacts/x", bytes(20 << 20)), "larger than LAB_ARCHIVE_MAX_BYTES allows"),
        (b"".join(member(f"mlartifacts/{number}", bytes(1 << 20)) for number in range(20)), "larger than LAB_ARCHIVE"),
        (pax(record("comment", bytes(60_000))) * 300, "larger than LAB_ARCHIVE"),
        (b"".join(member(f"mlartifacts/{number}") for number in range(101)), "more than 100 files and folders"),
        (member("mlartifacts", kind=tarfile.DIRTYPE) * 101, "more than 100 files and folders"),
    ],
    ids=["a file", "files", "headers", "empty files", "a folder"],
)
def test_an_archive_that_unpacks_to_too_much_is_rejected_early(small: Path, members: bytes, message: str) -> None:
    before, packed_so = state(small), gzip.compress(members + END)
    assert len(packed_so) < 100_000
    with pytest.raises(ArchiveError, match=message):
        archive.read(settings(small, lab_archive_max_bytes="10000000"), io.BytesIO(packed_so))
    assert state(small) == before


class Endless(io.RawIOBase):
    """A stream without an end, which counts the bytes that were read."""

    def __init__(self, begin: bytes, more: bytes) -> None:
        self.begin, self.more, self.count = begin, more, 0

    def read(self, size: int = -1) -> bytes:
        part = (self.begin[self.count :] + self.more * (size // len(self.more) + 1))[:size]
        self.count += len(part)
        return part


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"\x1f\x8b\x08\x08" + bytes(6), b"x"),  # the name in gzip's header
        (b"", gzip.compress(b"")),
        (gzip.compress(member("mlartifacts/x", b"")), gzip.compress(bytes(512))),
        (gzip.compress(END), bytes(512)),
    ],
    ids=["gzip's header", "nothing", "a file", "an end"],
)
def test_a_stream_that_never_ends_is_left(small: Path, begin: bytes, more: bytes) -> None:
    before, stream = state(small), Endless(begin, more)
    with pytest.raises(ArchiveError, match=r"is larger than LAB_ARCHIVE_MAX_BYTES allows|no archive of a lab"):
        archive.read(settings(small, lab_archive_max_bytes="1000000"), cast("IO[bytes]", stream))
    assert stream.count < 2_000_000
    assert state(small) == before


def test_an_archive_larger_than_the_free_disk_is_rejected(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, before = written(small), state(small)
    monkeypatch.setattr(archive, "RESERVE_BYTES", shutil.disk_usage(small).total)
    with pytest.raises(ArchiveError, match="space for on the disk"):
        archive.read(settings(small), io.BytesIO(whole))
    assert state(small) == before


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_archives_of_other_programs_are_read(small: Path, form: int) -> None:
    """As by the command tar: `./lab.db`, long names, names of any characters, and no entry for a folder."""
    names = ["a" * 90 + "/" + "b" * 120, "größe", "two\nlines", "b\udcffytes", "..x", "a b"]
    if form == tarfile.USTAR_FORMAT:
        names[0] = "a" * 90 + "/" + "b" * 90
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", format=form, errors="surrogateescape") as archived:
        archived.add(small, ".", recursive=False)
        for name in ("lab.db", "mlruns.db"):
            archived.add(small / name, f"./{name}")
        for name in names:
            entry = tarfile.TarInfo(f"mlartifacts/{name}")
            entry.size = 600
            archived.addfile(entry, io.BytesIO(b"x" * 600))
    archive.read(settings(small), io.BytesIO(stream.getvalue()))
    found = {
        str(path.relative_to(small / "mlartifacts")) for path in (small / "mlartifacts").rglob("*") if path.is_file()
    }
    assert found == set(names)
    assert (small / "mlartifacts" / names[0]).read_bytes() == b"x" * 600
    again = written(small)
    archive.read(settings(small), io.BytesIO(again))
    assert len(list((small / "mlartifacts").rglob("*"))) == len(names) + 1


def test_a_database_in_use_is_not_replaced(small: Path) -> None:
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


def test_stores_that_are_not_files_are_rejected(small: Path) -> None:
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


def test_a_lab_without_data_starts_from_the_archive_in_its_settings(
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


def answering(*parts: bytes, pause: float = 0) -> Iterator[str]:
    """A web site that answers each request with these parts, then repeats the last one without end, with pauses."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, suppress(OSError):
                        connection.recv(65536)
                        for part in chain(parts, repeat(parts[-1])):
                            connection.sendall(part)
                            if stop.wait(pause):
                                return

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/lab.tar.gz"
        finally:
            stop.set()
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
DRIPS = {
    "body": (HEAD, gzip.compress(member("mlartifacts/x", os.urandom(5000)))[:2000], b"a"),
    "headers": (b"HTTP/1.1 200 OK\r\nX-A: ", b"a"),
}


@pytest.mark.parametrize("parts", DRIPS.values(), ids=DRIPS)
def test_a_download_that_is_too_slow_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: tuple[bytes, ...]
) -> None:
    monkeypatch.setattr(archive, "MIN_BYTES_SECONDS", 0.5)
    config = settings(tmp_path / "new")
    with contextmanager(answering)(*parts, pause=0.05) as url, pytest.raises(ArchiveError) as raised:
        archive.begin(config.model_copy(update={"lab_archive": url}))
    assert re.match(r"LAB_ARCHIVE http://.* cannot be fetched: [0-9,]+ bytes came in 0\.5 seconds", str(raised.value))
    assert list((tmp_path / "new").glob("*")) == []
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


def test_a_download_without_an_end_is_stopped(tmp_path: Path) -> None:
    config = settings(tmp_path / "new", lab_archive_max_bytes="5000000")
    parts = (HEAD, gzip.compress(member("mlartifacts/x", b"x")), gzip.compress(member("mlartifacts", kind=b"5") * 99))
    with contextmanager(answering)(*parts) as url, pytest.raises(ArchiveError, match="is larger than"):
        archive.begin(config.model_copy(update={"lab_archive": url}))
    assert list((tmp_path / "new").glob("*")) == []


@pytest.mark.parametrize("scheme", ["file://", "ftp://127.0.0.1:1"])
def test_a_redirect_leads_to_the_web_only(small: Path, tmp_path: Path, scheme: str) -> None:
    (small / "lab.tar.gz").write_bytes(written(small))
    head = f"HTTP/1.1 302 Found\r\nLocation: {scheme}{small}/lab.tar.gz\r\nContent-Length: 0\r\n\r\n"
    config = settings(tmp_path / "new")
    with contextmanager(answering)(head.encode(), pause=60) as url, pytest.raises(ArchiveError) as raised:
        archive.begin(config.model_copy(update={"lab_archive": url}))
    assert re.search("cannot be fetched: .*(not allowed|unknown url type)", str(raised.value))
    assert not (tmp_path / "new").exists()
    with pytest.raises(ArchiveError, match="cannot be fetched"):
        archive.begin(settings(tmp_path / "new", lab_archive=f"file://{small}/lab.tar.gz"))


def test_an_archive_that_cannot_be_fetched_stops_the_start(site: str, tmp_path: Path) -> None:
    missing = site.replace("http://", "http://user:hush@")
    done = subprocess.run(
        [sys.executable, "-m", "labstack.mlflow_server.main"],
        env=environment(
            lab_archive=f"{missing}/none.tar.gz",
            lab_database_url=f"sqlite:///{tmp_path}/new/lab.db",
            mlflow_backend_store_uri=f"sqlite:///{tmp_path}/new/mlruns.db",
        ),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"LAB_ARCHIVE {site}/none.tar.gz cannot be fetched: ")
    assert done.stderr.count("\n") == 1
    assert "hush" not in done.stderr
    assert not (tmp_path / "new/mlruns.db").exists()
