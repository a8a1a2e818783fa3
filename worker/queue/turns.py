"""Turns: when each worker of a fleet has its heartbeat, so that somebody looks soon and nobody looks often."""

from __future__ import annotations

# Polling is the truth and NOTIFY the hurry: a lost notification costs at most this.
LONGEST = 2.0
# Beside others somebody looks sooner, because their jobs may be lost with them: one that has just begun nobody else
# knows of ...
_WITH_OTHERS = 1.5
# ... and sooner still while they are known to run some.
_WHILE_OTHERS_RUN = 1.0
# That holds for one in so many workers already: most of a fleet may die at once.
_SPARE = 4


def period(workers: int, *, others_run: bool) -> float:
    """Seconds between two heartbeats of one of *workers*."""
    if workers < 2:
        return LONGEST
    soon = _WHILE_OTHERS_RUN if others_run else _WITH_OTHERS
    return min(LONGEST, soon * max(1.0, workers / _SPARE))


def until_turn(at: float, nth: int, workers: int, seconds: float) -> float:
    """
    Seconds until the turn of the *nth* of *workers*, counted from 0, when each has one in so many *seconds*.

    Turns are instants of the database's clock, *at* in seconds since 1970, at even distances: whatever brings some
    heartbeats forward, a notification say, does not leave all of them in step.
    """
    return (seconds * nth / workers - at) % seconds
