"""Ticks through changes of the clock, against a walk over every minute that knows nothing of our arithmetic."""

from __future__ import annotations

import random
from bisect import bisect_right
from calendar import month_abbr
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.schedule import walking
from worker.schedule.calendar import Calendar
from worker.schedule.crontab import parse
from worker.schedule.trigger import EPOCH, NEVER, At, Cron, Every, Gap, Repeat
from worker.schedule.warning import gap_warning

MINUTE = timedelta(minutes=1)

# Forward and back; half an hour (Lord Howe), two hours (Troll), at midnight (Havana, Cairo, Santiago), at a quarter to
# (Chatham), a whole day (Apia), and no change at all (Kathmandu).
CHANGES = [
    ("America/New_York", "2026-03-08"),
    ("America/New_York", "2026-11-01"),
    ("Europe/Berlin", "2026-03-29"),
    ("Europe/Berlin", "2026-10-25"),
    ("Australia/Lord_Howe", "2026-04-05"),
    ("Australia/Lord_Howe", "2026-10-04"),
    ("Antarctica/Troll", "2026-03-29"),
    ("Antarctica/Troll", "2026-10-25"),
    ("America/Havana", "2026-03-08"),
    ("America/Havana", "2026-11-01"),
    ("Africa/Cairo", "2026-04-24"),
    ("Africa/Cairo", "2026-10-30"),
    ("America/Santiago", "2026-04-05"),
    ("Pacific/Chatham", "2026-09-27"),
    ("Pacific/Apia", "2011-12-30"),
    ("Asia/Kathmandu", "2026-03-29"),
]


class Case(NamedTuple):
    """A crontab, and the same said in Python."""

    text: str
    matches: Callable[[datetime], bool]
    elapsed: bool = False


CASES = [
    Case("30 2 * * *", lambda wall: (wall.hour, wall.minute) == (2, 30)),
    Case("30 1 * * *", lambda wall: (wall.hour, wall.minute) == (1, 30)),
    Case("0 1 * * *", lambda wall: (wall.hour, wall.minute) == (1, 0)),
    Case("0 2 * * *", lambda wall: (wall.hour, wall.minute) == (2, 0)),
    Case("0 3 * * *", lambda wall: (wall.hour, wall.minute) == (3, 0)),
    Case("0 0 * * *", lambda wall: (wall.hour, wall.minute) == (0, 0)),
    Case("59 23 * * *", lambda wall: (wall.hour, wall.minute) == (23, 59)),
    Case("0 0 1 * *", lambda wall: (wall.day, wall.hour, wall.minute) == (1, 0, 0)),
    Case("30 0 L * *", lambda wall: ((wall + timedelta(days=1)).day, wall.hour, wall.minute) == (1, 0, 30)),
    Case("0 0 * * mon", lambda wall: (wall.weekday(), wall.hour, wall.minute) == (0, 0, 0)),
    Case("5 2 30 * sun", lambda wall: (wall.day == 30 or wall.weekday() == 6) and (wall.hour, wall.minute) == (2, 5)),
    Case("15,45 0-3 * * *", lambda wall: wall.hour <= 3 and wall.minute in (15, 45)),
    Case("*/30 * * * *", lambda wall: wall.minute in (0, 30), elapsed=True),
    Case("30 * * * *", lambda wall: wall.minute == 30, elapsed=True),
    Case("0 */2 * * *", lambda wall: wall.hour % 2 == 0 and wall.minute == 0, elapsed=True),
    Case("*/20 2,3 * * *", lambda wall: wall.hour in (2, 3) and wall.minute % 20 == 0, elapsed=True),
    Case("*/5 1-3 * * *", lambda wall: wall.hour in (1, 2, 3) and wall.minute % 5 == 0, elapsed=True),
]


@cache
def walk(zone: str, day: str, days: int = 2) -> list[tuple[datetime, datetime]]:
    """Every minute of some days before and after the change, as (instant, what the clock on the wall shows)."""
    change = datetime.fromisoformat(day).replace(hour=12, tzinfo=UTC)
    instants = (change + number * MINUTE for number in range(-days * 1440, days * 1440))
    return [(instant, instant.astimezone(ZoneInfo(zone)).replace(tzinfo=None)) for instant in instants]


