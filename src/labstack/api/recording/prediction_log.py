"""The thread in each worker that writes predictions and windows to our database, off the requests' path.

A database that stalls or is away holds up nobody: what waits is bounded, and what found no place is counted. Only where
the log is to be `durable` does a request wait, for the commit that holds its prediction, and fails without one.

Each prediction is either kept or counted as dropped. The answer to a durable request says which; a refused one is not
in the database. When a failed commit may have reached the database, because the server fell silent or the file was
moved, its rows are in doubt: the next transaction that succeeds removes them first.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Sequence

import orjson
import structlog
from sqlalchemy import Engine

from labstack.api import metrics
from labstack.api.recording.counter import WindowCounter
from labstack.api.recording.finished import FinishedPrediction, outputs
from labstack.errors import LabError
from labstack.settings import Settings
from labstack.store import leases, predictions, windows
from labstack.store.database import connect, migrate, writing
from labstack.store.windows import Window

LINGER_SECONDS = 0.2  # one commit for all that came meanwhile; with the recorder's pause, what a killed worker loses
WINDOWS_SECONDS = 1.0
RETRY_SECONDS = 1.0
BUSY_SECONDS = 3.0  # of another writer, after which a stall is told
KEEP_SECONDS = 2 * BUSY_SECONDS  # that a durable prediction waits for its turn
COMMIT_SECONDS = 20.0  # that it then waits for the commit; the database's own deadlines are shorter
PROBE_SECONDS = 2.5  # without a write, after which one is tried
STALLED_SECONDS = 6.0  # of one write, after which the database counts as away
STOP_SECONDS = 9.0  # that the last write may take
WAITING_ROWS = 10_000  # of the predictions that wait
BATCH_ROWS = 5_000  # of one transaction, for which the other workers wait
PROBE = "probe"  # a lease that nobody holds, written to see whether anything can be

log = structlog.get_logger(__name__)


class NotKeptError(LabError):
    """A prediction that is to be kept before its answer is sent could not be."""


class Pending:
    """A prediction that is to be kept; a request may wait until it is `settled`, and `kept` or not."""

    def __init__(self, record: FinishedPrediction) -> None:
        self.record = record
        self.settled = threading.Event()
        self.claimed = self.kept = self.given_up = False

    @property
    def key(self) -> tuple[str, float]:
        """The key of its row: request id and time."""
        return self.record.request_id, self.record.at


class PredictionLog:
    def __init__(self, settings: Settings, counted: WindowCounter) -> None:
        self._url = settings.lab_database_url
        self.mode = settings.prediction_log
        self._inputs = settings.log_inputs
        self._windows = counted
        self._engine: Engine | None = None
        self._is_migrated = False
        self._waiting: deque[Pending] = deque()
        self._rows = 0
        self._doubtful: list[tuple[str, float]] = []
        self._fault: str | None = None
        self._began = math.inf  # the write that is under way
        self._tried = -math.inf
        self._ready = threading.Condition()
        self._urgent = self._ended = False
        self._windows_due = 0.0
        self._thread = threading.Thread(target=self._run, name="prediction log", daemon=True)

    @property
    def fault(self) -> str | None:
        """The reason why rows cannot be written now, as a sentence; None if they can.

        It is known within 10 seconds, also without requests.
        """
        stalled = time.monotonic() - self._began
        if stalled > STALLED_SECONDS:
            return f"Our database has not answered for {stalled:.0f} seconds."
        return self._fault

    def prepare(self) -> Engine:
        """Make an SQLite database's file if there is none yet; it connects nothing. Raises DatabaseError."""
        if self._engine is None:
            self._engine = connect(self._url, BUSY_SECONDS, durable=self.mode == "durable")
        return self._engine

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Write what waits, once more if the database is away, and end the thread."""
        with self._ready:
            self._ended = True
            self._ready.notify()
        self._thread.join(STOP_SECONDS)
        if self._thread.is_alive():
            self._lose([], last=True, error=NotKeptError("our database does not answer"))

    def put(self, records: Sequence[FinishedPrediction]) -> None:
        """Hand over finished predictions; never waits."""
        if self.mode == "batched":
            with self._ready:
                dropped = sum(not self._wait(Pending(record)) for record in records)
            metrics.dropped.labels("predictions").inc(dropped)

    def keep(self, record: FinishedPrediction) -> None:
        """Return when a prediction is committed. Raises NotKeptError when it is not, and will not be."""
        pending = Pending(record)
        with self._ready:
            if not self._wait(pending):
                raise self._refused()
            self._urgent = True
            self._ready.notify()
        if not pending.settled.wait(KEEP_SECONDS) and not self._withdraw(pending):
            pending.settled.wait(COMMIT_SECONDS)
        with self._ready:
            pending.given_up = not pending.kept
        if pending.given_up:
            raise self._refused()

    def _wait(self, pending: Pending) -> bool:
        """Have a prediction wait, if there is room: for any rows where nothing waits."""
        rows = len(pending.record.matrix)
        if self._ended or (self._rows and self._rows + rows > WAITING_ROWS):
            return False
        self._rows += rows
        self._waiting.append(pending)
        return True

    def _withdraw(self, pending: Pending) -> bool:
        """Take a prediction out of the queue unless its transaction has begun. Return whether it was taken out."""
        with self._ready:
            if not pending.claimed:
                self._waiting.remove(pending)
                self._rows -= len(pending.record.matrix)
            return not pending.claimed

    def _batch(self) -> list[Pending]:
        """What waits, as much as one transaction writes."""
        batch: list[Pending] = []
        rows = 0
        with self._ready:
            while self._waiting and rows < BATCH_ROWS:
                batch.append(self._waiting.popleft())
                batch[-1].claimed = True
                rows += len(batch[-1].record.matrix)
        return batch

    def _settle(self, batch: Sequence[Pending], kept: bool) -> None:
        """Mark predictions as kept or not and wake their requests; rows of requests that gave up become doubtful."""
        with self._ready:
            self._rows -= sum(len(pending.record.matrix) for pending in batch)
            for pending in batch:
                pending.kept = kept and not pending.given_up
                if kept and pending.given_up:
                    self._doubtful.append(pending.key)
                pending.settled.set()
        metrics.waiting.labels("predictions").set(len(self._waiting))
        metrics.kept.labels("predictions").inc(sum(pending.kept for pending in batch))

    def _refused(self) -> NotKeptError:
        metrics.dropped.labels("predictions").inc()
        return NotKeptError(
            "The prediction could not be kept in our database, and PREDICTION_LOG=durable says that none is given then."
        )

    def _run(self) -> None:
        ended = False
        while not ended:
            with self._ready:
                self._ready.wait_for(lambda: self._urgent or self._ended, LINGER_SECONDS)
                self._urgent, ended = False, self._ended
            while self._write(last=ended) and self._waiting:
                pass

    def _write(self, last: bool) -> bool:
        """Write what waits, at most a batch, and the windows if they are due; whether that went well."""
        batch, now = self._batch(), time.monotonic()
        due = last or now >= self._windows_due
        counted = self._windows.take() if due else {}
        metrics.waiting.labels("predictions").set(len(batch) + len(self._waiting))
        if not (batch or counted or self._doubtful) and (last or now < self._tried + PROBE_SECONDS):
            return True
        self._tried = now
        try:
            self._commit(batch, list(counted.values()))
        except Exception as error:  # whatever it is, the next turn may go well
            self._tell(error)
            self._lose(batch, last, error)
            self._windows.put_back(list(counted))
            if not last:
                with self._ready:
                    self._ready.wait_for(lambda: self._ended, RETRY_SECONDS)
            return False
        if due:
            self._windows_due = now + WINDOWS_SECONDS
        self._settle(batch, kept=True)
        self._tell(None)
        return True

    def _commit(self, batch: Sequence[Pending], counted: Sequence[Window]) -> None:
        """Write to our database, and if there is nothing to write try whether that could be."""
        self._began, commits = time.monotonic(), False
        try:
            engine = self._opened()
            if not (batch or counted or self._doubtful):
                leases.take(engine, PROBE, PROBE, 0)
                return
            with writing(engine) as session:
                if self._doubtful:
                    predictions.remove(session, self._doubtful)
                if batch:
                    predictions.append(session, [self._row(pending.record) for pending in batch])
                windows.put(session, counted)
                session.flush()
                commits = True
            self._doubtful = []
        except Exception:
            if commits:
                self._doubtful += [pending.key for pending in batch]
            self._is_migrated = False  # it may be another database by the next turn
            raise
        finally:
            self._began = math.inf

    def _lose(self, batch: list[Pending], last: bool, error: Exception) -> None:
        """Have what could not be written wait on, unless somebody waits for it or nobody comes back for it."""
        if not (last or self.mode == "durable"):
            with self._ready:
                self._waiting.extendleft(reversed(batch))
            return
        lost = list(batch)
        while last and (more := self._batch()):
            lost += more
        self._settle(lost, kept=False)
        if self.mode == "batched" and lost:
            metrics.dropped.labels("predictions").inc(len(lost))
            log.error("predictions lost", predictions=len(lost), error=str(error))

    def _tell(self, error: Exception | None) -> None:
        """Log once that the database was lost, and once that it is back."""
        metrics.database.labels("lab").set(error is None)
        if error is not None and self._fault is None:
            log.error("predictions not kept", error=str(error))
        elif error is None and self._fault is not None:
            log.info("predictions kept again", dropped=int(sum(metrics.total(metrics.dropped).values())))
        self._fault = None if error is None else str(error)

    def _opened(self) -> Engine:
        engine = self.prepare()
        if not self._is_migrated:
            migrate(engine)
            self._is_migrated = True
        return engine

    def _row(self, record: FinishedPrediction) -> predictions.Row:
        served = record.role.served
        return predictions.Row(
            record.at,
            record.request_id,
            served.model,
            served.version,
            record.role.name,
            record.latency_ms,
            orjson.dumps(served.plan.inputs(record.matrix)).decode() if self._inputs else None,
            orjson.dumps(outputs(record)).decode(),
        )
