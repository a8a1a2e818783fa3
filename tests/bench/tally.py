"""What has run in this process: how many jobs, since when, and how late."""

from __future__ import annotations

import itertools
import time
from array import array


class Counter:
    """Counts from any thread, for a small cost and no memory."""

    def __init__(self) -> None:
        self._next = itertools.count()

    def count(self) -> None:
        next(self._next)  # atomic, which `+= 1` is not

    @property
    def num(self) -> int:
        # The only way to read it that does not count.
        return int(repr(self._next)[len("count(") : -1])


class Tally:
    """Called by the jobs of every side; safe from threads and tasks, and the same small cost for all."""

    def __init__(self) -> None:
        self.first_at: float | None = None
        """Monotonic, of the first job."""
        self.delays = array("d")
        """Seconds, in the order in which the jobs began."""
        self._ran = Counter()

    @property
    def num(self) -> int:
        return self._ran.num

    def count(self) -> None:
        if self.first_at is None:
            self.first_at = time.monotonic()
        self._ran.count()

    def count_late(self, sent_at: float) -> None:
        """Count a job that was sent at *sent_at* by the clock of this machine, which both ends read."""
        self.delays.append(time.time() - sent_at)
        self.count()
