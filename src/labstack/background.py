"""Work in a background thread, for which its callers never wait."""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

LINGER_SECONDS = 0.02  # under load the thread wakes once for many things, not for each
BATCH = 1000


class Background(Generic[T]):
    """A thread that calls `do` with the things put into its queue, in order and in batches.

    When `limit` things are waiting already, a new one is dropped, and `dropped` is called for it.
    """

    def __init__(self, name: str, do: Callable[[list[T]], None], dropped: Callable[[], None], limit: int) -> None:
        self._do, self._dropped, self._limit = do, dropped, limit
        self._ending = threading.Event()
        self._queue: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float = 10) -> None:
        """End the thread when its queue is done, or after so many seconds."""
        self._queue.put(None)
        self._ending.set()
        self._thread.join(seconds)

    @property
    def waiting(self) -> int:
        """The number of things that wait."""
        return self._queue.qsize()

    def put(self, thing: T) -> None:
        """Queue a thing, without waiting. With several callers at once, a few more than the limit may be queued."""
        if self._queue.qsize() >= self._limit:
            self._dropped()
        else:
            self._queue.put(thing)

    def _run(self) -> None:
        ended = False
        while not ended:
            things = [self._queue.get()]
            self._ending.wait(LINGER_SECONDS)
            with contextlib.suppress(queue.Empty):
                while len(things) < BATCH:
                    things.append(self._queue.get_nowait())
            batch = [thing for thing in things if thing is not None]
            ended = len(batch) < len(things)
            try:
                if batch:
                    self._do(batch)
            except Exception:  # the next batch may succeed
                logging.getLogger(__name__).exception("not done")
