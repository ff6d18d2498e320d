"""Statistics of the rows that a version predicted last, for the log lines of its predictions."""

import math
import time

import numpy as np
import orjson

from labstack.model.contract import Contract, Matrix

WINDOW_ROWS = 1_000
WINDOW_SECONDS = 1.0  # greatest age of the statistics in a log line


class RecentRows:
    """The last rows that a version predicted: mean and standard deviation of each numeric feature."""

    def __init__(self, contract: Contract) -> None:
        self._columns = {f.name: number for number, f in enumerate(contract.features) if not f.categories}
        self._rows = np.full((WINDOW_ROWS, len(contract.features)), np.nan)
        self._next = 0
        self._computed_at = -math.inf
        self._stats = orjson.Fragment(b"{}")

    def add(self, matrix: Matrix) -> None:
        """Add rows in the place of the oldest ones; of shape (rows, features)."""
        rows = matrix[-WINDOW_ROWS:]
        end = self._next + len(rows)
        if end <= WINDOW_ROWS:
            self._rows[self._next : end] = rows
        else:
            self._rows[np.arange(self._next, end) % WINDOW_ROWS] = rows
        self._next = end % WINDOW_ROWS

    @property
    def stats(self) -> orjson.Fragment:
        """`{feature: {mean, std}}` as JSON, at most a second old; null where no row holds a value."""
        now = time.monotonic()
        if now - self._computed_at > WINDOW_SECONDS:
            values = np.ma.masked_invalid(self._rows)
            mean, std = values.mean(axis=0).filled(np.nan).tolist(), values.std(axis=0).filled(np.nan).tolist()
            stats = {name: {"mean": mean[column], "std": std[column]} for name, column in self._columns.items()}
            self._stats, self._computed_at = orjson.Fragment(orjson.dumps(stats)), now
        return self._stats
