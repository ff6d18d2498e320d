"""The versions that were fetched, in a folder that outlives the process, and which of them were served last.

Who writes: the follower of each worker, and of each API that shares the folder. A version's files appear whole, by a
rename, and never change; `served.json` is replaced whole, and the last writer wins.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import structlog

from labstack import serialization
from labstack.api.serving.lineup import Served
from labstack.contract import FILE_NAME, ONNX_FILE_NAME, Contract
from labstack.mlflow_rest import MlflowRest, Version

log = structlog.get_logger(__name__)


class Cache:
    def __init__(self, folder: Path, client: MlflowRest) -> None:
        self._folder = folder
        self._client = client
        self._remembered = ""

    def folder(self, record: Version) -> Path:
        """Where a version's files are, or would be."""
        return self._folder / hashlib.sha256(record.source.encode()).hexdigest()[:32]

    def fetch(self, record: Version) -> Path:
        """The folder of a version's files, complete or not there at all; workers may race for it.

        Raises RegistryError, OSError, or ValueError when its contract is none.
        """
        folder = self.folder(record)
        if folder.exists():
            return folder
        self._folder.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=self._folder))
        files = new / "files"  # unlike its parent, which is this user's alone, of the umask's mode
        files.mkdir()
        try:
            self._client.download(record.model, record.number, FILE_NAME, files)
            estimator = ONNX_FILE_NAME if Contract.read(files).onnx else serialization.FILE_NAME
            self._client.download(record.model, record.number, estimator, files)
            files.rename(folder)
        except OSError:
            if not folder.exists():  # else another worker was quicker
                raise
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return folder

    def discard(self, record: Version) -> None:
        """Have a version fetched anew next time, in case it is the cache that is damaged."""
        shutil.rmtree(self.folder(record), ignore_errors=True)

    def remember(self, served: Iterable[Served]) -> None:
        """Note the versions that are served now, for a start without the registry."""
        noted = [{"record": asdict(one.record), "metrics": one.metrics} for one in served]
        text = json.dumps(noted, indent=1)
        if text == self._remembered:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            new = self._folder / f"served.json.{os.getpid()}"
            new.write_text(text)
            new.replace(self._folder / "served.json")
            self._remembered = text
        except OSError as error:  # only a later start without the registry would miss it
            log.error("cache not written", error=str(error))

    def recall(self) -> list[tuple[Version, dict[str, float]]]:
        """The versions that were served last, with their metrics; none when nothing is known."""
        try:
            noted = json.loads((self._folder / "served.json").read_text())
            return [(Version(**one["record"]), dict(one["metrics"])) for one in noted]
        except (OSError, ValueError, KeyError, TypeError):
            return []
