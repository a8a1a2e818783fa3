"""When a schedule ticks: each trigger maps an instant to the first tick after it, always aware UTC."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Literal, NamedTuple, Protocol

from worker.schedule.crontab import Crontab
from worker.schedule.zone import Change, changes, changes_in, offset

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# What `after` says when there is no further tick: an instant that nobody lives to see.
NEVER = datetime(9999, 12, 31, tzinfo=UTC)

Gap = Literal["run", "skip"]
Repeat = Literal["first", "both"]

_TINY = timedelta(microseconds=1)
# Beyond the widest change of a clock: Samoa lost a whole day in December 2011.
_NEAR = timedelta(hours=26)
# How far ahead a tick is looked for. The rarest date is a 29 February on one weekday, 40 years apart.
_HORIZON = 120
_WARNED = timedelta(days=3653)


class Trigger(Protocol):
    """What a schedule needs to know about time."""

    def after(self, instant: datetime) -> datetime:
        """The first tick strictly after *instant*, aware UTC; NEVER when there is none."""
        ...


@dataclass(frozen=True)
class Cron:
    """
    The ticks of a crontab in a time zone.

    A time that the clock skips moves on by the gap and runs once (`gap="run"`) or has no tick ("skip"); a time that it
    shows twice runs the "first" time or "both" (`repeat`). Where these are None, Vixie cron's rule holds: a crontab
    whose minute or hour begins with `*` follows elapsed time (skip, both), all others the wall clock (run, first).
    """

    crontab: Crontab
    zone: tzinfo
    gap: Gap | None = None
    repeat: Repeat | None = None

    def after(self, instant: datetime) -> datetime:
        """The first tick strictly after *instant*, aware UTC; NEVER when there is none in 120 years."""
        start = _utc(instant)
        found = NEVER
        for piece in self._pieces(start - _NEAR):
            found = min(found, *self._moved(piece, start), self._regular(piece, start))
            if found <= piece.end:
                break
        return found

    def next_gap(self, instant: datetime) -> Skipped | None:
        """The first time within ten years of *instant* that the clock skips; None when it skips none."""
        start = _utc(instant)
        for change in changes(self.zone, start, start + _WARNED):
            tick = self._in_gap(change)
            if tick is not None:
                return Skipped(_wall(tick, change.before), None if self.skips_gaps else tick)
        return None

    def note(self, tick: datetime) -> str:
        """What the clock did to *tick*, in a few words; empty for an ordinary one."""
        tick = _utc(tick)
        for change in changes(self.zone, tick - _NEAR, tick + _NEAR):
            since, wall = tick - change.at, _wall(tick, change.before)
            if timedelta(0) <= since < change.width and not self.skips_gaps and self._names(wall):
                return f"moved: the clock skips {wall:%H:%M}" + (f" of {wall:%-d %b}" if change.width.days else "")
            if timedelta(0) <= since < -change.width:
                return f"second {_wall(tick, change.after):%H:%M}: the clock is turned back"
            if change.width < timedelta(0) and change.width <= since < timedelta(0):
                return f"first of two {wall:%H:%M}: the clock is turned back"
        return ""

    @property
    def skips_gaps(self) -> bool:
        """Whether times that the clock skips have no tick."""
        return self.gap == "skip" or (self.gap is None and self.crontab.elapsed)

    @property
    def repeats(self) -> bool:
        """Whether times that the clock shows twice have two ticks."""
        return self.repeat == "both" or (self.repeat is None and self.crontab.elapsed)

    def _pieces(self, start: datetime) -> Iterator[_Piece]:
        """120 years from *start* on, cut where the clock changes and, so that these are looked up late, each year."""
        since, ahead, change = start, offset(self.zone, start), None
        for year in range(start.year, min(start.year + _HORIZON, NEVER.year)):
            for following in changes_in(self.zone, year):
                if following.at > since:
                    yield _Piece(since, following.at, ahead, change)
                    since, ahead, change = following.at, following.after, following
            new_year = datetime(year + 1, 1, 1, tzinfo=UTC)
            yield _Piece(since, new_year, ahead, change)
            since = new_year

    def _regular(self, piece: _Piece, start: datetime) -> datetime:
        """The first tick after *start* at a time that the clock really shows within *piece*."""
        wall = max(_wall(start, piece.offset), _wall(piece.start, piece.offset) - _TINY)
        if piece.change is not None and not self.repeats:
            # What the clock has shown before it was turned back.
            wall = max(wall, _wall(piece.change.at, piece.change.before) - _TINY)
        tick = _instant(self.crontab.calendar.after(wall), piece.offset)
        return tick if tick < piece.end else NEVER

    def _moved(self, piece: _Piece, start: datetime) -> tuple[datetime, ...]:
        """The first tick after *start* that makes up for a time skipped by the last change of the clock."""
        change = piece.change
        if change is None or self.skips_gaps or start >= change.at + change.width:
            return ()
        tick = self._in_gap(change, start)
        return () if tick is None else (tick,)

    def _in_gap(self, change: Change, start: datetime = EPOCH) -> datetime | None:
        wall = max(_wall(start, change.before), _wall(change.at, change.before) - _TINY)
        tick = _instant(self.crontab.calendar.after(wall), change.before)
        return tick if tick < change.at + change.width else None

    def _names(self, wall: datetime) -> bool:
        return self.crontab.calendar.after(wall - _TINY) == wall


class Skipped(NamedTuple):
    """A time that the clock skips, as it would show it, and the tick that makes up for it."""

    wall: datetime
    tick: datetime | None


class _Piece(NamedTuple):
    """Time from `start` to before `end` with one `offset`; `change` is the last one before it, as far as known."""

    start: datetime
    end: datetime
    offset: timedelta
    change: Change | None


@dataclass(frozen=True)
class Every:
    """Ticks at whole multiples of *seconds* since 1970, so that every process ticks at the same instants."""

    seconds: float

    def after(self, instant: datetime) -> datetime:
        """The first tick strictly after *instant*, aware UTC."""
        period = timedelta(seconds=self.seconds)
        return EPOCH + ((_utc(instant) - EPOCH) // period + 1) * period


@dataclass(frozen=True)
class At:
    """A single tick."""

    instant: datetime

    def after(self, instant: datetime) -> datetime:
        """The tick, when it is strictly after *instant*; else NEVER."""
        return self.instant if self.instant > _utc(instant) else NEVER


def _wall(instant: datetime, ahead: timedelta) -> datetime:
    """What a clock that is *ahead* of UTC shows at *instant*; without a zone, so that it can be counted."""
    return instant.replace(tzinfo=None) + ahead


def _instant(wall: datetime | None, ahead: timedelta) -> datetime:
    return NEVER if wall is None else (wall - ahead).replace(tzinfo=UTC)


def _utc(instant: datetime) -> datetime:
    if instant.tzinfo is None:
        raise ValueError(f"instant {instant!r} has no time zone, expected an aware datetime such as clock.now()")
    return instant.astimezone(UTC)
