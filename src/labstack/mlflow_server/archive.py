"""`python -m labstack.mlflow_server.archive write|read`: the whole lab as one archive, to or from a standard stream.

An archive is a tar.gz of `lab.db`, `mlruns.db` and the folder `mlartifacts`. It is a consistent snapshot of a lab that
may be running: the lock of role moves is held while both databases are copied. The artifacts are copied after that;
they never change, so every artifact that the databases name is in the archive.
"""

import gzip
import http.client
import os
import shutil
import signal
import sqlite3
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast
from urllib.parse import urlsplit

from sqlalchemy import make_url

from labstack import locks, settings
from labstack.errors import LabError
from labstack.settings import Settings

BUSY_TIMEOUT_SECONDS = 20.0
CONTENTS = "which holds lab.db, mlruns.db, mlartifacts and nothing else"
PART_BYTES = 1 << 20
MAX_MEMBERS = 1_000_000
MAX_DEPTH = 100  # of nested folders
MAX_HEADER_BYTES = 1 << 16  # of an extra header, which holds a name too long for a member's own
RESERVE_BYTES = 1 << 28  # left free on the disk
MIN_BYTES, MIN_BYTES_SECONDS = 6_000_000, 60  # a download that sends fewer bytes in this time is stopped


class ArchiveError(LabError):
    """An archive cannot be written or read; the text says why. A failed read leaves the lab's data unchanged."""


def write(config: Settings, to: IO[bytes]) -> None:
    """Write the lab's archive to a stream. Raises ArchiveError."""
    parts = _parts(config)
    if not all(parts[name].exists() for name in ("lab.db", "mlruns.db")):
        raise ArchiveError("There is no lab here yet.")
    with tempfile.TemporaryDirectory(dir=parts["lab.db"].parent) as folder:
        try:
            with locks.exclusive(locks.moves_file(parts["lab.db"]), BUSY_TIMEOUT_SECONDS):
                for name in ("lab.db", "mlruns.db"):
                    with closing(_connect(parts[name])) as source, closing(_connect(Path(folder, name))) as copy:
                        source.backup(copy)
                        copy.execute("PRAGMA journal_mode = DELETE")  # complete in one file, without a write-ahead log
        except sqlite3.Error as error:
            raise ArchiveError(f"The databases cannot be copied: {error}.") from error
        except TimeoutError as error:
            raise ArchiveError("A role move is in progress and does not finish; try again later.") from error
        with gzip.open(to, "wb", compresslevel=6) as packed, tarfile.open(fileobj=packed, mode="w|") as archive:
            for name in ("lab.db", "mlruns.db"):
                archive.add(Path(folder, name), name)
            if parts["mlartifacts"].exists():
                _add(archive, parts["mlartifacts"], "mlartifacts")


def read(config: Settings, stream: IO[bytes]) -> None:
    """Replace the lab's data by an archive's. Raises ArchiveError, and then leaves the data unchanged.

    No service may use the databases meanwhile: it would keep using the old files.
    """
    parts = _parts(config)
    with ExitStack() as stack:
        staging = {}  # a folder on the file system of each part, so that the exchange only renames
        for home in {path.parent for path in parts.values()}:
            home.mkdir(parents=True, exist_ok=True)
            staging[home] = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=home)))
        new = staging[parts["mlartifacts"].parent] / "new"
        new.mkdir()
        try:
            _unpack(stream, new, _max_unpacked_bytes(config, new.parent))
        except (TimeoutError, ConnectionError):
            raise  # from the source of the stream, not from the archive
        except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError) as error:
            raise ArchiveError(f"This is no archive of a lab, or a damaged one: {error}.") from error
        (new / "mlartifacts").mkdir(exist_ok=True)
        if {path.name for path in new.iterdir()} != set(parts):
            raise ArchiveError(f"This is no archive of a lab, {CONTENTS}.")
        for name in ("lab.db", "mlruns.db"):
            _require_sound(new / name)
            _require_unused(parts[name])
        try:
            for name, path in parts.items():
                shutil.move(new / name, staging[path.parent] / name)
        except OSError as error:
            raise ArchiveError(f"The data cannot be replaced: {error}.") from error
        _exchange(parts, {name: staging[path.parent] / name for name, path in parts.items()})


def begin(config: Settings) -> None:
    """Read the archive that LAB_ARCHIVE names, a path or a URL, into a lab that has no data yet.

    Raises ArchiveError.
    """
    if config.lab_archive is None or any(_parts(config)[name].exists() for name in ("lab.db", "mlruns.db")):
        return
    shown = settings.without_credentials(config.lab_archive)
    try:
        if urlsplit(config.lab_archive).scheme in ("http", "https"):
            with _fetched(config.lab_archive) as stream:
                read(config, stream)
        else:
            with Path(config.lab_archive).open("rb") as file:
                read(config, file)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ArchiveError(f"LAB_ARCHIVE {shown} cannot be fetched: {error}.") from error
    print(f"This lab begins with the data of {shown}.", file=sys.stderr)  # noqa: T201


