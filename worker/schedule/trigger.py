"""When a schedule ticks: each trigger maps an instant to the first tick after it, always aware UTC."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cached_property
from typing import Protocol

from worker.schedule.crontab import Crontab

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_TINY = timedelta(microseconds=1)
# Wide enough to see a change of the clock from either side: the widest lost a whole day (Samoa, December 2011).
_NEAR = timedelta(hours=26)


class Trigger(Protocol):
    """What a schedule needs to know about time."""

    def after(self, instant: datetime) -> datetime:
        """The first tick strictly after *instant*, aware UTC."""
        ...


@dataclass(frozen=True)
class Cron:
    """
    The ticks of a crontab in a time zone.

    APScheduler's CronTrigger loses runs when clocks change (3.11.3: `0 0 * * *` skips the day after a spring change),
    so it only does calendar arithmetic on wall-clock time labelled UTC. Which instant a wall-clock time means is ours:

    - A missing hour: schedules by wall clock move on by the gap and fire once; `elapsed` ones have no tick there.
    - A repeated hour: schedules by wall clock fire in its first pass; `elapsed` ones in both.
    """

    crontab: Crontab
    zone: tzinfo

    def after(self, instant: datetime) -> datetime:
        """The first tick strictly after *instant*, aware UTC."""
        start = _utc(instant)
        wall = self._next_wall(self._wall(start))
        while True:
            walls = {wall}
            for change in (self._change_near(start), self._change_near(self._instant(wall))):
                if change is not None:
                    walls.update(map(self._next_wall, self._edges(start, change)))
            ticks = [tick for wall in walls for tick in self._instants(wall) if tick > start]
            if ticks:
                return min(ticks)
            # Each fell into a gap where an `elapsed` schedule has no tick.
            wall = self._next_wall(max(walls))

    @cached_property
    def _calendars(self):  # type: ignore[no-untyped-def]  # APScheduler 3 ships no types
        return self.crontab.calendars()

    def _next_wall(self, wall: datetime) -> datetime:
        found: list[datetime] = [calendar.get_next_fire_time(None, wall + _TINY) for calendar in self._calendars]
        return min(found)

    def _wall(self, instant: datetime) -> datetime:
        """What the clock on the wall shows at *instant*, labelled UTC so that it can be compared and counted."""
        return instant.astimezone(self.zone).replace(tzinfo=UTC, fold=0)

    def _change_near(self, instant: datetime) -> datetime | None:
        """The instant around *instant* from which on the wall clock has another offset; mostly None."""
        low, high = instant - _NEAR, instant + _NEAR
        if self._offset(low) == self._offset(high):
            return None
        while high - low > _TINY:
            middle = low + (high - low) // 2
            low, high = (middle, high) if self._offset(middle) == self._offset(low) else (low, middle)
        return high

    def _offset(self, instant: datetime) -> timedelta:
        return self._wall(instant) - instant

    def _edges(self, start: datetime, change: datetime) -> tuple[datetime, ...]:
        """
        Wall-clock times after each of which the next calendar entry may be the first tick after *start*.

        Next to the entry after `start` itself there are: the first one that the clock shows again or skips, the first
        one beyond that, and in the hour after a gap the first missing one that still has to be made up for.
        """
        before, after = change + self._offset(change - _TINY), self._wall(change)
        return before - _TINY, after - _TINY, self._wall(start) - abs(after - before)

    def _instants(self, wall: datetime) -> tuple[datetime, ...]:
        """When *wall* is a tick: once, or never if the clock skips it, or twice where it is turned back."""
        first, second = (self._instant(wall, fold) for fold in (0, 1))
        if first == second:
            return (first,)
        repeated = first < second
        if self.crontab.elapsed:
            return (first, second) if repeated else ()
        return (first,)

    def _instant(self, wall: datetime, fold: int = 0) -> datetime:
        # PEP 495: fold tells apart the two passes of a repeated time; in a gap, fold=0 is the offset from before it.
        return wall.replace(tzinfo=self.zone, fold=fold).astimezone(UTC)


@dataclass(frozen=True)
class Every:
    """Ticks at whole multiples of *seconds* since 1970, so that every process ticks at the same instants."""

    seconds: float

    def after(self, instant: datetime) -> datetime:
        """The first tick strictly after *instant*, aware UTC."""
        period = timedelta(seconds=self.seconds)
        return EPOCH + ((_utc(instant) - EPOCH) // period + 1) * period


def _utc(instant: datetime) -> datetime:
    if instant.tzinfo is None:
        raise ValueError(f"instant {instant!r} has no time zone, expected an aware datetime such as clock.now()")
    return instant.astimezone(UTC)
