"""Work that is done beside its callers, who never wait for it."""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

LINGER_SECONDS = 0.02  # under load one change of threads for many things, and not for each
BATCH = 1000


class Background(Generic[T]):
    """A thread that does what it is handed, in order and as many at once as came within a moment.

    What comes when `limit` things wait already is dropped, and `dropped` is called for each.
    """

    def __init__(self, name: str, do: Callable[[list[T]], None], dropped: Callable[[], None], limit: int) -> None:
        self._do, self._dropped, self._limit = do, dropped, limit
        self._ending = threading.Event()
        self._queue: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float = 10) -> None:
        """End the thread when all that it was handed is done, or after so long."""
        self._queue.put(None)
        self._ending.set()
        self._thread.join(seconds)

    @property
    def waiting(self) -> int:
        """How many things wait."""
        return self._queue.qsize()

    def put(self, thing: T) -> None:
        """Hand over a thing; never waits. With several callers at once a few more than the limit may wait."""
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
            found = [thing for thing in things if thing is not None]
            ended = len(found) < len(things)
            try:
                if found:
                    self._do(found)
            except Exception:  # the next ones may be done
                logging.getLogger(__name__).exception("not done")