@contextmanager
def _fetched(url: str) -> Iterator[IO[bytes]]:
    """Yield the response of a URL, over HTTP and HTTPS only, also after redirects.

    Raises TimeoutError when fewer than MIN_BYTES arrive in MIN_BYTES_SECONDS. The timeout of a socket limits only each
    read, of a byte perhaps; so a timer's signal checks the rate, which works in the main thread only.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    download = _Download()
    before = signal.signal(signal.SIGALRM, download.check_rate)
    signal.setitimer(signal.ITIMER_REAL, MIN_BYTES_SECONDS, MIN_BYTES_SECONDS)
    try:
        with opener.open(url, timeout=MIN_BYTES_SECONDS) as answer:
            download.answer = answer
            yield cast("IO[bytes]", download)
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _Download:
    """An HTTP response, and how many of its bytes arrived since the rate was last checked."""

    answer: http.client.HTTPResponse

    def __init__(self) -> None:
        self.received = 0

    def read(self, size: int = -1) -> bytes:
        part = self.answer.read1(size)
        self.received += len(part)
        if not part:
            signal.setitimer(signal.ITIMER_REAL, 0)  # complete: unpacking may take longer
        return part

    def check_rate(self, _signal: int, _frame: object) -> None:
        if self.received < MIN_BYTES:
            raise TimeoutError(f"{self.received:,} bytes came in {MIN_BYTES_SECONDS} seconds, which is too slow")
        self.received = 0


def _parts(config: Settings) -> dict[str, Path]:
    """Return the path of each part of an archive in this lab. Raises ArchiveError for stores that are not files."""
    parts = {}
    for name, variable in (("lab.db", "lab_database_url"), ("mlruns.db", "mlflow_backend_store_uri")):
        url = make_url(getattr(config, variable))
        if url.get_backend_name() != "sqlite" or not url.database:
            raise ArchiveError(f"{variable.upper()} is no SQLite file: archive it with the tools of {url.drivername}.")
        parts[name] = Path(url.database)
    destination = urlsplit(config.mlflow_artifacts_destination)
    if destination.scheme not in ("", "file"):
        raise ArchiveError(
            f"MLFLOW_ARTIFACTS_DESTINATION is no folder: archive it with the tools of {destination.scheme}."
        )
    return parts | {"mlartifacts": Path(destination.path)}


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None)


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    """Add a file, or a folder with its contents; skip what is deleted meanwhile."""
    with suppress(FileNotFoundError):
        archive.add(path, name, recursive=False)
        if path.is_dir():
            for entry in sorted(path.iterdir()):
                _add(archive, entry, f"{name}/{entry.name}")


class _Bounded:
    """A stream of which at most `left` bytes are read."""

    def __init__(self, stream: Any, left: int) -> None:
        self.stream, self.left = stream, left

    def read(self, size: int = -1) -> bytes:
        """Return at most `size` bytes, none at the end. Raises ArchiveError at the limit."""
        content: bytes = self.stream.read(size)
        self.require(len(content))
        self.left -= len(content)
        return content

    def require(self, size: int) -> None:
        """Raise ArchiveError when `size` more bytes exceed the limit."""
        if size > self.left:
            raise ArchiveError(
                "The archive, unpacked, is larger than LAB_ARCHIVE_MAX_BYTES allows, or than there is space for "
                f"on the disk, of which {RESERVE_BYTES:,} bytes are left free."
            )

    def exactly(self, size: int) -> Iterator[bytes]:
        """Yield the next `size` bytes, in parts. Raises EOFError when there are fewer."""
        if size < 0:
            raise ValueError("a size in it is negative")
        self.require(size)
        while size:
            part = self.read(min(size, PART_BYTES))
            if not part:
                raise EOFError("it ends too early")
            size -= len(part)
            yield part


def _max_unpacked_bytes(config: Settings, home: Path) -> int:
    """Return how many bytes an archive may unpack to."""
    return min(config.lab_archive_max_bytes, shutil.disk_usage(home).free - RESERVE_BYTES)


def _unpack(stream: IO[bytes], folder: Path, limit: int) -> None:
    """Unpack an archive into an empty folder, each file and folder checked before it is made.

    Every file is created, never opened, so that no link is followed. Raises ArchiveError for members that `write` does
    not write, and for more than `limit` bytes or MAX_MEMBERS members.
    """
    tar = _Bounded(gzip.GzipFile(fileobj=cast("IO[bytes]", _Bounded(stream, limit)), mode="rb"), limit)
    for count, (name, member) in enumerate(_members(tar)):
        if count >= MAX_MEMBERS:
            raise ArchiveError(f"The archive has more than {MAX_MEMBERS:,} files and folders.")
        parts = PurePosixPath(name).parts
        if "\0" in name or ".." in parts or len(parts) > MAX_DEPTH or not _belongs(parts, member.isdir()):
            raise ArchiveError(f"This is no archive of a lab, {CONTENTS}: it holds {name[:200]!r}.")
        path = folder.joinpath(*parts)
        try:
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:  # exclusive creation neither follows a link nor overwrites a file
                file.writelines(tar.exactly(member.size))
        except (FileExistsError, NotADirectoryError):
            raise ArchiveError(f"This is no archive of a lab: {name!r} is in it twice.") from None
        _skip_padding(tar, member.size)
    while rest := tar.read(PART_BYTES):  # to the end of the stream, where gzip's checksum is
        if rest.strip(b"\0"):
            raise ArchiveError("This is no archive of a lab, or a damaged one: something follows its end.")


def _belongs(parts: tuple[str, ...], is_folder: bool) -> bool:
    """Return whether an archive of a lab may hold a file, or a folder, with this path."""
    if is_folder:
        return parts[:1] in ((), ("mlartifacts",))
    return parts in (("lab.db",), ("mlruns.db",)) or (parts[:1] == ("mlartifacts",) and len(parts) > 1)


def _members(tar: _Bounded) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yield the name and header of each member; the caller reads a file's content before the next member.

    Headers are parsed here, as tarfile accepts links, sparse files and headers of any size. Raises ArchiveError for all
    but regular files and folders, EOFError and tarfile.HeaderError for damaged ones.
    """
    extra: dict[str, bytes] = {}  # fields of the next member, from the extra header before it
    while (block := b"".join(tar.exactly(tarfile.BLOCKSIZE))) != bytes(tarfile.BLOCKSIZE):
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if header.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            if header.size > MAX_HEADER_BYTES:
                raise ArchiveError(f"A header of the archive has more than {MAX_HEADER_BYTES:,} bytes.")
            content = b"".join(tar.exactly(header.size))
            _skip_padding(tar, header.size)
            fields = _pax_records(content) if header.type == tarfile.XHDTYPE else [("path", content.rstrip(b"\0"))]
            extra |= {key: value for key, value in fields if key in ("path", "size") or key.startswith("GNU.sparse")}
            if extra.keys() - {"path", "size"}:
                raise ArchiveError("The archive is rejected: it holds a sparse file.")
            continue
        name = extra["path"].decode("utf-8", "surrogateescape") if "path" in extra else header.name
        if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
            raise ArchiveError(f"The archive is rejected: {name!r} is neither a regular file nor a folder.")
        header.size = int(extra.get("size", header.size))
        extra = {}
        yield name, header


