"""The clock for tests: a year of schedules in seconds, on a real Postgres that lives in the same time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import dramatiq
import psycopg
import pytest

from worker import PostgresBroker, cron, every
from worker.schedule import declaration, registered
from worker.testing import ScheduleClock

START = datetime(2026, 1, 1, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")


def nothing() -> None: ...


@pytest.fixture(autouse=True)
def _schedules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three schedules of a plain actor each."""
    monkeypatch.setattr(declaration, "_registry", {})
    broker = PostgresBroker(schema="worker")
    for name, decorate in (
        ("nightly", cron("30 2 * * *", tz="Europe/Berlin")),
        ("monthly", cron("0 0 1 * *", tz="America/New_York")),
        ("weekly", cron("0 9 * * mon#1,mon#3", tz="Australia/Lord_Howe", overlap="allow")),
    ):
        decorate(dramatiq.actor(actor_name=name, broker=broker)(nothing))
    yield
    broker.close()


def test_a_year_of_schedules_runs_in_seconds(schedule_clock: ScheduleClock) -> None:
    begun = time.process_time()

    happened = schedule_clock.advance(days=365)

    assert Counter(each.schedule for each in happened) == {"nightly": 365, "monthly": 12, "weekly": 24}
    assert {each.entry.outcome for each in happened} == {"fired"}
    assert schedule_clock.now == datetime(2027, 1, 1, tzinfo=UTC)
    # Ours alone: how fast the server is on a busy machine is not what this is about.
    assert time.process_time() - begun < 10.0


def test_the_database_lives_in_the_clocks_time(schedule_clock: ScheduleClock, db: psycopg.Connection) -> None:
    schedule_clock.advance(days=2)

    rows = db.execute("SELECT tick, decided_at FROM worker.tick WHERE schedule = 'nightly' ORDER BY tick").fetchall()
    assert rows == [(datetime(2026, 1, day, 1, 30, tzinfo=UTC),) * 2 for day in (1, 2)]


def test_every_run_can_be_acted_upon(schedule_clock: ScheduleClock) -> None:
    ran: list[tuple[str, str]] = []
    schedule_clock.on_fire = lambda schedule, tick, _: ran.append(
        (schedule.name, f"{tick.astimezone(BERLIN):%d %b %H:%M}")
    )

    schedule_clock.move_to(datetime(2026, 3, 28, tzinfo=UTC))
    ran.clear()
    schedule_clock.advance(days=3)

    assert ran == [("nightly", "28 Mar 02:30"), ("nightly", "29 Mar 03:30"), ("nightly", "30 Mar 02:30")]


def test_a_downtime_is_made_up_for(schedule_clock: ScheduleClock) -> None:
    schedule_clock.sleep(days=3, hours=2)

    happened = schedule_clock.advance(seconds=1)

    nightly = [each.entry.outcome for each in happened if each.schedule == "nightly"]
    assert nightly == ["skipped", "skipped", "skipped", "late"]


def test_a_pause_is_in_the_ledger(schedule_clock: ScheduleClock, db: psycopg.Connection) -> None:
    schedule_clock.pause("nightly")
    schedule_clock.advance(days=2)
    schedule_clock.resume("nightly")
    schedule_clock.advance(days=1)

    rows: Any = db.execute("SELECT outcome FROM worker.tick WHERE schedule = 'nightly' ORDER BY tick").fetchall()
    assert rows == [("skipped",), ("skipped",), ("fired",)]


def test_jobs_that_are_not_finished_overlap(db: psycopg.Connection) -> None:
    lasting = ScheduleClock(db, start=START, finish=False)

    happened = lasting.advance(days=3)

    assert [each.entry.outcome for each in happened if each.schedule == "nightly"] == ["fired", "skipped", "skipped"]


def test_schedules_of_its_own_choice(db: psycopg.Connection) -> None:
    every(hours=6)(dramatiq.actor(actor_name="often", broker=PostgresBroker(schema="worker"))(nothing))
    often = [schedule for schedule in registered() if schedule.name == "often"]

    happened = ScheduleClock(db, start=START - timedelta(seconds=1), schedules=often).advance(days=1)

    assert [each.schedule for each in happened] == ["often"] * 4
