"""Snoozing: a job that puts itself off."""

from __future__ import annotations

from datetime import timedelta

from worker.errors import ArgumentError


class Snooze(Exception):
    """
    Raised by a job that should run later instead of now, as if this run had not been: it costs no attempt.

    What the run has written on its connection is rolled back, its sends with it.

    Args:
        seconds: Until it is due again; or a timedelta.
    """

    def __init__(self, seconds: float | timedelta) -> None:
        pause = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
        if isinstance(pause, bool) or not isinstance(pause, int | float) or not 0 <= pause < float("inf"):
            raise ArgumentError(f"Snooze({seconds!r}): expected seconds from now, 0 or more, or a timedelta")
        super().__init__(f"for {pause:g} s")
        self.seconds = float(pause)
