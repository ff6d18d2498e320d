"""The control folder: the one thing that gunicorn's workers share.

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
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

REGISTRY = ""  # where errors are by model, what keeps a worker from following all of them
COUNTERS = 4096  # of wrong tokens
COUNTER = struct.Struct("=dd")  # the moment of `time.monotonic` at which its period began, and the count since
STARTING = -1  # the generation of a worker that has not asked the registry yet


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

    def reset(self) -> None:
        """Begin with an empty folder. Called once, when the port is ours and so the folder, which is named after it."""
        self.remove()
        try:
            self.folder.mkdir(mode=0o700)
        except FileExistsError:
            sys.exit(f"{self.folder} is there and cannot be removed: is it another user's? TMPDIR names another place.")
        self.metrics.mkdir(mode=0o700)

    def remove(self) -> None:
        """Take the folder away."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def desired(self) -> int:
        """The generation that every worker must reach."""
        try:
            return int(self._desired.read_text())
        except FileNotFoundError:
            return 0

    def raise_desired(self) -> int:
        """Ask every worker to look at the registry again; the generation to wait for."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # also beyond what workers have reached, should a cleaner of temporary files have taken the counter
            generation = 1 + max(self.desired(), *(state.generation for state in self.states()), 0)
            self._replace(self._desired, str(generation))
        return generation

    def first(self, delivery: str, seconds: float) -> bool:
        """Whether a delivery, by its id, comes for the first time; forgotten after twice these seconds."""
        folder = self.folder / "deliveries"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
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
        """Write this worker's state."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self._replace(self._path(state.pid), json.dumps(asdict(state)))

    def forget(self, pid: int) -> None:
        """Remove the state of a worker that is gone."""
        self._path(pid).unlink(missing_ok=True)

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

    def _path(self, pid: int) -> Path:
        return self.folder / f"worker-{pid}.json"

    @staticmethod
    def _replace(path: Path, text: str) -> None:
        new = path.with_name(f".{path.name}-{os.getpid()}")
        new.write_text(text)
        new.replace(path)
