"""The versions that were fetched, in a folder that outlives the process, and which of them were served last.

Who writes: the follower of each worker, and of each API that shares the folder. A version's files appear whole, by a
rename, and never change; who fetches or tries a version holds its lock, so that the others wait and find it done.
`served.json` is replaced whole, and the last writer wins.
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

TRIED = "tried"  # in a version's folder, what it was tried with
LOCK_POLL_SECONDS = 0.05
VERSION_FOLDER = re.compile(r"[0-9a-f]{32}")

log = structlog.get_logger(__name__)


class Cache:
    def __init__(self, settings: Settings, client: MlflowRest) -> None:
        self._settings = settings
        self._folder = settings.api_cache_dir
        self._client = client

    def folder(self, record: Version) -> Path:
        """Where a version's files are, or would be."""
        return self._folder / hashlib.sha256(record.source.encode()).hexdigest()[:32]

    def prepare(self, record: Version, recalled: bool = False) -> Path:
        """The folder of a version's files, fetched and tried, unless that was done before; workers may race for it.

        Raises RegistryError, TrialError, OSError, or ValueError when its contract is none. Files that failed their
        trial are fetched anew by the next call, in case they were damaged here, unless this one is `recalled` as the
        registry is away.
        """
        folder = self.folder(record)
        began = time.time()
        with self._lock(folder) as lock:
            if not _was_tried(folder):
                if os.fstat(lock.fileno()).st_mtime >= began and (failure := lock.read()):
                    raise TrialError(failure)  # of another worker, while this one waited
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
                os.utime(folder)  # used now
        return folder

    def discard(self, record: Version) -> None:
        """Have a version fetched anew next time, in case it is the cache that is damaged."""
        folder = self.folder(record)
        with self._lock(folder):
            shutil.rmtree(folder, ignore_errors=True)

    def clean(self) -> None:
        """Remove what killed downloads left behind; ignore what cannot be removed."""
        for new in self._folder.glob("*.new"):
            with suppress(OSError), self._lock(new.with_suffix(""), wait=False):
                shutil.rmtree(new, ignore_errors=True)

    def remember(self, served: Iterable[Served], gone: Container[str]) -> None:
        """Note the versions that are served now, for a start without the registry.

        What was noted of other models stays, but for those that are `gone` from the registry.
        """
        noted = {one.model: {"record": asdict(one.record), "metrics": one.metrics} for one in served}
        kept = {record.model: (record, metrics) for record, metrics in self.recall()}
        for model, (record, metrics) in kept.items():
            if model not in noted and model not in gone:
                noted[model] = {"record": asdict(record), "metrics": metrics}
        text = json.dumps([noted[model] for model in sorted(noted)], indent=1)
        try:
            path = self._folder / "served.json"
            if path.exists() and path.read_text() == text:
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            new = self._folder / f"served.json.{os.getpid()}"
            new.write_text(text)
            new.replace(path)
        except OSError as error:  # only a later start without the registry would miss it
            log.error("cache not written", error=str(error))

    def recall(self) -> list[tuple[Version, dict[str, float]]]:
        """The versions that were served last, with their metrics; none when nothing is known."""
        try:
            noted = json.loads((self._folder / "served.json").read_text())
            return [(Version(**entry["record"]), dict(entry["metrics"])) for entry in noted]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def _prepare(self, record: Version, folder: Path) -> None:
        """Fetch a version's files unless they are there, and try them."""
        if not folder.exists():
            new = folder.with_suffix(".new")
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            try:
                trial.fetch(self._client, record, new, self._settings)
                new.rename(folder)
            finally:
                shutil.rmtree(new, ignore_errors=True)
            with suppress(OSError):  # what another worker removes meanwhile is removed
                self._evict(folder)
        trial.run(folder, self._settings)
        (folder / TRIED).write_text(trial.environment())

    def _evict(self, new: Path) -> None:
        """Remove the versions that were not used for longest, until all that is kept has room."""
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
        """Hold the lock of a version. Yield the lock's file, which says why the last trial failed, if it did.

        Raises BlockingIOError where it need not wait, and TrialError when it waited longer than the work may take.
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
    """Whether a version's files were tried with what would load them now."""
    try:
        return (folder / TRIED).read_text() == trial.environment()
    except OSError:
        return False
