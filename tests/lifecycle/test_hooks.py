"""A middleware's hook that never returns: reported, its job settled as failed, and the process ends in order."""

from __future__ import annotations

import signal
import time

import psycopg
import pytest

from tests.factories import column
from tests.lifecycle.conftest import StartWorker, busy_in_sql, done, row, running_in, send

SNARED = "tests.lifecycle.snared_jobs"
STUCK = {"WORKER_STUCK": "2"}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("kind", ["", "_async"])
def test_a_hook_that_never_returns_is_reported_and_ends_the_process(
    start_worker: StartWorker, database: str, noted: psycopg.Connection, place: str, kind: str
) -> None:
    worker = start_worker(database, jobs=SNARED, **STUCK).running()
    job_id = send(noted, f"snared_{place}{kind}")

    assert worker.wait() == 70
    [report] = [event for event in worker.events if event["event"] == "job.stuck"]
    where = {"before": "before its body", "after": "behind its body"}[place]
    assert (report["job_id"], report["reason"]) == (str(job_id), f"in its hooks {where}")
    assert f"in {place}_process_message" in report["stack"]
    assert done(noted, job_id) == "dead"
    assert f"HookStuck: a hook {where} never returned" in column(noted, "SELECT error FROM worker.job_dead")[0]
    assert column(noted, "SELECT word FROM note") == []


def test_its_attempt_counts_so_that_it_cannot_take_one_worker_after_the_other_along(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    worker = start_worker(database, jobs=SNARED, **STUCK).running()
    job_id = send(noted, "snared_after_and_retried")

    assert worker.wait() == 70
    assert row(noted, job_id) == ("scheduled", 1)


def test_the_others_are_let_finish(start_worker: StartWorker, database: str, noted: psycopg.Connection) -> None:
    worker = start_worker(database, jobs=SNARED, **STUCK).running()
    send(noted, "snared_before")
    job_id = send(noted, "beside", seconds=8)
    busy_in_sql(noted)
    worker.event("worker.stuck")

    assert row(noted, job_id) == ("running", 1)
    assert worker.wait() == 70
    assert done(noted, job_id) == "done"


def test_a_stop_does_not_wait_for_a_hook_beyond_its_grace(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    """It is too early to say that it is stuck: its job is given back."""
    worker = start_worker(database, "--grace", "0.2", jobs=SNARED, WORKER_STUCK="60").running()
    job_id = send(noted, "snared_before")
    running_in(noted, job_id)
    began = time.monotonic()

    assert worker.end(signal.SIGTERM) == 0
    assert time.monotonic() - began < 20
    assert row(noted, job_id) == ("available", 0)
