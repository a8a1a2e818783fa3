"""What has run in this process: how many jobs, since when, and how late."""

from __future__ import annotations

import time


class Tally:
    """Called by the jobs of every side; safe from threads and tasks, and the same small cost for all."""

    def __init__(self) -> None:
        self.first_at: float | None = None
        """Monotonic, of the first job."""
        self.delays: list[float] = []
        self._ran: list[None] = []

    @property
    def num(self) -> int:
        return len(self._ran)

    def count(self) -> None:
        if self.first_at is None:
            self.first_at = time.monotonic()
        self._ran.append(None)  # atomic, which `+= 1` is not

    def count_late(self, sent_at: float) -> None:
        """Count a job that was sent at *sent_at* by the clock of this machine, which both ends read."""
        self.delays.append(time.time() - sent_at)
        self.count()
