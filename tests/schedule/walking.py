"""
Ticks found by looking at every minute: it reads the crontab by itself and shares nothing with the package.

`python -m tests.schedule.walking [--zones A,B] [--years 2007-2027] [--texts N]` walks every change of the clock in ten
zones over twenty years, and compares with `Cron`; exit code 1 at the first difference. A minute or two.
"""

from __future__ import annotations

import argparse
import random
import sys
from calendar import monthrange
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from zoneinfo import ZoneInfo

from worker.schedule.crontab import parse
from worker.schedule.trigger import Cron, Gap, Repeat

MINUTE = timedelta(minutes=1)
ZONES = (
    "America/New_York",
    "Europe/Berlin",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Antarctica/Troll",
    "Africa/Cairo",
    "Africa/Casablanca",
    "America/Santiago",
    "Pacific/Chatham",
    "Asia/Tehran",
)
NAMES = {name: number for number, name in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))}
GAPS: list[Gap | None] = [None, None, "run", "skip"]
REPEATS: list[Repeat | None] = [None, None, "first", "both"]

Minutes = list[tuple[datetime, datetime]]


def matches(text: str, wall: datetime) -> bool:
    """Whether a crontab of five fields names *wall*, by crontab(5) read as plainly as can be."""
    minute, hour, day, month, weekday = text.split()
    if not (_in(minute, wall.minute, 0, 59) and _in(hour, wall.hour, 0, 23) and _in(month, wall.month, 1, 12)):
        return False
    length, today = monthrange(wall.year, wall.month)[1], wall.isoweekday() % 7
    by_day = any((item == "L" and wall.day == length) or _in(item, wall.day, 1, 31) for item in day.split(","))
    by_weekday = any(_on(item, today, wall.day, length) for item in weekday.split(","))
    if day[0] == "*" or weekday[0] == "*":
        return by_day and by_weekday
    return by_day or by_weekday


def _on(item: str, today: int, day: int, length: int) -> bool:
    if "#" in item:
        name, count = item.split("#")
        return NAMES[name] == today and 7 * int(count) - 6 <= day <= 7 * int(count)
    if item.endswith("L"):
        return NAMES[item[:-1]] == today and length - 6 <= day
    return _in(item, today, 0, 6)


def _in(field: str, value: int, low: int, high: int) -> bool:
    for item in field.split(","):
        ends, _, step = item.partition("/")
        if item == "L":
            continue
        first, last = (low, high) if ends == "*" else (int(ends.split("-")[0]), int(ends.split("-")[-1]))
        if value in range(first, last + 1, int(step or 1)):
            return True
    return False


def expected(text: str, minutes: Minutes, gap: Gap | None = None, repeat: Repeat | None = None) -> list[datetime]:
    """The ticks within *minutes*, each an instant and what the clock on the wall shows then."""
    elapsed = text.startswith("*") or text.split()[1].startswith("*")
    gap = gap or ("skip" if elapsed else "run")
    repeat = repeat or ("both" if elapsed else "first")
    found: set[datetime] = set()
    shown: set[datetime] = set()
    for (_, before), (instant, wall) in pairwise(minutes):
        missing = before + MINUTE
        while missing < wall:
            if gap == "run" and matches(text, missing):
                found.add(instant + (missing - before - MINUTE))
            missing += MINUTE
        if matches(text, wall) and (repeat == "both" or wall not in shown):
            found.add(instant)
        shown.add(wall)
    return sorted(instant for instant in found if instant <= minutes[-1][0])


@cache
def changes_of(zone: str, first: int = 2007, last: int = 2027) -> tuple[datetime, ...]:
    """The first minute, in UTC, after each change of the clock from *first* to before *last*."""
    tz, found = ZoneInfo(zone), []
    quarter, instant = timedelta(minutes=15), datetime(first, 1, 1, tzinfo=UTC)
    before = instant.astimezone(tz).utcoffset()
    while instant.year < last:
        if (after := instant.astimezone(tz).utcoffset()) != before:
            found.append(instant)
            before = after
        instant += quarter
    return tuple(found)


@cache
def round_about(zone: str, change: datetime, hours: int = 40) -> Minutes:
    """Every minute from *hours* before to *hours* after."""
    instants = (change + number * MINUTE for number in range(-hours * 60, hours * 60))
    return [(instant, instant.astimezone(ZoneInfo(zone)).replace(tzinfo=None)) for instant in instants]


def some_text(chance: random.Random, near: datetime) -> str:
    """A crontab that has to do with the hours round *near*."""
    hours = [(near.hour + by) % 24 for by in (-2, -1, 0, 0, 1)]
    minute = chance.choice(["0", "30", "15,45", "*/20", "*", "7-59/13", str(chance.randrange(60)), "0-29"])
    hour = chance.choice([*map(str, hours), "*", "*/2", "0-3", "0", "23", f"{hours[0]},{hours[3]}", "1-23/3"])
    day = chance.choice(["*", "*", "*", str(near.day), "L", "*/2", "1-7", f"{near.day % 28 + 1},L"])
    month = chance.choice(["*", "*", str(near.month), f"{near.month},12"])
    name = list(NAMES)[near.isoweekday() % 7]
    weekday = chance.choice(
        ["*", "*", "*", str(near.isoweekday() % 7), "1-5", f"{name}#{(near.day + 6) // 7}", f"{name}L"]
    )
    return f"{minute} {hour} {day} {month} {weekday}"


def differences(zone: str, change: datetime, text: str, gap: Gap | None, repeat: Repeat | None) -> Iterator[str]:
    """What `Cron` says otherwise than the walk around one change."""
    minutes = round_about(zone, change)
    known = expected(text, minutes, gap, repeat)
    cron, tick, found = Cron(parse(text), ZoneInfo(zone), gap, repeat), minutes[0][0], []
    while (tick := cron.after(tick)) <= minutes[-1][0]:
        found.append(tick)
    for instant in sorted(set(known) ^ set(found)):
        what = "lost" if instant in known else "wrong"
        yield f"{text!r} in {zone} ({gap=}, {repeat=}): {instant:%Y-%m-%d %H:%M}Z is {what}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--zones", default=",".join(ZONES))
    parser.add_argument("--years", default="2007-2027")
    parser.add_argument("--texts", type=int, default=12, help="crontabs at each change")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    first, last = map(int, options.years.split("-"))
    chance, walks = random.Random(options.seed), 0  # noqa: S311  # chance that can be repeated
    for zone in options.zones.split(","):
        for change in changes_of(zone, first, last):
            near = (change - MINUTE).astimezone(ZoneInfo(zone)) + MINUTE
            for _ in range(options.texts):
                gap, repeat = chance.choice(GAPS), chance.choice(REPEATS)
                if found := list(differences(zone, change, some_text(chance, near), gap, repeat)):
                    print("\n".join(found))
                    return 1
                walks += 1
            round_about.cache_clear()
        print(f"{zone}: {len(changes_of(zone, first, last))} changes of the clock, the same ticks")
    print(f"{walks} walks, no difference")
    return 0


if __name__ == "__main__":
    sys.exit(main())
