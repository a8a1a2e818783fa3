"""Time zones: by name, and when their clocks change."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo, available_timezones

from worker.errors import ConfigError

# No zone has ever changed its clock twice within this: the closest were 95 hours apart (Sierra Leone, 1939).
_STEP = timedelta(hours=12)
_GRAIN = timedelta(seconds=1)


class Change(NamedTuple):
    """A clock is turned: until `at` it is `before` ahead of UTC, from then on `after`."""

    at: datetime
    before: timedelta
    after: timedelta

    @property
    def width(self) -> timedelta:
        """How much wall-clock time is skipped, or repeated when negative."""
        return self.after - self.before


def zone(tz: object) -> tzinfo:
    """
    The time zone called *tz*.

    Raises:
        ConfigError: There is none; the message names the closest.
    """
    # UTC by itself: a container without time zone files must not need them for it.
    if tz == "UTC":
        return UTC
    try:
        return ZoneInfo(tz)  # type: ignore[arg-type]  # what is no text ends below, as every other refused zone
    # ZoneInfo lets the errors of the file system through: a folder such as "Europe" is one of them.
    except (LookupError, OSError, TypeError, ValueError) as exc:
        known = available_timezones()
        close = [f"did you mean {match!r}?" for match in difflib.get_close_matches(str(tz), known, n=1)]
        hint = close or ([] if known else ["this machine has no zone files: install the package tzdata"])
        expected = "expected an IANA name such as 'Europe/Berlin'"
        raise ConfigError("; ".join([f"tz {tz!r} is not a known time zone, {expected}", *hint])) from exc


def offset(of: tzinfo, instant: datetime) -> timedelta:
    """How far the clocks of a zone are ahead of UTC at *instant* (aware UTC)."""
    found = instant.astimezone(of).utcoffset()
    return timedelta(0) if found is None else found


def changes(of: tzinfo, since: datetime, until: datetime) -> Iterator[Change]:
    """The changes of a zone's clock strictly after *since*, up to *until* (both aware UTC)."""
    for year in range(since.year, until.year + 1):
        yield from (change for change in changes_in(of, year) if since < change.at <= until)


@lru_cache(maxsize=4096)
def changes_in(of: tzinfo, year: int) -> tuple[Change, ...]:
    """The changes within a year of UTC."""
    if of is UTC:
        return ()
    found = []
    # zoneinfo does not list them, so we look twice a day, and closer where the offset differs.
    low, end = datetime(year, 1, 1, tzinfo=UTC), datetime(year + 1, 1, 1, tzinfo=UTC)
    while low < end:
        high = min(low + _STEP, end)
        before, after = offset(of, low), offset(of, high)
        if before != after:
            found.append(Change(_turn(of, low, high), before, after))
        low = high
    return tuple(found)


def _turn(of: tzinfo, low: datetime, high: datetime) -> datetime:
    before = offset(of, low)
    while high - low > _GRAIN:
        middle = low + (high - low) // _GRAIN // 2 * _GRAIN
        low, high = (middle, high) if offset(of, middle) == before else (low, middle)
    return high
