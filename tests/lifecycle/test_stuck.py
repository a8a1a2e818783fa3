"""A job that heeds no interrupt: reported, settled as if it had, and the process ends in order for its sake."""

from __future__ import annotations

import signal
import time

import psycopg
import pytest

from tests.factories import column, scalar
from tests.lifecycle.conftest import WAIT, Gate, StartWorker, busy_in_sql, done, row, running_in, send
from tests.waiting import wait_until

STUCK = {"WORKER_STUCK": "4"}
DEAF = ["deaf", "deaf_async", "deaf_in_python", "deaf_in_query", "deaf_on_the_loop"]


@pytest.mark.parametrize("actor", DEAF)
def test_a_stuck_job_is_reported_with_its_stack_and_ends_the_process(
    start_worker: StartWorker, database: str, noted: psycopg.Connection, actor: str
) -> None:
    worker = start_worker(database, **STUCK).running()
    job_id = send(noted, actor)

    assert worker.wait() == 70
    [report] = [event for event in worker.events if event["event"] == "job.stuck"]
    assert (report["job_id"], report["reason"]) == (str(job_id), "TimeLimitExceeded")
    assert f"in {actor}\n" in report["stack"]
    assert done(noted, job_id) == "dead"
    assert "TimeLimitExceeded: it went on after its interrupt" in column(noted, "SELECT error FROM worker.job_dead")[0]


def test_a_coroutine_that_keeps_the_loop_from_others_is_noticed_within_two_seconds(
    start_worker: StartWorker, database: str, noted: psycopg.Connection, gate: Gate
) -> None:
    """Long before its own time is up; and by the worker's own clock: a machine that is busy makes everything later."""
    worker = start_worker(database).running()
    job_id = send(noted, "keep_the_loop", gate=gate.path)
    noticed = worker.event("job_loop.stuck")
    other_id = send(noted, "note_async", word="hello")
    busy = done(noted, send(noted, "note", word="hello")), row(noted, other_id)
    gate.open()

    # The main thread looks twice a second, and may be late once.
    assert 1.0 <= noticed["busy_for"] < 2.0
    assert (noticed["job_id"], noticed["actor"]) == (str(job_id), "keep_the_loop")
    assert "in keep_the_loop\n" in noticed["stack"]
    assert busy == ("done", ("available", 0))
    worker.event("job_loop.goes_on")
    assert {done(noted, each) for each in (job_id, other_id)} == {"done"}
    assert worker.end() == 0
    assert [event["event"] for event in worker.events if event["event"].startswith("job_loop.")] == [
        "job_loop.stuck",
        "job_loop.goes_on",
    ]


def test_a_stop_gives_back_at_once_what_such_a_loop_has_not_begun(
    start_worker: StartWorker, database: str, noted: psycopg.Connection, gate: Gate
) -> None:
    worker = start_worker(database).running()
    job_id = send(noted, "keep_the_loop", gate=gate.path)
    running_in(noted, job_id)
    # Claimed before it is known that something keeps the loop.
    other_id = send(noted, "note_async", word="hello")
    running_in(noted, other_id)
    worker.send(signal.SIGTERM)

    wait_until(lambda: row(noted, other_id) == ("available", 0), WAIT, "its release")
    assert row(noted, job_id) == ("running", 1)
    gate.open()
    assert worker.wait() == 0
    assert (done(noted, job_id), worker.event("worker.drained")["left"]) == ("done", 0)
    assert row(noted, other_id) == ("available", 0)


def test_asyncio_does_not_complain_of_a_stuck_coroutine(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    worker = start_worker(database, **STUCK).running()
    send(noted, "deaf_async")

    assert worker.wait() == 70
    assert not any(word in worker.said for word in ("was destroyed", "never awaited", "Exception ignored"))


def test_the_others_are_let_finish_before_the_process_ends(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    worker = start_worker(database, **STUCK).running()
    send(noted, "deaf")
    job_id = send(noted, "work", word="hello", seconds=7)
    busy_in_sql(noted)
    worker.event("worker.stuck")

    assert row(noted, job_id) == ("running", 1)
    assert worker.wait() == 70
    assert done(noted, job_id) == "done"


def test_the_end_does_not_wait_for_the_stuck_job_itself(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    worker = start_worker(database, **STUCK).running()
    send(noted, "deaf")
    worker.event("worker.stuck")
    began = time.monotonic()

    worker.wait()

    assert time.monotonic() - began < 8  # of a grace of 25 s


def test_a_thread_that_a_job_has_left_does_not_keep_the_process(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    """The interpreter joins the threads of executors at its end, however long that takes."""
    worker = start_worker(database, **STUCK).running()
    job_id = send(noted, "deaf_in_thread")
    running_in(noted, job_id)

    worker.send(signal.SIGTERM)

    assert worker.wait() == 0


def test_a_job_that_keeps_the_interpreter_ends_the_process_where_it_stands(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    """Nobody is left to do it in order; the others are rescued."""
    worker = start_worker(database, **STUCK).running()
    job_id = send(noted, "deaf_with_the_interpreter")

    assert worker.wait() == 1
    assert "sample_jobs.py" in worker.said
    assert row(noted, job_id) == ("running", 1)


def test_a_cancelled_job_that_is_stuck_is_dead_as_cancelled(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    worker = start_worker(database, **STUCK).running()
    job_id = send(noted, "hang", seconds=600)
    running_in(noted, job_id)
    noted.execute("UPDATE worker.job SET cancelled_at = now()")

    assert worker.wait() == 70
    assert done(noted, job_id) == "dead"
    assert scalar(noted, "SELECT error FROM worker.job_dead") == "cancelled"
    wait_until(lambda: column(noted, "SELECT id FROM worker.worker") == [], 10, "the end of its row")