def _pax_records(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the keys and values of a pax header, whose records are `<length> <key>=<value>` and a line feed."""
    while content:
        length, _, _ = content.partition(b" ")
        record, content = content[: int(length)], content[int(length) :]
        key, sign, value = record[len(length) + 1 : -1].partition(b"=")
        if not sign or not record.endswith(b"\n") or int(length) != len(record):
            raise ValueError("one of its headers is invalid")
        yield key.decode("utf-8", "replace"), value


def _skip_padding(tar: _Bounded, size: int) -> None:
    """Read the padding that fills the last block after `size` bytes."""
    for _ in tar.exactly(-size % tarfile.BLOCKSIZE):
        pass


def _require_sound(database: Path) -> None:
    """Raise ArchiveError when a database is damaged."""
    try:
        with closing(_connect(database)) as connection:
            result = connection.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.Error as error:
        result = str(error)
    if result != "ok":
        raise ArchiveError(f"The archive's {database.name} is damaged: {result}.")


def _require_unused(database: Path) -> None:
    """Raise ArchiveError when another connection has the database open; else merge its log into its file."""
    if not database.exists():
        return
    try:
        with closing(sqlite3.connect(database, timeout=2, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")  # fails while another connection has it open
    except sqlite3.OperationalError as error:
        raise ArchiveError(f"{database} is in use ({error}): stop the lab first.") from error
    except sqlite3.DatabaseError:
        return  # it is damaged, which may be why it is replaced


def _exchange(parts: dict[str, Path], new: dict[str, Path]) -> None:
    """Replace the old parts by the new ones; on a failure put the old ones back. Raises ArchiveError."""
    old = {name: path.with_name(f"{name}.old") for name, path in new.items()}
    moved = []
    try:
        for name, path in parts.items():
            if path.exists():
                os.replace(path, old[name])
            moved.append(name)
            os.replace(new[name], path)
    except OSError as error:
        for name in moved:
            if parts[name].is_dir():
                shutil.rmtree(parts[name])
            else:
                parts[name].unlink(missing_ok=True)
            if old[name].exists():
                os.replace(old[name], parts[name])
        raise ArchiveError(f"The data cannot be replaced: {error}.") from error


def main() -> None:
    try:
        match sys.argv[1:]:
            case ["write"]:
                write(settings.load(), sys.stdout.buffer)
            case ["read"]:
                read(settings.load(), sys.stdin.buffer)
            case _:
                sys.exit("usage: python -m labstack.mlflow_server.archive write|read")
    except (LabError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
