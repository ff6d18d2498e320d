"""The thread in each worker that writes predictions and windows to our database, off the requests' path.

A slow or unreachable database delays no request: the queue is bounded, and what does not fit is counted as dropped.
Only a `durable` log makes a request wait for the commit that holds its prediction; without that commit the request
fails.

Each prediction is either kept or counted as dropped. The answer to a durable request says which; a refused one is not
in the database. When a failed commit may have reached the database, because the server became silent or the file was
moved, its rows are in doubt: the next transaction that succeeds removes them first.
"""

import math
import threading
import time
from collections.abc import Sequence

import orjson
import structlog
from sqlalchemy import Engine

from labstack.api import metrics
from labstack.api.recording.counter import WindowCounter
from labstack.api.recording.finished import FinishedPrediction, outputs
from labstack.api.recording.pending import Pending, PendingQueue
from labstack.errors import LabError
from labstack.settings import Settings
from labstack.store import leases, predictions, windows
from labstack.store.database import connect, migrate, writing
from labstack.store.windows import Window

LINGER_SECONDS = 0.2  # between commits; with the recorder's pause, what a killed worker loses
WINDOWS_SECONDS = 1.0  # between two writes of the windows
RETRY_SECONDS = 1.0
BUSY_SECONDS = 3.0  # for another writer's lock, after which the write fails
KEEP_SECONDS = 2 * BUSY_SECONDS  # that a durable prediction waits in the queue
COMMIT_SECONDS = 20.0  # that it then waits for the commit; the database's own deadlines are shorter
PROBE_SECONDS = 2.5  # without a write, after which a probe is written
STALLED_SECONDS = 6.0  # of one write, after which the database counts as unreachable
STOP_SECONDS = 9.0  # for the last write
PROBE = "probe"  # a lease without a holder, written to see whether the database takes writes

log = structlog.get_logger(__name__)


class NotKeptError(LabError):
    """A prediction that must be kept before its answer is sent could not be kept."""


