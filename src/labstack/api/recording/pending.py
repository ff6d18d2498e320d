"""The predictions of one worker that wait to be written to our database.

Requests' threads and the recorder's add to them; only the prediction log's thread takes them out.
"""

import threading
from collections import deque
from collections.abc import Sequence

from labstack.api.recording.finished import FinishedPrediction

WAITING_ROWS = 10_000
BATCH_ROWS = 5_000  # of one transaction, for which the other workers wait


class Pending:
    """A prediction that is to be kept; its request may wait until it is `settled`, and `kept` or not."""

    def __init__(self, record: FinishedPrediction) -> None:
        self.record = record
        self.settled = threading.Event()
        self.claimed = self.kept = self.given_up = False

    @property
    def key(self) -> tuple[str, float]:
        """The key of its row: request id and time."""
        return self.record.request_id, self.record.at

    @property
    def rows(self) -> int:
        return len(self.record.matrix)


class PendingQueue:
    """A bounded queue of predictions. Its methods are thread-safe."""

    def __init__(self) -> None:
        self._waiting: deque[Pending] = deque()
        self._rows = 0  # of those that wait and those that are being written
        self._wake = threading.Condition()
        self._urgent = self._ended = False

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, predictions: Sequence[Pending], urgent: bool = False) -> int:
        """Add predictions while there is room, and wake the writer if it is urgent. Return how many had no room.

        An empty queue takes a prediction with any number of rows.
        """
        with self._wake:
            dropped = sum(not self._append(pending) for pending in predictions)
            if urgent and dropped < len(predictions):
                self._urgent = True
                self._wake.notify()
        return dropped

    def _append(self, pending: Pending) -> bool:
        if self._ended or (self._rows and self._rows + pending.rows > WAITING_ROWS):
            return False
        self._rows += pending.rows
        self._waiting.append(pending)
        return True

    def withdraw(self, pending: Pending) -> bool:
        """Take a prediction out of the queue unless its transaction has begun. Return whether it was taken out."""
        with self._wake:
            if not pending.claimed:
                self._waiting.remove(pending)
                self._rows -= pending.rows
            return not pending.claimed

    def give_up(self, pending: Pending) -> bool:
        """Stop waiting for a prediction unless it is kept. Return whether it was given up."""
        with self._wake:
            pending.given_up = not pending.kept
            return pending.given_up

    def take_batch(self) -> list[Pending]:
        """Take out the oldest predictions, as many as one transaction writes."""
        batch: list[Pending] = []
        rows = 0
        with self._wake:
            while self._waiting and rows < BATCH_ROWS:
                pending = self._waiting.popleft()
                pending.claimed = True
                batch.append(pending)
                rows += pending.rows
        return batch

    def put_back(self, batch: Sequence[Pending]) -> None:
        """Put a batch that could not be written in front again."""
        with self._wake:
            self._waiting.extendleft(reversed(batch))

    def settle(self, batch: Sequence[Pending], kept: bool) -> list[Pending]:
        """Mark predictions as kept or not, and wake their requests. Return those kept whose requests had given up."""
        with self._wake:
            self._rows -= sum(pending.rows for pending in batch)
            for pending in batch:
                pending.kept = kept and not pending.given_up
                pending.settled.set()
            return [pending for pending in batch if kept and pending.given_up]

    def wait(self, seconds: float) -> bool:
        """Wait until something urgent is added or the queue ends, at most so long. Return whether it ended."""
        with self._wake:
            self._wake.wait_for(lambda: self._urgent or self._ended, seconds)
            self._urgent = False
            return self._ended

    def wait_for_end(self, seconds: float) -> None:
        """Wait until the queue ends, at most so long."""
        with self._wake:
            self._wake.wait_for(lambda: self._ended, seconds)

    def end(self) -> None:
        """Refuse further predictions, and wake the writer."""
        with self._wake:
            self._ended = True
            self._wake.notify()
