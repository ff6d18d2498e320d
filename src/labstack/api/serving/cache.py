"""The cache on disk: the versions that were fetched, and a list of those that were served last.

The follower of each worker, and of each API that shares the folder, writes it. A version's files appear whole, by a
rename, and never change; a worker holds a version's lock while it fetches or tries it, and the others wait and then
find the result. `served.json` is replaced whole, and the last writer wins.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO

import structlog

from labstack.api.serving.lineup import Served
from labstack.registry import trial
from labstack.registry.client import MlflowRest, Version
from labstack.registry.trial import TrialError, TrialTimeoutError
from labstack.settings import Settings

TRIED = "tried"  # the file, in a version's folder, that names the libraries that it was tried with
LOCK_POLL_SECONDS = 0.05
VERSION_FOLDER = re.compile(r"[0-9a-f]{32}")

log = structlog.get_logger(__name__)


class Cache:
    def __init__(self, settings: Settings, client: MlflowRest) -> None:
        self._settings = settings
        self._folder = settings.api_cache_dir
        self._client = client

    def folder(self, record: Version) -> Path:
        """The folder for a version's files, which need not exist."""
        return self._folder / hashlib.sha256(record.source.encode()).hexdigest()[:32]

    def prepare(self, record: Version, recalled: bool = False) -> Path:
        """Fetch and try a version, unless that was done before; return its folder. Workers may call it at once.

        Raises RegistryError, TrialError, OSError, or ValueError when its contract is not valid. Files that failed their
        trial are removed, in case they were damaged here, and fetched again by the next call; not so when the version
        is `recalled` because the registry is away.
        """
        folder = self.folder(record)
        began = time.time()
        with self._lock(folder) as lock:
            if not _was_tried(folder):
                if os.fstat(lock.fileno()).st_mtime >= began and (failure := lock.read()):
                    raise TrialError(failure)  # in another worker, while this one waited
                try:
                    self._prepare(record, folder)
                except Exception as error:
                    is_damaged = isinstance(error, TrialError | ValueError) and not isinstance(error, TrialTimeoutError)
                    if is_damaged and not recalled:
                        shutil.rmtree(folder, ignore_errors=True)
                    lock.truncate(0)
                    lock.write(str(error))
                    raise
            with suppress(FileNotFoundError):
                os.utime(folder)  # the time of last use, for eviction
        return folder

    def discard(self, record: Version) -> None:
        """Remove a version's files, so that they are fetched again, in case they were damaged here."""
        folder = self.folder(record)
        with self._lock(folder):
            shutil.rmtree(folder, ignore_errors=True)

    def clean(self) -> None:
        """Remove the remains of killed downloads, as far as possible."""
        for remains in self._folder.glob("*.new"):
            with suppress(OSError), self._lock(remains.with_suffix(""), wait=False):
                shutil.rmtree(remains, ignore_errors=True)

    def remember(self, served: Iterable[Served], gone: Container[str]) -> None:
        """Write down the versions that are served, for a start without the registry.

        The entries of other models stay, except for those that are `gone` from the registry.
        """
        versions = {version.model: (version.record, version.metrics) for version in served}
        for record, metrics in self.recall():
            if record.model not in gone:
                versions.setdefault(record.model, (record, metrics))
        entries = [{"record": asdict(record), "metrics": metrics} for _, (record, metrics) in sorted(versions.items())]
        text = json.dumps(entries, indent=1)
        try:
            path = self._folder / "served.json"
            if path.exists() and path.read_text() == text:
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            new = self._folder / f"served.json.{os.getpid()}"
            new.write_text(text)
            new.replace(path)
        except OSError as error:  # it is needed only for a start without the registry
            log.error("cache not written", error=str(error))

    def recall(self) -> list[tuple[Version, dict[str, float]]]:
        """Return the versions that were served last, with their metrics; an empty list when that is not known."""
        try:
            entries = json.loads((self._folder / "served.json").read_text())
            return [(Version(**entry["record"]), dict(entry["metrics"])) for entry in entries]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def _prepare(self, record: Version, folder: Path) -> None:
        """Try a version's files; fetch them first if they are missing."""
        if not folder.exists():
            new = folder.with_suffix(".new")
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            try:
                trial.fetch(self._client, record, new, self._settings)
                new.rename(folder)
            finally:
                shutil.rmtree(new, ignore_errors=True)
            with suppress(OSError):  # another worker may remove the same files
                self._evict(folder)
        trial.run(folder, self._settings)
        (folder / TRIED).write_text(trial.environment())

    def _evict(self, new: Path) -> None:
        """Remove the least recently used versions until the rest is within the size limit."""
        kept = {new, *(self.folder(record) for record, _ in self.recall())}
        folders = [path for path in self._folder.iterdir() if VERSION_FOLDER.fullmatch(path.name)]
        sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in folders}
        total = sum(sizes.values())
        for path in sorted(folders, key=lambda path: path.stat().st_mtime):
            if total <= self._settings.model_cache_bytes:
                return
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)
                total -= sizes[path]

    @contextmanager
    def _lock(self, folder: Path, wait: bool = True) -> Iterator[IO[str]]:
        """Hold the lock of a version. Yield the lock's file, which holds the error of the last trial, if it failed.

        Raises BlockingIOError when the lock is taken and `wait` is false, and TrialError after a timeout.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + 4 * self._settings.model_load_seconds  # two files, a trial, and a margin
        with folder.with_suffix(".lock").open("a+") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not wait:
                        raise
                    if time.monotonic() > deadline:
                        raise TrialError("Another worker has been loading and trying it for too long.") from None
                time.sleep(LOCK_POLL_SECONDS)
            lock.seek(0)
            yield lock


def _was_tried(folder: Path) -> bool:
    """Return true when a version's files were tried with the libraries that would load them now."""
    try:
        return (folder / TRIED).read_text() == trial.environment()
    except OSError:
        return False