def expected(case: Case, minutes: list[tuple[datetime, datetime]]) -> list[datetime]:
    """The ticks by Vixie cron's rules, found by looking at every minute."""
    found: set[datetime] = set()
    shown: set[datetime] = set()
    for (_, before), (instant, wall) in pairwise(minutes):
        missing = before + MINUTE
        while missing < wall:
            if not case.elapsed and case.matches(missing):
                found.add(instant + (missing - before - MINUTE))
            missing += MINUTE
        if case.matches(wall) and (case.elapsed or wall not in shown):
            found.add(instant)
        shown.update((before, wall))
    return sorted(instant for instant in found if instant <= minutes[-1][0])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.text)
@pytest.mark.parametrize(("zone", "day"), CHANGES)
def test_ticks_follow_the_wall_clock_through_a_change(case: Case, zone: str, day: str) -> None:
    minutes = walk(zone, day)
    cron = Cron(parse(case.text), ZoneInfo(zone))

    found = [cron.after(minutes[0][0])]
    while found[-1] <= minutes[-1][0]:
        found.append(cron.after(found[-1]))

    assert found[:-1] == expected(case, minutes)


@settings(max_examples=150, deadline=None)
@given(
    change=st.sampled_from(CHANGES),
    minutes=st.sets(st.integers(0, 59), min_size=1, max_size=4),
    hours=st.sets(st.integers(0, 23), min_size=1, max_size=6),
    elapsed=st.booleans(),
    seconds=st.integers(-86400, 86400),
)
def test_the_next_tick_is_right_from_any_instant(
    change: tuple[str, str], minutes: set[int], hours: set[int], elapsed: bool, seconds: int
) -> None:
    # A leading `*` that adds nothing to the hours is how a text asks for elapsed time.
    text = ",".join(map(str, minutes)) + " " + ("*" if elapsed else ",".join(map(str, hours))) + " * * *"
    case = Case(text, lambda wall: wall.minute in minutes and (elapsed or wall.hour in hours), elapsed)
    known = expected(case, walk(*change))
    start = walk(*change)[2 * 1440][0] + timedelta(seconds=seconds)

    found = Cron(parse(text), ZoneInfo(change[0])).after(start)

    assert found == known[bisect_right(known, start)]


