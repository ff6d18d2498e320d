"""A connection to PostgreSQL with a timeout for a server that keeps it open but does not answer.

No setting of the server or of TCP covers that: a paused server executes none of its timeouts, while its kernel still
acknowledges all packets.
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
        """Run one of the driver's generators, with a check of the silence after each interval."""
        return super().wait(self._bounded(gen), interval)

    def _bounded(self, gen: PQGen[T]) -> PQGen[T]:
        answered_at = time.monotonic()
        try:
            wait_for = next(gen)
            while True:
                ready = yield wait_for
                if ready:
                    answered_at = time.monotonic()
                elif time.monotonic() - answered_at > self.silence_seconds:
                    self.close()
                    raise psycopg.OperationalError(f"no answer from the server for {self.silence_seconds:g} seconds")
                wait_for = gen.send(ready)
        except StopIteration as ended:
            value: T = ended.value
            return value
