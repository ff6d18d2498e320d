"""The control folder: the one thing that gunicorn's workers share.

It lies where the API's data is, beside those of other APIs that share this place. The processes of an API hold a lock
on `alive` for as long as any of them runs; the folder of one that is gone is removed when another starts.

`desired` holds a generation, a counter that a reload raises; whoever raises it holds a lock on `lock`. `metrics` holds
what workers count, in files of prometheus_client, each written by one worker; and `deliveries` the ids of webhooks that
came, each a file, made by the worker that was first. `wrong-tokens` counts what was tried for the operators' token; who
counts holds a lock on it. Each worker
writes `worker-<pid>.json`, nobody else does: the generation that its lineups are true for. The arbiter removes the
file of a worker that is gone. Files are replaced whole, so that readers never see half of one.
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

REGISTRY = ""  # where errors are by model, what keeps a worker from following all of them
COUNTERS = 4096  # of wrong tokens
COUNTER = struct.Struct("=dd")  # the moment of `time.monotonic` at which its period began, and the count since
STARTING = -1  # the generation of a worker that has not asked the registry yet


class ControlError(LabError):
    """The control folder cannot be written."""


@dataclass(frozen=True)
class WorkerState:
    """One worker's lineups, as versions by model and role, and what kept it from following, by model or REGISTRY.

    `contact` is when the registry last answered it, in seconds since 1970.
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
        """Make the folder, empty, and remove those of APIs that are gone. Called once, in the arbiter.

        Exits when it cannot be made.
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
        """Take the folder away."""
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
        """Ask every worker to look at the registry again; the generation to wait for. Raises ControlError."""
        with self._written(), (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # also beyond what workers have reached, should the counter have been removed
            generation = 1 + max(self.desired(), *(state.generation for state in self.states()), 0)
            self._replace(self._desired, str(generation))
        return generation

    def first(self, delivery: str, seconds: float) -> bool:
        """Whether a delivery, by its id, comes for the first time; forgotten after twice these seconds.

        Raises ControlError.
        """
        folder = self.folder / "deliveries"
        with self._written():
            folder.mkdir(exist_ok=True)
            for path in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):  # another worker was quicker
                    if path.stat().st_mtime < time.time() - 2 * seconds:
                        path.unlink()
            try:
                (folder / hashlib.sha256(delivery.encode()).hexdigest()).touch(exist_ok=False)
            except FileExistsError:
                return False
        return True

    def count_wrong_token(self, network: bytes, period_seconds: float) -> tuple[int, float]:
        """Count a wrong token from a network: how many came from there in its period, and for how long that lasts.

        However many networks there are, they share the counters; those that share one are counted together. Raises
        OSError.
        """
        self.folder.mkdir(mode=0o700, exist_ok=True)
        digest = hashlib.blake2b(network, digest_size=8).digest()
        place = int.from_bytes(digest, "big") % COUNTERS * COUNTER.size
        descriptor = os.open(self.folder / "wrong-tokens", os.O_RDWR | os.O_CREAT, 0o600)
        with open(descriptor, "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            now = time.monotonic()
            began, count = COUNTER.unpack(os.pread(descriptor, COUNTER.size, place).ljust(COUNTER.size, b"\0"))
            if now - began >= period_seconds:
                began, count = now, 0
            os.pwrite(descriptor, COUNTER.pack(began, count + 1), place)
        return int(count) + 1, began + period_seconds - now

    def report(self, state: WorkerState) -> None:
        """Write this worker's state. Raises ControlError."""
        with self._written():
            self._replace(self._path(state.pid), json.dumps(asdict(state)))

    def forget(self, pid: int) -> None:
        """Remove the state of a worker that is gone."""
        with contextlib.suppress(OSError):  # else the arbiter would end
            self._path(pid).unlink()

    def states(self) -> list[WorkerState]:
        """The states of all workers, by process id."""
        states = []
        for path in self.folder.glob("worker-*.json"):
            try:
                fields = json.loads(path.read_text())
            except FileNotFoundError:  # its worker went just now
                continue
            states.append(WorkerState(**fields))
        return sorted(states, key=lambda state: state.pid)

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Write to the folder, which is made when somebody removed it. Raises ControlError."""
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
    """Whether the API of a control folder runs, or is another user's."""
    try:
        with (folder / "alive").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