def change_in(minutes: list[tuple[datetime, datetime]]) -> tuple[datetime, datetime]:
    """When the clock is turned, and a time late in what it then skips or shows twice."""
    for (_, before), (instant, wall) in pairwise(minutes):
        if wall != before + MINUTE:
            return instant, min(wall, before) + abs(wall - before - MINUTE) * 0.9 + MINUTE
    return minutes[len(minutes) // 2]


@pytest.mark.parametrize(("zone", "day"), CHANGES)
def test_a_rare_tick_at_a_change_is_found_from_far_and_from_near(zone: str, day: str) -> None:
    # Once a year, so that the calendar's next entry is either the one at the change or a year away from it.
    minutes = walk(zone, day, days=6)
    change, moment = change_in(minutes)
    date = f"{moment.day} {moment.month} *"
    cases = [
        Case(f"{moment.minute} {moment.hour} {date}", lambda wall: wall == moment.replace(second=0)),
        Case(f"15,35 {moment.hour} {date}", lambda wall: in_its_hour(wall) and wall.minute in (15, 35)),
        Case(f"*/20 {moment.hour} {date}", lambda wall: in_its_hour(wall) and wall.minute % 20 == 0, elapsed=True),
    ]

    near = [instant for instant, _ in minutes if abs(instant - change) < timedelta(hours=3)]
    starts = [instant for instant, _ in minutes[::211]] + near[::13]

    def in_its_hour(wall: datetime) -> bool:
        return (wall.date(), wall.hour) == (moment.date(), moment.hour)

    for case in cases:
        cron, known = Cron(parse(case.text), ZoneInfo(zone)), expected(case, minutes)
        for start in starts:
            found = cron.after(start.astimezone(ZoneInfo(zone)))
            later = known[bisect_right(known, start) :]
            assert found == later[0] if later else found > minutes[-1][0], f"{case.text} after {start}"


@pytest.mark.parametrize(("zone", "day"), CHANGES)
def test_a_change_costs_a_schedule_of_each_second_only_a_few_looks(
    zone: str, day: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By wall clock, as no field of its hours and minutes starts with `*`: walking the hour would take 3600 looks.
    looks: list[datetime] = []
    look = Calendar.after

    def counted(calendar: Calendar, wall: datetime) -> datetime | None:
        looks.append(wall)
        return look(calendar, wall)

    monkeypatch.setattr(Calendar, "after", counted)
    cron = Cron(parse("* 0-59 0-23 * * *", seconds=True), ZoneInfo(zone))
    change, _ = change_in(walk(zone, day))

    for minutes in range(-90, 90, 7):
        looks.clear()
        cron.after(change + minutes * MINUTE)
        assert len(looks) < 20


@pytest.mark.parametrize("zone", walking.ZONES)
def test_any_crontab_and_policy_ticks_as_a_walk_over_every_minute_says(zone: str) -> None:
    # A sample, another one at each run; `python -m tests.schedule.walking` walks every change of twenty years.
    chance = random.Random()  # noqa: S311  # seeded by pytest-randomly
    for change in chance.sample(walking.changes_of(zone), 5):
        near = (change - MINUTE).astimezone(ZoneInfo(zone)) + MINUTE
        for _ in range(2):
            text = walking.some_text(chance, near)
            gap, repeat = chance.choice(walking.GAPS), chance.choice(walking.REPEATS)
            assert list(walking.differences(zone, change, text, gap, repeat)) == []


@pytest.mark.parametrize(
    ("text", "gap", "repeat", "instants"),
    [
        ("30 2 * 3 *", None, None, ["07 07:30", "08 07:30", "09 06:30"]),
        ("30 2 * 3 *", "run", None, ["07 07:30", "08 07:30", "09 06:30"]),
        ("30 2 * 3 *", "skip", None, ["07 07:30", "09 06:30", "10 06:30"]),
        ("*/30 2 * 3 *", None, None, ["07 07:00", "07 07:30", "09 06:00"]),
        ("*/30 2 8 3 *", "run", None, ["08 07:00", "08 07:30"]),
        ("30 1 * 11 *", None, None, ["01 05:30", "02 06:30", "03 06:30"]),
        ("30 1 * 11 *", None, "both", ["01 05:30", "01 06:30", "02 06:30"]),
        ("*/30 1 * 11 *", None, "first", ["01 05:00", "01 05:30", "02 06:00"]),
    ],
)
def test_a_schedule_says_what_a_change_of_the_clock_does_to_it(
    text: str, gap: Gap | None, repeat: Repeat | None, instants: list[str]
) -> None:
    month = 3 if " 3 " in text else 11
    cron = Cron(parse(text), ZoneInfo("America/New_York"), gap, repeat)
    tick = datetime(2026, month, 7 if month == 3 else 1, tzinfo=UTC)

    assert [f"{(tick := cron.after(tick)):%d %H:%M}" for _ in instants] == instants


def test_what_the_clock_did_to_a_tick_is_told() -> None:
    new_york, berlin = ZoneInfo("America/New_York"), ZoneInfo("Europe/Berlin")
    moved = Cron(parse("30 2 * * *"), new_york)
    twice = Cron(parse("0 2 * * *"), berlin, repeat="both")

    assert moved.note(datetime(2026, 3, 8, 7, 30, tzinfo=UTC)) == "moved: the clock skips 02:30"
    assert moved.note(datetime(2026, 3, 9, 6, 30, tzinfo=UTC)) == ""
    assert twice.note(datetime(2026, 10, 25, 0, tzinfo=UTC)) == "first of two 02:00: the clock is turned back"
    assert twice.note(datetime(2026, 10, 25, 1, tzinfo=UTC)) == "second 02:00: the clock is turned back"
    assert Cron(parse("*/30 * * * *"), new_york).note(datetime(2026, 3, 8, 7, 30, tzinfo=UTC)) == ""


@pytest.mark.parametrize(
    ("text", "gap", "warning"),
    [
        ("30 2 * * *", None, "on 2026-03-08 the clock skips 02:30: it runs at 03:30 instead"),
        ("30 2 * * *", "skip", "on 2026-03-08 the clock skips 02:30: it does not run then"),
        ("*/20 2 * * *", None, "on 2026-03-08 the clock skips 02:00: it does not run then"),
        ("30 2 10 3 *", None, "on 2030-03-10 the clock skips 02:30: it runs at 03:30 instead"),
        ("30 3 * * *", None, None),
        ("30 * * * *", None, None),
    ],
)
def test_a_time_that_falls_into_a_gap_is_warned_of_with_the_next_such_day(
    text: str, gap: Gap | None, warning: str | None
) -> None:
    cron = Cron(parse(text), ZoneInfo("America/New_York"), gap)

    assert gap_warning(cron, datetime(2026, 1, 1, tzinfo=UTC)) == warning


def test_a_single_instant_ticks_once() -> None:
    noon = datetime(2026, 3, 31, 12, tzinfo=UTC)

    assert At(noon).after(noon - MINUTE) == noon
    assert At(noon).after(noon) == NEVER


def test_a_time_that_the_clock_always_skips_never_ticks() -> None:
    # The second Sunday of March is when New York's clocks change.
    new_york = ZoneInfo("America/New_York")

    assert Cron(parse("30 2 * 3 sun#2"), new_york, gap="skip").after(datetime(2026, 1, 1, tzinfo=UTC)) == NEVER


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])
def test_a_monthly_schedule_has_twelve_ticks_a_year(zone: str) -> None:
    # APScheduler's own trigger loses the whole of April here.
    cron, tick, months = Cron(parse("0 0 1 * *"), ZoneInfo(zone)), datetime(2025, 12, 31, tzinfo=UTC), []
    for _ in range(12):
        tick = cron.after(tick)
        months.append(tick.astimezone(ZoneInfo(zone)).strftime("%b %d %H:%M"))

    assert [month[:3] for month in months] == list(month_abbr)[1:]
    assert {month[4:] for month in months} == {"01 00:00"}


