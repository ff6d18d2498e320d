"""The control folder: the state that gunicorn's workers share on disk.

It is in the API's data folder, next to those of other APIs that share it. The processes of an API hold a lock on
`alive` as long as any of them runs; when an API starts, it removes the folders of APIs that ended. Its files:

- `desired`: the generation, a counter that a reload increments under the lock of `lock`.
- `worker-<pid>.json`: the state of a worker, with the generation that its lineups are true for. Only that worker writes
  it; the arbiter removes it when the worker has ended.
- `metrics/`: the counts of prometheus_client, each file written by one worker.
- `deliveries/`: an empty file for each webhook that arrived, made by the worker that was first.
- `wrong-tokens`: counters of wrong operators' tokens, written under a lock on the file itself.

`desired` and the workers' files are replaced whole, so that readers never see half of one.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from labstack.errors import LabError

REGISTRY = ""  # the key, among errors by model, of an error that concerns all models
COUNTERS = 4096  # of wrong tokens
COUNTER = struct.Struct("=dd")  # the start of its period, by time.monotonic, and the count since then
STARTING = -1  # the generation of a worker that has not asked the registry yet


class ControlError(LabError):
    """The control folder cannot be written."""


@dataclass(frozen=True)
class WorkerState:
    """One worker's lineups, as versions by model and role, and its errors, by model or REGISTRY.

    `contact` is the time of the registry's last answer, in seconds since 1970.
    """

    pid: int
    generation: int
    roles: Mapping[str, Mapping[str, int]]
    errors: Mapping[str, str] = field(default_factory=dict)
    contact: float | None = None


class Control:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics = folder / "metrics"
        self._desired = folder / "desired"
        self._alive: int | None = None  # the descriptor that holds the lock

    def reset(self) -> None:
        """Make an empty folder, and remove those of APIs that ended. Called once, in the arbiter.

        Exits when the folder cannot be made.
        """
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with (self.folder.parent / "lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # so that no other API sees the folder before `alive` is locked
                for folder in self.folder.parent.iterdir():
                    if folder.is_dir() and not _is_alive(folder):
                        shutil.rmtree(folder, ignore_errors=True)
                self.folder.mkdir()
                self._alive = os.open(self.folder / "alive", os.O_CREAT | os.O_RDWR, 0o666)
                fcntl.flock(self._alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.metrics.mkdir()
        except OSError as error:
            sys.exit(f"The folder {self.folder} cannot be made: {error.strerror}. API_CACHE_DIR names another place.")

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._alive is not None:
            os.close(self._alive)
            self._alive = None

    def desired(self) -> int:
        """The generation that every worker must reach."""
        try:
            return int(self._desired.read_text())
        except FileNotFoundError:
            return 0

    def raise_desired(self) -> int:
        """Ask every worker to look at the registry again; return the generation to wait for. Raises ControlError."""
        with self._written(), (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # above the workers' generations too, in case the file of the counter was removed
            generation = 1 + max(self.desired(), *(state.generation for state in self.states()), 0)
            self._replace(self._desired, str(generation))
        return generation

    def first(self, delivery: str, seconds: float) -> bool:
        """Return true when a delivery's id is new; ids are kept for twice these seconds.

        Raises ControlError.
        """
        folder = self.folder / "deliveries"
        with self._written():
            folder.mkdir(exist_ok=True)
            for path in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):  # another worker removed it first
                    if path.stat().st_mtime < time.time() - 2 * seconds:
                        path.unlink()
            try:
                (folder / hashlib.sha256(delivery.encode()).hexdigest()).touch(exist_ok=False)
            except FileExistsError:
                return False
        return True

    def count_wrong_token(self, network: bytes, period_seconds: float) -> tuple[int, float]:
        """Count a wrong token from a network; return the count of its period, and the seconds until the period ends.

        The number of counters is fixed: networks that share one are counted together. Raises OSError.
        """
        self.folder.mkdir(mode=0o700, exist_ok=True)
        digest = hashlib.blake2b(network, digest_size=8).digest()
        offset = int.from_bytes(digest, "big") % COUNTERS * COUNTER.size
        descriptor = os.open(self.folder / "wrong-tokens", os.O_RDWR | os.O_CREAT, 0o600)
        with open(descriptor, "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            now = time.monotonic()
            began, count = COUNTER.unpack(os.pread(descriptor, COUNTER.size, offset).ljust(COUNTER.size, b"\0"))
            if now - began >= period_seconds:
                began, count = now, 0
            os.pwrite(descriptor, COUNTER.pack(began, count + 1), offset)
        return int(count) + 1, began + period_seconds - now

    def report(self, state: WorkerState) -> None:
        """Write this worker's state. Raises ControlError."""
        with self._written():
            self._replace(self._path(state.pid), json.dumps(asdict(state)))

    def forget(self, pid: int) -> None:
        """Remove the state of a worker that ended."""
        with contextlib.suppress(OSError):  # an error would end the arbiter
            self._path(pid).unlink()

    def states(self) -> list[WorkerState]:
        """Return the states of all workers, in the order of process ids."""
        states = []
        for path in self.folder.glob("worker-*.json"):
            try:
                fields = json.loads(path.read_text())
            except FileNotFoundError:  # its worker ended just now
                continue
            states.append(WorkerState(**fields))
        return sorted(states, key=lambda state: state.pid)

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Write to the folder in this context; make it again if it was removed. Raises ControlError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            text = f"The workers cannot share their state, because {self.folder} cannot be written: {error.strerror}."
            raise ControlError(f"{text} Make room on its disk, or let the API write there.") from error

    def _path(self, pid: int) -> Path:
        return self.folder / f"worker-{pid}.json"

    @staticmethod
    def _replace(path: Path, text: str) -> None:
        new = path.with_name(f".{path.name}-{os.getpid()}")
        new.write_text(text)
        new.replace(path)


def _is_alive(folder: Path) -> bool:
    """Return true when the API of a control folder runs, or belongs to another user."""
    try:
        with (folder / "alive").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
