"""The scheduler's thread is looked after like the others: dead, it ends the process, by name."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from worker import clock, exits
from worker.config import Config
from worker.queue.schema import Schema
from worker.runtime.reload import Reload
from worker.runtime.signals import Stop
from worker.runtime.supervision import Supervision
from worker.runtime.vitals import Vitals, dead_unless
from worker.runtime.wear import Wear
from worker.schedule import Scheduler


@pytest.fixture
def scheduler() -> Any:
    return Scheduler([], submit=lambda work: Future(), schema=Schema())


def test_a_scheduler_is_alive_before_it_is_entered_and_after_it_is_left(scheduler: Scheduler) -> None:
    before = scheduler.is_alive
    with scheduler:
        within = scheduler.is_alive

    assert (before, within, scheduler.is_alive) == (True, True, True)


def _end_the_thread(scheduler: Scheduler) -> None:
    def die() -> None:
        raise SystemExit

    assert scheduler._timer is not None
    inner: Any = scheduler._timer._scheduler
    inner._process_jobs = die
    inner._event.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_timer_ends_the_worker_within_two_seconds_and_is_named(scheduler: Scheduler) -> None:
    living: Any = SimpleNamespace(failure=None)
    vitals = Vitals()
    config = Config(database_url="postgresql:///none")
    wear = Wear(None, None, full=list)
    supervision = Supervision(Stop(), vitals, living, living, living, living, config, wear, Reload())
    begun = clock.monotonic()

    watching = vitals.watching(**{"schedule-timer": dead_unless(lambda: scheduler.is_alive)})
    with scheduler, watching, capture_logs() as logs:
        _end_the_thread(scheduler)
        code = supervision.run()

    assert code == exits.INTERNAL
    assert clock.monotonic() - begun < 2.0
    assert [entry["threads"] for entry in logs if entry["event"] == "worker.thread_died"] == [["schedule-timer"]]
