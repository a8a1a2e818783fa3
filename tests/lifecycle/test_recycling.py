"""Recycling: a process that has run enough jobs, or has grown too large, ends in order and says that it be replaced."""

from __future__ import annotations

import psycopg

from tests.factories import column, scalar
from tests.lifecycle.conftest import StartWorker, busy_in_sql, send
from worker import exits


def test_a_worker_ends_after_so_many_jobs(start_worker: StartWorker, database: str, noted: psycopg.Connection) -> None:
    jobs = [send(noted, "note", word=str(number)) for number in range(40)]
    worker = start_worker(database, "--max-jobs", "3", "--slots", "1")

    assert worker.wait() == exits.RECYCLED
    ended = scalar(noted, "SELECT count(*) FROM worker.job_history WHERE outcome = 'done'")
    # Those that had been claimed for its slot, and a few that were claimed ahead of it.
    assert 3 <= ended < len(jobs)
    worn = worker.event("worker.worn")
    assert (worn["jobs"] >= 3, worn["max_jobs"]) == (True, 3)


def test_what_it_has_not_begun_is_left_to_others_with_its_attempt(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    for number in range(40):
        send(noted, "note", word=str(number))
    start_worker(database, "--max-jobs", "3").wait()
    start_worker(database, "--until-empty").wait()

    assert sorted(column(noted, "SELECT word::int FROM note")) == list(range(40))
    assert column(noted, "SELECT DISTINCT attempt FROM worker.job_history") == [1]


def test_a_job_that_runs_when_its_worker_is_worn_is_let_finish(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    worker = start_worker(database, "--max-jobs", "2").running()
    send(noted, "work", word="long", seconds=2)
    busy_in_sql(noted)
    send(noted, "note", word="short")

    assert worker.wait() == exits.RECYCLED
    assert sorted(column(noted, "SELECT outcome FROM worker.job_history")) == ["done", "done"]


def test_a_worker_that_has_grown_too_large_ends(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    worker = start_worker(database, "--max-memory", "400MiB").running()
    send(noted, "grow", mebibytes=500)

    assert worker.wait() == exits.RECYCLED
    worn = worker.event("worker.worn")
    assert worn["memory"] > worn["max_memory"] == 400 * 1024 * 1024
    assert column(noted, "SELECT outcome FROM worker.job_history") == ["done"]
