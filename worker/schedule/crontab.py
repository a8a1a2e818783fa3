"""The crontab text that people write: our own grammar, matched in full, and what is refused with its reason."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC

from apscheduler.triggers.cron import CronTrigger

from worker.errors import ConfigError

MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LAST_DAY = ("l", "last")
_LONGEST = {2: 29, 4: 30, 6: 30, 9: 30, 11: 30}  # days of the months that lack some; every date meets every weekday

# Digits are spelt out because \d also takes other alphabets'; four are plenty, and int() refuses thousands of them.
_VALUE = r"[0-9]{1,4}|[a-z]{3}"
_ITEM = re.compile(rf"(?:\*|(?P<first>{_VALUE})(?:-(?P<last>{_VALUE}))?)(?:/(?P<step>[0-9]{{1,4}}))?")

# What other dialects mean by texts that this one refuses, the first match wins.
_FOREIGN = (
    (re.compile(r".*[?].*"), "'?' belongs to Quartz, write '*'"),
    (re.compile(r".*#.*"), "the nth weekday of a month is not offered, let the job return early in the other weeks"),
    (re.compile(r"([0-9]+|l)w"), "the weekday nearest to a date is not offered, write the dates"),
    (re.compile(r"h(\(.*\))?(/.*)?"), "'H' belongs to Jenkins, write a number"),
    (
        re.compile(r"l(-[0-9]+)?|last.*|.*[0-9]l"),
        "L and last mean the last day of the month: alone, in the day field only",
    ),
)


@dataclass(frozen=True)
class Field:
    """One field of the five or six: its name and what may stand in it."""

    name: str
    low: int
    high: int
    allowed: str
    names: tuple[str, ...] = ()
    wraps: bool = False

    def number(self, value: str) -> int | None:
        """The number that *value* stands for; None when nothing by that name may stand here."""
        if value in self.names:
            return self.names.index(value) + (1 if self.names is _MONTHS else 0)
        return int(value) if value.isdigit() and self.low <= int(value) <= self.high else None


SECOND = Field("second", 0, 59, "0-59")
MINUTE = Field("minute", 0, 59, "0-59")
HOUR = Field("hour", 0, 23, "0-23")
DAY = Field("day", 1, 31, "1-31, or L for the last day of the month")
MONTH = Field("month", 1, 12, "1-12 or jan-dec", _MONTHS)
WEEKDAY = Field("weekday", 0, 7, "0-7 (0 and 7 are Sunday) or sun-sat", _WEEKDAYS, wraps=True)
FIVE = (MINUTE, HOUR, DAY, MONTH, WEEKDAY)
SIX = (SECOND, *FIVE)


@dataclass(frozen=True)
class Crontab:
    """
    A crontab text that was understood: which wall-clock times it names, in no particular zone.

    Attributes:
        text: As written, blanks made single; macros stay macros.
        last_day: The last day of each month belongs to `days`.
        day_or_weekday: A date needs one of the two, because both are restricted; else it needs both.
        elapsed: Minute or hour start with `*`: the schedule follows elapsed time through a change of the clock
            (Vixie cron's rule); all others follow the wall clock.
    """

    text: str
    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    weekdays: tuple[int, ...]
    last_day: bool
    day_or_weekday: bool
    elapsed: bool

    @property
    def has_dates(self) -> bool:
        """Whether any month has one of the days: 30 February never comes."""
        return self.last_day or any(day <= _LONGEST.get(month, 31) for month in self.months for day in self.days)

    def calendars(self) -> tuple[CronTrigger, ...]:
        """
        Wall-clock calendars, labelled UTC, that together name every tick; a tick may be in both.

        APScheduler joins day and weekday by AND, so cron's OR takes two calendars.
        """
        days = ",".join(filter(None, (_listed(self.days, DAY), "last" if self.last_day else "")))
        weekdays = "*" if len(self.weekdays) == len(_WEEKDAYS) else ",".join(_WEEKDAYS[day] for day in self.weekdays)
        if not self.day_or_weekday:
            return (self._calendar(days, weekdays),)
        by_weekday = self._calendar("*", weekdays)
        # A calendar of dates that never come would search until the year 9999, each time.
        return (by_weekday, self._calendar(days, "*")) if self.has_dates else (by_weekday,)

    def _calendar(self, days: str, weekdays: str) -> CronTrigger:
        return CronTrigger(
            second=_listed(self.seconds, SECOND),
            minute=_listed(self.minutes, MINUTE),
            hour=_listed(self.hours, HOUR),
            day=days,
            month=_listed(self.months, MONTH),
            day_of_week=weekdays,
            timezone=UTC,
        )


def parse(text: str, *, seconds: bool = False) -> Crontab:
    """
    Understand *text*: five fields (minute hour day month weekday) or a macro such as `@daily`.

    Lists, ranges, steps and English three-letter names, as in Vixie cron (crontab(5)); `fri-mon` wraps; a date needs
    day OR weekday when neither starts with `*`.

    Args:
        seconds: There are six fields and the first is the second.

    Raises:
        ConfigError: Anything else; the message points at the field, the value, and says what is allowed.
    """
    if not isinstance(text, str):
        raise ConfigError(f"cron {text!r} is of type {type(text).__name__}, expected a text such as '0 3 * * *'")
    written = " ".join(text.split())
    fields = SIX if seconds else FIVE
    values = _split(written, fields)
    numbers = [
        _numbers(written, position, field, value)
        for position, (field, value) in enumerate(zip(fields, values, strict=True), 1)
    ]
    second, minutes, hours, days, months, weekdays = numbers if seconds else [(0,), *numbers]
    minute, hour, day, _, weekday = values[-5:]
    crontab = Crontab(
        text=written,
        seconds=second,
        minutes=minutes,
        hours=hours,
        days=days,
        months=months,
        weekdays=weekdays,
        last_day=any(item.lower() in _LAST_DAY for item in day.split(",")),
        day_or_weekday=not day.startswith("*") and not weekday.startswith("*"),
        elapsed=minute.startswith("*") or hour.startswith("*"),
    )
    if not crontab.has_dates and not crontab.day_or_weekday:
        raise ConfigError(
            f"cron {written!r} would never run: no month in field {len(values) - 1} (month) has a day of field"
            f" {len(values) - 2} (day), {day!r}; February has at most 29 days, April, June, September, November 30"
        )
    return crontab


def _split(written: str, fields: tuple[Field, ...]) -> list[str]:
    expected = f"{len(fields)} ({' '.join(field.name for field in fields)})"
    lowered = written.lower()
    if lowered.startswith("@"):
        if lowered not in MACROS:
            raise ConfigError(
                f"cron {written!r} is not a macro we know, expected {', '.join(MACROS)}{_macro_hint(lowered)}"
            )
        return (["0"] if len(fields) == len(SIX) else []) + MACROS[lowered].split()
    if "tz=" in lowered:
        raise ConfigError(f"cron {written!r} names a time zone, expected {expected} alone: pass tz='Europe/Berlin'")
    values = written.split()
    if len(values) == len(fields):
        return values
    hint = "; a leading field of seconds needs seconds=True" if len(values) == len(SIX) else ""
    raise ConfigError(f"cron {written!r} has {len(values)} fields, expected {expected} or a macro such as @daily{hint}")


def _macro_hint(lowered: str) -> str:
    if lowered == "@reboot":
        return "; a start of a worker is not a time, and there may be many workers: send the job when you deploy"
    if lowered.startswith("@every"):
        return "; for an interval use @every(minutes=5)"
    return ""


def _numbers(written: str, position: int, field: Field, value: str) -> tuple[int, ...]:
    found: set[int] = set()
    for item in value.split(","):
        if field is DAY and item.lower() in _LAST_DAY:
            continue
        try:
            found.update(_item(field, item.lower()))
        except ValueError as exc:
            raise ConfigError(
                f"cron {written!r}, field {position} ({field.name}), {item!r}: {exc}; expected {field.allowed},"
                " with lists (1,2), ranges (1-5) and steps (*/2)"
            ) from None
    # Sunday is 0 and 7 where it is written, 0 from here on.
    return tuple(sorted({number % 7 for number in found} if field is WEEKDAY else found))


def _item(field: Field, item: str) -> range:
    match = _ITEM.fullmatch(item)
    if match is None:
        raise ValueError(_stranger(field, item))
    low, high = _bounds(field, match)
    if match["step"] is None:
        return range(low, high + 1)
    step = int(match["step"])
    if not 1 <= step <= high - low:
        raise ValueError(f"step {step} is outside 1-{high - low}, the steps that meet {low}-{high} more than once")
    return range(low, high + 1, step)


def _bounds(field: Field, match: re.Match[str]) -> tuple[int, int]:
    first, last = match["first"], match["last"]
    if first is None:
        return field.low, 6 if field is WEEKDAY else field.high
    low = _number(field, first)
    if last is None:
        if match["step"] is not None:
            raise ValueError(f"a step needs a range, write {first}-{field.high}/{match['step']}")
        return low, low
    high = _number(field, last)
    if high >= low:
        return low, high
    if not field.wraps:
        raise ValueError(f"the range runs backwards, write {low}-{field.high},{field.low}-{high}")
    return low, high + 7


def _number(field: Field, value: str) -> int:
    number = field.number(value)
    if number is None:
        raise ValueError(f"{value} is out of range" if value.isdigit() else _stranger(field, value))
    return number


def _stranger(field: Field, item: str) -> str:
    for pattern, why in _FOREIGN:
        if pattern.fullmatch(item):
            return why
    if item[:3] in field.names:
        return f"names have three letters, write {item[:3]}"
    return f"{item!r} is not understood" if item else "nothing stands between the commas"


def _listed(numbers: tuple[int, ...], field: Field) -> str:
    everything = len(numbers) == field.high - field.low + 1
    return "*" if everything else ",".join(map(str, numbers))