def test_ticks_are_utc_whatever_zone_they_are_asked_in() -> None:
    new_york = ZoneInfo("America/New_York")

    tick = Cron(parse("0 9 * * *"), new_york).after(datetime(2026, 7, 1, 8, tzinfo=new_york))

    assert tick == datetime(2026, 7, 1, 13, tzinfo=UTC)
    assert tick.tzinfo is UTC


def test_seconds_tick_within_the_minute() -> None:
    cron, tick = Cron(parse("*/25 30 9 * * *", seconds=True), UTC), datetime(2026, 1, 1, tzinfo=UTC)
    seconds = [(tick := cron.after(tick)).second for _ in range(4)]

    assert seconds == [0, 25, 50, 0]


def test_an_instant_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="has no time zone, expected an aware datetime"):
        Every(5).after(datetime(2026, 1, 1))  # noqa: DTZ001  # what the test is about


@given(
    period=st.integers(1_000_000, 10**13).map(lambda microseconds: microseconds / 1_000_000),
    instant=st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
)
def test_an_interval_ticks_at_whole_multiples_since_1970(period: float, instant: datetime) -> None:
    tick = Every(period).after(instant)

    assert timedelta(0) < tick - instant <= timedelta(seconds=period)
    assert (tick - EPOCH) % timedelta(seconds=period) == timedelta(0)


def test_a_tick_is_not_after_itself() -> None:
    first = Every(2).after(EPOCH)

    assert Every(2).after(first) == EPOCH + timedelta(seconds=4)