class PredictionLog:
    def __init__(self, settings: Settings, counter: WindowCounter) -> None:
        self._url = settings.lab_database_url
        self.mode = settings.prediction_log
        self._inputs = settings.log_inputs
        self._counter = counter
        self._engine: Engine | None = None
        self._is_migrated = False
        self._queue = PendingQueue()
        self._doubtful: list[tuple[str, float]] = []  # keys of rows that must not be in the database
        self._fault: str | None = None
        self._write_began = math.inf  # of the write that is under way
        self._tried_at = -math.inf
        self._windows_due = 0.0
        self._thread = threading.Thread(target=self._run, name="prediction log", daemon=True)

    @property
    def fault(self) -> str | None:
        """The reason why rows cannot be written now, as a sentence; None if they can.

        It is known within 10 seconds, also without requests.
        """
        stalled = time.monotonic() - self._write_began
        if stalled > STALLED_SECONDS:
            return f"Our database has not answered for {stalled:.0f} seconds."
        return self._fault

    def prepare(self) -> Engine:
        """Return the engine, which connects later; makes an SQLite file if there is none. Raises DatabaseError."""
        if self._engine is None:
            self._engine = connect(self._url, BUSY_SECONDS, durable=self.mode == "durable")
        return self._engine

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Write the rest, with one more try if the database is unreachable, and end the thread."""
        self._queue.end()
        self._thread.join(STOP_SECONDS)
        if self._thread.is_alive():
            self._lose([], last=True, error=NotKeptError("our database does not answer"))

    def put(self, records: Sequence[FinishedPrediction]) -> None:
        """Hand over finished predictions; never waits."""
        if self.mode == "batched":
            dropped = self._queue.add([Pending(record) for record in records])
            metrics.dropped.labels("predictions").inc(dropped)

    def keep(self, record: FinishedPrediction) -> None:
        """Return when a prediction is committed. Raises NotKeptError when it is not, and will not be."""
        pending = Pending(record)
        if self._queue.add([pending], urgent=True):
            raise _refused()
        if not pending.settled.wait(KEEP_SECONDS) and not self._queue.withdraw(pending):
            pending.settled.wait(COMMIT_SECONDS)
        if self._queue.give_up(pending):
            raise _refused()

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._queue.wait(LINGER_SECONDS)
            while self._write(is_last) and self._queue:
                pass

    def _write(self, is_last: bool) -> bool:
        """Write at most one batch, and the windows if they are due. Return whether that succeeded."""
        batch, now = self._queue.take_batch(), time.monotonic()
        is_due = is_last or now >= self._windows_due
        changed = self._counter.take() if is_due else {}
        metrics.waiting.labels("predictions").set(len(batch) + len(self._queue))
        if not (batch or changed or self._doubtful) and (is_last or now < self._tried_at + PROBE_SECONDS):
            return True
        self._tried_at = now
        try:
            self._commit(batch, list(changed.values()))
        except Exception as error:  # whatever the error, the next try may succeed
            self._report(error)
            self._lose(batch, is_last, error)
            self._counter.put_back(list(changed))
            if not is_last:
                self._queue.wait_for_end(RETRY_SECONDS)
            return False
        if is_due:
            self._windows_due = now + WINDOWS_SECONDS
        self._settle(batch, kept=True)
        self._report(None)
        return True

    def _commit(self, batch: Sequence[Pending], changed: Sequence[Window]) -> None:
        """Write predictions and windows, or a probe if there are none, in one transaction."""
        self._write_began, is_in_doubt = time.monotonic(), False
        try:
            engine = self._opened()
            if not (batch or changed or self._doubtful):
                leases.take(engine, PROBE, PROBE, 0)
                return
            with writing(engine) as session:
                if self._doubtful:
                    predictions.remove(session, self._doubtful)
                if batch:
                    predictions.append(session, [self._row(pending.record) for pending in batch])
                windows.put(session, changed)
                session.flush()
                is_in_doubt = True  # from here on the commit may reach the database although it fails
            self._doubtful = []
        except Exception:
            if is_in_doubt:
                self._doubtful += [pending.key for pending in batch]
            self._is_migrated = False  # the next try may meet another database
            raise
        finally:
            self._write_began = math.inf

    def _settle(self, batch: Sequence[Pending], kept: bool) -> None:
        """Tell requests whether their predictions are kept; rows of requests that gave up become doubtful."""
        self._doubtful += [pending.key for pending in self._queue.settle(batch, kept)]
        metrics.waiting.labels("predictions").set(len(self._queue))
        metrics.kept.labels("predictions").inc(sum(pending.kept for pending in batch))

    def _lose(self, batch: list[Pending], last: bool, error: Exception) -> None:
        """Put a batch back that could not be written; drop it if its requests wait, or after the last try."""
        if not (last or self.mode == "durable"):
            self._queue.put_back(batch)
            return
        lost = list(batch)
        while last and (more := self._queue.take_batch()):
            lost += more
        self._settle(lost, kept=False)
        if self.mode == "batched" and lost:
            metrics.dropped.labels("predictions").inc(len(lost))
            log.error("predictions lost", predictions=len(lost), error=str(error))

    def _report(self, error: Exception | None) -> None:
        """Log once when the database is lost, and once when it is back."""
        metrics.database.labels("lab").set(error is None)
        if error is not None and self._fault is None:
            log.error("predictions not kept", error=str(error))
        elif error is None and self._fault is not None:
            log.info("predictions kept again", dropped=int(sum(metrics.total(metrics.dropped).values())))
        self._fault = None if error is None else str(error)

    def _opened(self) -> Engine:
        """Return the engine of a database with all migrations. Raises DatabaseError."""
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


def _refused() -> NotKeptError:
    """Count a prediction as dropped, and return the error that its request fails with."""
    metrics.dropped.labels("predictions").inc()
    return NotKeptError(
        "The prediction could not be kept in our database, so PREDICTION_LOG=durable gives no answer. Try again."
    )
