"""The crontab text that people write: our own grammar, matched in full, and what is refused with its reason."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from worker.errors import ConfigError
from worker.schedule.calendar import LAST, Calendar

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
# Where the search for a first date begins; the calendar repeats after 400 years.
_ANY_TIME = datetime(2000, 1, 1)  # noqa: DTZ001  # wall-clock time, of no zone

# Digits are spelt out because \d also takes other alphabets'; four are plenty, and int() refuses thousands of them.
_VALUE = r"[0-9]{1,4}|[a-z]{3}"
_ITEM = re.compile(rf"(?:\*|(?P<first>{_VALUE})(?:-(?P<last>{_VALUE}))?)(?:/(?P<step>[0-9]{{1,4}}))?")
_NTH = re.compile(rf"(?P<weekday>{_VALUE})(?:#(?P<count>[1-5])|l)")

# What other dialects mean by texts that this one refuses, the first match wins.
_FOREIGN = (
    (re.compile(r".*[?].*"), "'?' belongs to Quartz, write '*'"),
    (re.compile(r"([0-9]+|l)w"), "W, the weekday nearest to a date, is not offered, write the dates"),
    (re.compile(r"h(\(.*\))?(/.*)?"), "'H' belongs to Jenkins, write a number"),
    (re.compile(r".*-.*#.*"), "'#' counts one weekday, write mon#2,tue#2"),
    (re.compile(r".*#.*"), "'#' counts a weekday within the month, in the weekday field only: fri#1 to fri#5, or friL"),
    (
        re.compile(r"l(-[0-9]+)?|last.*|([0-9]+|[a-z]{3})l"),
        "L means the last day of the month, alone in the day field, or behind a weekday the last of it: friL or 5L",
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
WEEKDAY = Field("weekday", 0, 7, "0-7 (0 and 7 are Sunday) or sun-sat, fri#2 or friL", _WEEKDAYS, wraps=True)
FIVE = (MINUTE, HOUR, DAY, MONTH, WEEKDAY)
SIX = (SECOND, *FIVE)


@dataclass(frozen=True)
class Crontab:
    """
    A crontab text that was understood.

    Attributes:
        text: As written, blanks made single; macros stay macros.
        calendar: Which wall-clock times it names, in no particular zone.
        elapsed: Minute or hour start with `*`: the schedule follows elapsed time through a change of the clock
            (Vixie cron's rule); all others follow the wall clock.
    """

    text: str
    calendar: Calendar
    elapsed: bool


def parse(text: str, *, seconds: bool = False) -> Crontab:
    """
    Understand *text*: five fields (minute hour day month weekday) or a macro such as `@daily`.

    Lists, ranges, steps and English three-letter names, as in Vixie cron (crontab(5)); `fri-mon` wraps; a date needs
    day OR weekday when neither starts with `*`. `L` is the last day of the month, `fri#2` its second Friday, `friL`
    its last one.

    Args:
        seconds: There are six fields and the first is the second.

    Raises:
        ConfigError: Anything else, also a text that names no date that ever comes; the message points at the field,
            the value, and says what is allowed.
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
    calendar = Calendar(
        seconds=second,
        minutes=minutes,
        hours=hours,
        days=days,
        months=months,
        weekdays=weekdays,
        last_day=any(item in _LAST_DAY for item in day.lower().split(",")),
        nth=tuple(sorted(filter(None, map(_nth, weekday.lower().split(","))))),
        either=not day.startswith("*") and not weekday.startswith("*"),
    )
    if calendar.after(_ANY_TIME) is None:
        raise ConfigError(_never(written, day, weekday, position=len(values) - 2))
    return Crontab(written, calendar, elapsed=minute.startswith("*") or hour.startswith("*"))


def _never(written: str, day: str, weekday: str, *, position: int) -> str:
    month = f"no month in field {position + 1} (month)"
    if weekday == "*":
        why = f"{month} has a day of field {position} (day), {day!r}"
        lengths = "February has at most 29 days, April, June, September, November 30"
        return f"cron {written!r} would never run: {why}; {lengths}"
    both = f"has a date of field {position} (day), {day!r}, that is in field {position + 2} (weekday), {weekday!r}"
    return f"cron {written!r} would never run: {month} {both}; without a '*' in front either of the two is enough"


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
        if (field is DAY and item.lower() in _LAST_DAY) or (field is WEEKDAY and _nth(item.lower())):
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


def _nth(item: str) -> tuple[int, int] | None:
    """The weekday of `fri#2`, `5#2`, `friL` or `5L` and its count within the month; None for anything else."""
    match = _NTH.fullmatch(item)
    weekday = None if match is None else WEEKDAY.number(match["weekday"])
    if match is None or weekday is None:
        return None
    return weekday % 7, int(match["count"] or LAST)


def _item(field: Field, item: str) -> range:
    match = _ITEM.fullmatch(item)
    if match is None:
        raise ValueError(_stranger(field, item))
    low, high = _bounds(field, match)
    if match["step"] is None:
        return range(low, high + 1)
    step = int(match["step"])
    if low == high:
        raise ValueError("a range of one value has no use for a step")
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
