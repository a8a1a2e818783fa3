"""What the policies make of due ticks: no database, only time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.schedule.standins import schedule
from worker.schedule import backlog as module
from worker.schedule.backlog import MAX_TICKS, PROMPT, Backlog, Entry, backlog
from worker.schedule.crontab import parse
from worker.schedule.declaration import Missed
from worker.schedule.scheduler import HEARTBEAT
from worker.schedule.trigger import Cron, Every

NOON = datetime(2026, 3, 31, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)


def due(now: datetime, since: datetime, *, paused: bool = False, **options: Any) -> Backlog:
    return backlog(schedule(**options), last_tick=since, now=now, paused=paused)


def told(entries: tuple[Entry, ...]) -> list[tuple[str, str, str | None]]:
    return [(entry.tick.strftime("%H:%M"), entry.outcome, entry.reason) for entry in entries]


def test_nothing_is_due_before_the_next_tick() -> None:
    assert due(NOON - timedelta(microseconds=1), NOON - MINUTE) == Backlog(())


def test_a_tick_is_due_at_its_instant() -> None:
    assert due(NOON, NOON - MINUTE) == Backlog((Entry(NOON, "fired", 0.0),))


@pytest.mark.parametrize("missed", ["skip", "last", "all"])
@pytest.mark.parametrize("grace", [0.0, 3600.0])
def test_a_few_seconds_late_is_not_missed(missed: Missed, grace: float) -> None:
    found = due(NOON + PROMPT * SECOND, NOON - MINUTE, missed=missed, grace=grace)

    assert found == Backlog((Entry(NOON, "fired", PROMPT),))


def test_what_the_heartbeat_finds_is_not_missed() -> None:
    assert HEARTBEAT < PROMPT


# From 09:30 nothing ran; at 12:00:20 the ticks of 10:00, 11:00 and 12:00 are due, the last of them by 20 s.
@pytest.mark.parametrize(
    ("missed", "grace", "expected"),
    [
        (
            "skip",
            7300.0,
            [("10:00", "skipped", "missed"), ("11:00", "skipped", "missed"), ("12:00", "skipped", "missed")],
        ),
        ("last", 7300.0, [("10:00", "coalesced", None), ("11:00", "coalesced", None), ("12:00", "late", None)]),
        ("all", 7300.0, [("10:00", "late", None), ("11:00", "late", None), ("12:00", "late", None)]),
        (
            "skip",
            3700.0,
            [("10:00", "skipped", "grace"), ("11:00", "skipped", "missed"), ("12:00", "skipped", "missed")],
        ),
        ("last", 3700.0, [("10:00", "skipped", "grace"), ("11:00", "coalesced", None), ("12:00", "late", None)]),
        ("all", 3700.0, [("10:00", "skipped", "grace"), ("11:00", "late", None), ("12:00", "late", None)]),
        ("last", 19.0, [("10:00", "skipped", "grace"), ("11:00", "skipped", "grace"), ("12:00", "skipped", "grace")]),
        ("all", 20.0, [("10:00", "skipped", "grace"), ("11:00", "skipped", "grace"), ("12:00", "late", None)]),
    ],
)
def test_missed_ticks_follow_policy_and_grace(
    missed: Missed, grace: float, expected: list[tuple[str, str, str | None]]
) -> None:
    found = due(NOON + 20 * SECOND, NOON - 2.5 * HOUR, trigger=Every(3600), missed=missed, grace=grace)

    assert told(found.entries) == expected


def test_missed_ticks_are_made_up_for_by_one_that_is_in_time() -> None:
    found = due(NOON + SECOND, NOON - 2.5 * HOUR, trigger=Every(3600), grace=86400.0)

    assert told(found.entries) == [("10:00", "coalesced", None), ("11:00", "coalesced", None), ("12:00", "fired", None)]
    assert {entry.coalesced_into for entry in found.entries[:2]} == {NOON}


def test_of_several_ticks_in_time_the_first_makes_up_for_the_missed() -> None:
    found = due(NOON, NOON - 25 * SECOND, trigger=Every(5))

    assert [entry.outcome for entry in found.entries] == ["coalesced"] + ["fired"] * 4
    assert found.entries[0].coalesced_into == found.entries[1].tick


def test_five_days_down_across_a_change_of_the_clock_give_five_midnights() -> None:
    midnight = Cron(parse("0 0 * * *"), ZoneInfo("Europe/Berlin"))

    found = due(NOON, NOON - timedelta(days=5), trigger=midnight, missed="all", grace=6 * 86400.0)

    assert [f"{entry.tick:%d %H:%M}" for entry in found.entries] == [
        "26 23:00",
        "27 23:00",
        "28 23:00",
        "29 22:00",
        "30 22:00",
    ]


def test_ticks_of_a_pause_are_skipped_and_say_so_however_late() -> None:
    found = due(NOON, NOON - 2.5 * HOUR, trigger=Every(3600), missed="all", grace=0.0, paused=True)

    assert told(found.entries) == [(hour, "skipped", "paused") for hour in ("10:00", "11:00", "12:00")]


def test_more_ticks_than_one_transaction_takes_are_left_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TICKS", 3)

    found = due(NOON + 20 * SECOND, NOON - 5 * MINUTE, missed="all")

    assert told(found.entries) == [("11:56", "late", None), ("11:57", "late", None), ("11:58", "late", None)]
    assert found.more


def test_missed_ticks_too_many_to_list_are_coalesced_by_one_row() -> None:
    hourly_seconds = Cron(parse("* 0-29 * * * *", seconds=True), ZoneInfo("Europe/Berlin"))

    (found, heir) = due(NOON + 2400 * SECOND, NOON - SECOND, trigger=hourly_seconds, grace=7200.0).entries

    assert heir == Entry(NOON + 1799 * SECOND, "late", 601.0)
    assert found == Entry(NOON, "coalesced", 2400.0, coalesced_into=heir.tick, until=heir.tick)


def test_a_thousand_missed_ticks_are_still_listed_one_by_one() -> None:
    found = due(NOON, NOON - 1015 * SECOND, trigger=Every(1), missed="skip")

    assert [entry.outcome for entry in found.entries] == ["skipped"] * 999 + ["fired"] * 16


@pytest.mark.parametrize(("paused", "reason"), [(False, "grace"), (True, "paused")])
def test_one_row_stands_for_what_is_too_long_to_list(
    monkeypatch: pytest.MonkeyPatch, paused: bool, reason: str
) -> None:
    monkeypatch.setattr(module, "MAX_LISTED", 3)

    found = due(NOON + 20 * SECOND, NOON - timedelta(days=30), trigger=Every(1), grace=0.0, paused=paused)

    dropped = [entry for entry in found.entries if entry.reason == reason]
    end = found.entries[1].tick if not paused else NOON + 20 * SECOND + timedelta(microseconds=1)
    assert [(entry.tick, entry.until) for entry in dropped] == [(NOON - timedelta(days=30) + SECOND, end)]


def test_a_long_downtime_does_not_delay_the_ticks_that_can_still_fire() -> None:
    # A month of seconds: listing each would take minutes of the one connection that also renews the leases.
    found = due(NOON, NOON - timedelta(days=30), trigger=Every(1), grace=0.0)

    assert found.entries[-1] == Entry(NOON, "fired", 0.0)
    assert len(found.entries) < 2 * MAX_TICKS
