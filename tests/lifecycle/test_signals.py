"""Signals: at any moment of boot, to pause and go on, to tell."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

import psycopg
import pytest

from tests.factories import InThread, scalar
from tests.lifecycle.conftest import WAIT, StartWorker, done, row, running_in, send
from tests.waiting import wait_until
from worker.runtime.signals import Stop, StoppedEarly, stop_on_signals

# Later than most boots on a busy machine; the moments between are as good as any.
MOMENTS = [0.02, 0.2, 0.4, 0.6, 0.8, 1.0, 1.4, 2.0]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment_of_boot_ends_it_cleanly(
    start_worker: StartWorker, database: str, db: psycopg.Connection, moment: float
) -> None:
    """Before Python has read our first line the signal itself ends it; from then on it is a success."""
    worker = start_worker(database)
    time.sleep(moment)  # the moment is the point

    assert worker.end() in (0, -signal.SIGTERM)
    assert "Traceback" not in worker.said
    assert scalar(db, "SELECT count(*) FROM worker.worker") == 0
    assert scalar(db, "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'carpool %%'"
                      " AND datname = current_database()") == 0  # fmt: skip


def test_a_request_while_modules_are_imported_ends_the_import(start_worker: StartWorker, database: str) -> None:
    worker = start_worker(database, jobs="tests.lifecycle.slow_jobs")
    worker.event("slow_jobs.importing")

    assert worker.end() == 0
    assert worker.event("worker.stopped")["seconds"] < 2


def test_a_paused_worker_claims_nothing_until_it_goes_on(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    worker = start_worker(database).running()
    worker.send(signal.SIGTSTP)
    wait_until(lambda: "paused" in [event.get("stage") for event in worker.events], WAIT, "the pause")
    job_id = send(noted, "note", word="hello")
    # Claims come before the next heartbeat, if they come at all.
    beaten = "SELECT heartbeat_at FROM worker.worker"
    before = scalar(noted, beaten)
    wait_until(lambda: scalar(noted, beaten) > before, WAIT, "a heartbeat")
    assert row(noted, job_id) == ("available", 0)

    worker.send(signal.SIGCONT)

    assert done(noted, job_id) == "done"
    assert worker.end() == 0


def test_a_paused_worker_can_be_stopped(start_worker: StartWorker, database: str) -> None:
    worker = start_worker(database).running()
    worker.send(signal.SIGTSTP)

    assert worker.end() == 0


def test_sigusr2_logs_the_running_jobs_and_every_stack(
    start_worker: StartWorker, database: str, db: psycopg.Connection
) -> None:
    worker = start_worker(database).running()
    job_id = send(db, "think", word="sesame", seconds=60)
    running_in(db, job_id)

    def asked() -> bool:
        # A claim comes a moment before the body of its job.
        worker.send(signal.SIGUSR2)
        return any("in think" in event.get("stack", "") for event in worker.events)

    wait_until(asked, WAIT, "the job's own stack")

    assert worker.event("worker.running_job")["job_id"] == str(job_id)
    worker.send(signal.SIGTERM)
    worker.send(signal.SIGTERM)
    worker.wait()
    stacks = {event["thread"]: event["stack"] for event in worker.events if event["event"] == "worker.stack"}
    assert {"MainThread", "dispatcher", "watchdog", "job-1"} <= set(stacks)
    assert "sesame" not in worker.said


# The requests, in this process


def test_a_handler_takes_no_lock_of_the_thread_that_it_interrupts() -> None:
    """It would wait for itself: `threading.Event.wait` holds one for a moment, so thousands of rounds meet it."""

    def bombard() -> None:
        for _ in range(5000):
            os.kill(os.getpid(), signal.SIGUSR1)

    with stop_on_signals() as stop:
        stop.on(signal.SIGUSR1, lambda: None)
        sender = InThread(bombard)
        while sender.is_running:
            assert not stop.wait(0.0001)
        sender.result()


def test_other_requests_are_answered_on_the_waiting_thread() -> None:
    stop, answered = Stop(), []
    stop.on(signal.SIGUSR1, lambda: answered.append("told"))
    stop.tell(signal.SIGUSR1)
    stop.tell(signal.SIGUSR2)

    assert not stop.wait(0.05)
    assert answered == ["told"]


def test_a_second_request_is_a_hurry() -> None:
    stop = Stop()
    stop.ask()
    assert (stop.wait(0), stop.hurry) == (True, False)

    stop.ask()
    assert stop.hurry


def badly_written_module(stop: Stop) -> None:
    with suppress(BaseException):
        stop.ask()


def test_a_request_ends_a_block_that_may_be_ended_even_if_the_block_swallows_it() -> None:
    stop = Stop()

    with pytest.raises(StoppedEarly), stop.raising():
        badly_written_module(stop)


def test_a_request_that_came_before_ends_it_too() -> None:
    stop = Stop()
    stop.ask()

    with pytest.raises(StoppedEarly), stop.raising():
        pytest.fail("the block was entered")
