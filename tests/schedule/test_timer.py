"""The timer: our triggers on APScheduler's thread."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from worker.schedule.timer import _Ticking
from worker.schedule.trigger import Every

NOON = datetime(2026, 3, 31, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def test_a_machine_that_slept_for_a_week_wakes_to_one_call() -> None:
    # APScheduler asks for one time after the other until it gets one that is to come.
    slept_from = NOON - timedelta(days=7)

    assert _Ticking(Every(1)).get_next_fire_time(slept_from, NOON) == NOON + SECOND


def test_a_clock_that_was_put_back_repeats_no_call() -> None:
    called_for = NOON + timedelta(hours=1)

    assert _Ticking(Every(1)).get_next_fire_time(called_for, NOON) == called_for + SECOND
