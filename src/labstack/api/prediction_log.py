"""The thread in each worker that writes predictions and windows to our database, off the requests' path.

A database that stalls or is away holds up nobody: what waits is bounded, and what found no place is counted. Only where
the log is to be `durable` does a request wait, for the commit that holds its prediction, and fails without one.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence

import orjson
import structlog
from sqlalchemy import Engine

from labstack.api import metrics
from labstack.api.record import Record, outputs
from labstack.api.windows import Windows
from labstack.errors import LabError
from labstack.settings import Settings
from labstack.store import predictions, windows
from labstack.store.database import connect, migrate, writing

LINGER_SECONDS = 0.2  # one commit for all that came meanwhile; with the recorder's pause, what a killed worker loses
WINDOWS_SECONDS = 1.0
RETRY_SECONDS = 1.0
BUSY_SECONDS = 3.0  # of another writer, after which a stall is told
WAITING_ROWS = 10_000  # of the predictions that wait
BATCH_ROWS = 5_000  # of one transaction, for which the other workers wait

log = structlog.get_logger(__name__)


class NotKeptError(LabError):
    """A prediction that is to be kept before its answer is sent could not be."""


class Waiter:
    """A request that waits until its prediction is kept, or cannot be."""

    def __init__(self) -> None:
        self.settled = threading.Event()
        self.kept = False


class PredictionLog:
    def __init__(self, settings: Settings, counted: Windows) -> None:
        self._url = settings.lab_database_url
        self.mode = settings.prediction_log
        self._inputs = settings.log_inputs
        self._windows = counted
        self._engine: Engine | None = None
        self._waiting: deque[tuple[Record, Waiter | None]] = deque()
        self._rows = 0
        self._ready = threading.Condition()
        self._urgent = self._ended = self._told = False
        self._windows_due = 0.0
        self._thread = threading.Thread(target=self._run, name="prediction log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Write what waits, once more if the database is away, and end the thread."""
        with self._ready:
            self._ended = True
            self._ready.notify()
        self._thread.join(2 * BUSY_SECONDS + 1)

    def put(self, records: Sequence[Record]) -> None:
        """Hand over finished predictions; never waits."""
        if self.mode == "batched":
            with self._ready:
                dropped = sum(not self._wait(record, None) for record in records)
            metrics.dropped.labels("predictions").inc(dropped)

    def keep(self, record: Record) -> None:
        """Return when a prediction is committed. Raises NotKeptError when it could not be in time."""
        waiter = Waiter()
        with self._ready:
            if self._ended or not self._wait(record, waiter):
                raise self._refused()
            self._urgent = True
            self._ready.notify()
        if not waiter.settled.wait(2 * BUSY_SECONDS) or not waiter.kept:
            raise self._refused()

    def _wait(self, record: Record, waiter: Waiter | None) -> bool:
        """Have a prediction wait, if there is room: for any rows where nothing waits."""
        rows = len(record.matrix)
        if self._rows and self._rows + rows > WAITING_ROWS:
            return False
        self._rows += rows
        self._waiting.append((record, waiter))
        return True

    def _batch(self) -> list[tuple[Record, Waiter | None]]:
        """What waits, as much as one transaction writes."""
        batch, rows = [], 0
        while self._waiting and rows < BATCH_ROWS:
            batch.append(self._waiting.popleft())
            rows += len(batch[-1][0].matrix)
        return batch

    def _leave(self, batch: Sequence[tuple[Record, Waiter | None]]) -> None:
        """Note that predictions wait no more."""
        with self._ready:
            self._rows -= sum(len(record.matrix) for record, _ in batch)

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
        batch = self._batch()
        due = last or time.monotonic() >= self._windows_due
        counted = self._windows.take() if due else {}
        metrics.waiting.labels("predictions").set(len(self._waiting))
        if not (batch or counted):
            return True
        try:
            with writing(self._opened()) as session:
                if batch:
                    predictions.append(session, [self._row(record) for record, _ in batch])
                windows.put(session, list(counted.values()))
        except Exception as error:  # whatever it is, the next turn may go well
            self._lose(batch, last, error)
            self._windows.put_back(list(counted))
            if not last:
                with self._ready:
                    self._ready.wait_for(lambda: self._ended, RETRY_SECONDS)
            return False
        if due:
            self._windows_due = time.monotonic() + WINDOWS_SECONDS
        self._leave(batch)
        for _, waiter in batch:
            if waiter is not None:
                waiter.kept = True
                waiter.settled.set()
        metrics.kept.labels("predictions").inc(len(batch))
        self._tell(None)
        return True

    def _lose(self, batch: list[tuple[Record, Waiter | None]], last: bool, error: Exception) -> None:
        """Have what could not be written wait on, unless somebody waits for it or nobody comes back for it."""
        if self.mode == "durable":
            self._leave(batch)
            for _, waiter in batch:
                if waiter is not None:
                    waiter.settled.set()
        elif last:
            lost = len(batch) + len(self._waiting)
            self._waiting.clear()
            self._rows = 0
            metrics.dropped.labels("predictions").inc(lost)
            if lost:
                log.error("predictions lost", predictions=lost, error=str(error))
        else:
            self._waiting.extendleft(reversed(batch))
        self._tell(error)

    def _tell(self, error: Exception | None) -> None:
        """Log once that the database was lost, and once that it is back."""
        metrics.database.labels("lab").set(error is None)
        if error is not None and not self._told:
            log.error("predictions not kept", error=str(error))
        elif error is None and self._told:
            log.info("predictions kept again", dropped=int(sum(metrics.total(metrics.dropped).values())))
        self._told = error is not None

    def _opened(self) -> Engine:
        if self._engine is None:
            engine = connect(self._url, BUSY_SECONDS, durable=self.mode == "durable")
            migrate(engine)
            self._engine = engine
        return self._engine

    def _row(self, record: Record) -> predictions.Row:
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
