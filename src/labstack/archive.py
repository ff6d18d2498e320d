"""`python -m labstack.archive write|read`: the whole lab as one archive, to standard output or from standard input.

An archive is a tar.gz of `lab.db`, `mlruns.db` and the folder `mlartifacts`. It is one state of a lab that may run
meanwhile: role moves hold our database's write lock, and so does this while it copies both databases. The artifacts
are copied after that; they never change, so all that the databases name is among them.
"""

import gzip
import os
import shutil
import sqlite3
import sys
import tarfile
import tempfile
import urllib.request
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from sqlalchemy import make_url

from labstack import settings
from labstack.errors import LabError
from labstack.settings import Settings

BUSY_TIMEOUT_SECONDS = 20.0


class ArchiveError(LabError):
    """An archive cannot be written or read; the text says why. Of a failed reading nothing is left."""


def write(config: Settings, to: IO[bytes]) -> None:
    """Write the lab's archive to a stream. Raises ArchiveError."""
    parts = _parts(config)
    if not all(parts[name].exists() for name in ("lab.db", "mlruns.db")):
        raise ArchiveError("There is no lab here yet.")
    with tempfile.TemporaryDirectory(dir=parts["lab.db"].parent) as folder:
        try:
            with closing(_connect(parts["lab.db"])) as lock:
                lock.execute("BEGIN IMMEDIATE")
                for name in ("lab.db", "mlruns.db"):
                    with closing(_connect(parts[name])) as source, closing(_connect(Path(folder, name))) as copy:
                        source.backup(copy)
                        copy.execute("PRAGMA journal_mode = DELETE")  # one file, complete without a log beside it
        except sqlite3.Error as error:
            raise ArchiveError(f"The databases cannot be copied: {error}.") from error
        with gzip.open(to, "wb", compresslevel=6) as packed, tarfile.open(fileobj=packed, mode="w|") as archive:
            for name in ("lab.db", "mlruns.db"):
                archive.add(Path(folder, name), name)
            if parts["mlartifacts"].exists():
                _add(archive, parts["mlartifacts"], "mlartifacts")


def read(config: Settings, stream: IO[bytes]) -> None:
    """Put an archive in the place of the lab's data. Raises ArchiveError, and then leaves all as it was.

    No service may be using the databases: it would go on with the old ones.
    """
    parts = _parts(config)
    with ExitStack() as stack:
        beside = {}  # a folder in the file system of each part, so that the exchange is only renaming
        for home in {place.parent for place in parts.values()}:
            home.mkdir(parents=True, exist_ok=True)
            beside[home] = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=home)))
        new = beside[parts["mlartifacts"].parent] / "new"
        try:
            with tarfile.open(fileobj=stream, mode="r|gz") as archive:
                archive.extractall(new, filter=_plain)  # noqa: S202  # the filter sees to it
        except (OSError, EOFError, tarfile.TarError) as error:
            raise ArchiveError(f"This is no archive of a lab, or a damaged one: {error}.") from error
        (new / "mlartifacts").mkdir(parents=True, exist_ok=True)
        if {path.name for path in new.iterdir()} != set(parts):
            raise ArchiveError(f"This is no archive of a lab, which holds {', '.join(parts)} and nothing else.")
        for name in ("lab.db", "mlruns.db"):
            _require_sound(new / name)
            _require_unused(parts[name])
        try:
            for name, place in parts.items():
                shutil.move(new / name, beside[place.parent] / name)
        except OSError as error:
            raise ArchiveError(f"The data cannot be replaced: {error}.") from error
        _exchange(parts, {name: beside[place.parent] / name for name, place in parts.items()})


def begin(config: Settings) -> None:
    """Give a lab that has no data yet those of the archive that LAB_ARCHIVE names, a path or a URL.

    Raises ArchiveError.
    """
    if config.lab_archive is None or any(_parts(config)[name].exists() for name in ("lab.db", "mlruns.db")):
        return
    named = settings.without_credentials(config.lab_archive)
    try:
        fetched = urlsplit(config.lab_archive).scheme in ("http", "https")
        url = config.lab_archive if fetched else Path(config.lab_archive).absolute().as_uri()
        with urllib.request.urlopen(url, timeout=60) as stream:  # noqa: S310  # one of these three
            read(config, stream)
    except (OSError, ValueError) as error:
        raise ArchiveError(f"LAB_ARCHIVE {named} cannot be fetched: {error}.") from error
    print(f"This lab begins with the data of {named}.", file=sys.stderr)  # noqa: T201


def _parts(config: Settings) -> dict[str, Path]:
    """Where the lab keeps each part of an archive."""
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
    """Add a file, or a folder with all in it; what is deleted meanwhile is left out."""
    with suppress(FileNotFoundError):
        archive.add(path, name, recursive=False)
        if path.is_dir():
            for entry in sorted(path.iterdir()):
                _add(archive, entry, f"{name}/{entry.name}")


def _plain(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """Nothing but files and folders inside, with the modes that new ones have here."""
    return tarfile.data_filter(member, folder).replace(mode=None)  # type: ignore[arg-type]  # None says just that


def _require_sound(database: Path) -> None:
    try:
        with closing(_connect(database)) as connection:
            found = connection.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.Error as error:
        found = str(error)
    if found != "ok":
        raise ArchiveError(f"The archive's {database.name} is damaged: {found}.")


def _require_unused(database: Path) -> None:
    """Raise ArchiveError when another connection has the database open; what its log holds is in its file then."""
    if not database.exists():
        return
    try:
        with closing(sqlite3.connect(database, timeout=2, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")  # refused while anybody else has it open
    except sqlite3.OperationalError as error:
        raise ArchiveError(f"{database} is in use ({error}): stop the lab first.") from error
    except sqlite3.DatabaseError:
        return  # damaged, which may be why it is being replaced


def _exchange(parts: dict[str, Path], new: dict[str, Path]) -> None:
    """Put the new parts where the old ones were; on a failure the old ones back."""
    old = {name: path.with_name(f"{name}.old") for name, path in new.items()}
    moved = []
    try:
        for name, place in parts.items():
            if place.exists():
                os.replace(place, old[name])
            moved.append(name)
            os.replace(new[name], place)
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
                sys.exit("usage: python -m labstack.archive write|read")
    except (LabError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
