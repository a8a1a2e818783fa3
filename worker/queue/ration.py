"""A ration: how often something may be done whose cost nobody knows beforehand."""

from __future__ import annotations

from worker import clock

# Of the time of one session of the database, for the whole fleet together.
_SHARE = 0.05
_LATEST = 30.0
# Of this worker's time, for what it knows to be there.
_SHARE_IN_HASTE = 0.5
# What has failed, or comes near to the timeout of statements, is put off until things may have changed.
_PUT_OFF = 600.0


class Ration:
    """
    When something may be done again, by what it cost the last time: a twentieth of the fleet's time goes into it.

    While it costs next to nothing it may always be done, if *soonest* seconds have passed; and each 30 s as long as it
    does not take *too_long* seconds.
    """

    def __init__(self, *, soonest: float = 0.0, too_long: float = float("inf")) -> None:
        self._soonest = soonest
        self._too_long = too_long
        self.again_at = 0.0
        """When it may be done again, monotonic."""
        self._done_at = self._took = 0.0

    @property
    def is_due(self) -> bool:
        return clock.monotonic() >= self.again_at

    def begin(self) -> None:
        """It is about to be done: if it fails it is put off."""
        self.again_at = clock.monotonic() + _PUT_OFF

    def spend(self, took: float, sharers: int = 1) -> None:
        """It was done just now, and took so many seconds; *sharers* do it, each as often as this one."""
        self._done_at, self._took = clock.monotonic(), took
        wait = _PUT_OFF if took >= self._too_long else min(_LATEST, took / _SHARE * max(1, sharers))
        self.again_at = self._done_at + max(self._soonest, wait)

    def hurry(self) -> None:
        """Do it sooner: there is something to be found."""
        self.again_at = min(self.again_at, self._done_at + self._took / _SHARE_IN_HASTE)
