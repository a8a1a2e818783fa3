"""Which wall-clock times a crontab names: dates and times of day, in no particular zone."""

from __future__ import annotations

from bisect import bisect_left
from calendar import monthrange
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import cached_property

# The calendar repeats after 400 years, to the weekday: what does not come in so many never comes.
_CYCLE = 400 * 12
# Stands for "the last" in place of a count of weeks.
LAST = -1


@dataclass(frozen=True)
class Calendar:
    """
    The times that match; each tuple is sorted and not empty, but for `days`, `weekdays` and `nth`.

    Attributes:
        last_day: The last day of each month belongs to `days`.
        weekdays: 0 is Sunday.
        nth: Pairs of a weekday and its count within the month, 1 to 5, or LAST.
        either: A date needs one of day and weekday; else it needs both.
    """

    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    weekdays: tuple[int, ...]
    last_day: bool
    nth: tuple[tuple[int, int], ...]
    either: bool

    def after(self, wall: datetime) -> datetime | None:
        """The first time strictly after *wall*, both without a zone; None when there is none in 400 years."""
        start = wall.replace(microsecond=0) + timedelta(seconds=1)
        if start.day in self._dates(start.year, start.month):
            found = self._time_from(start.time())
            if found is not None:
                return datetime.combine(start.date(), found)
        day = self._date_after(start.date())
        return None if day is None else datetime.combine(day, self._first_time)

    @cached_property
    def _first_time(self) -> time:
        return time(self.hours[0], self.minutes[0], self.seconds[0])

    def _time_from(self, start: time) -> time | None:
        for hour in self.hours[bisect_left(self.hours, start.hour) :]:
            if hour > start.hour:
                return time(hour, self.minutes[0], self.seconds[0])
            for minute in self.minutes[bisect_left(self.minutes, start.minute) :]:
                if minute > start.minute:
                    return time(hour, minute, self.seconds[0])
                for second in self.seconds[bisect_left(self.seconds, start.second) :]:
                    return time(hour, minute, second)
        return None

    def _date_after(self, day: date) -> date | None:
        first = day.day + 1
        for number in range(day.year * 12 + day.month - 1, day.year * 12 + day.month + _CYCLE):
            year, month = divmod(number, 12)
            if year > date.max.year:
                return None
            for found in self._dates(year, month + 1):
                if found >= first:
                    return date(year, month + 1, found)
            first = 1
        return None

    @cached_property
    def _known(self) -> dict[tuple[int, int], tuple[int, ...]]:
        return {}

    def _dates(self, year: int, month: int) -> tuple[int, ...]:
        """The days of a month that match."""
        if month not in self.months:
            return ()
        known = self._known.get((year, month))
        if known is None:
            weekday, length = monthrange(year, month)
            # monthrange counts from Monday and tells the first day's, which is number 1.
            known = tuple(day for day in range(1, length + 1) if self._has(day, (weekday + day) % 7, length))
            self._known[year, month] = known
        return known

    def _has(self, day: int, weekday: int, length: int) -> bool:
        by_day = day in self.days or (self.last_day and day == length)
        by_weekday = weekday in self.weekdays or (
            (weekday, (day + 6) // 7) in self.nth or (day + 7 > length and (weekday, LAST) in self.nth)
        )
        return by_day or by_weekday if self.either else by_day and by_weekday
