"""A connection to PostgreSQL that does not wait for ever for a server that holds it open and says nothing.

No setting of the server or of TCP bounds that: a server that is paused executes no time-out of its own, while the
kernel below it acknowledges all that is sent.
"""

import math
import time
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen

T = TypeVar("T")


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that closes and raises psycopg.OperationalError when the server is silent for `silence_seconds`."""

    silence_seconds = math.inf

    def wait(self, gen: PQGen[T], interval: float = 0.1) -> T:
        """Run one of the driver's generators, which is told of silence after each interval."""
        return super().wait(self._bounded(gen), interval)

    def _bounded(self, gen: PQGen[T]) -> PQGen[T]:
        heard = time.monotonic()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if ready:
                    heard = time.monotonic()
                elif time.monotonic() - heard > self.silence_seconds:
                    self.close()
                    raise psycopg.OperationalError(f"no answer from the server for {self.silence_seconds:g} seconds")
                wanted = gen.send(ready)
        except StopIteration as ended:
            value: T = ended.value
            return value
