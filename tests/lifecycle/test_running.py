"""`worker run` on real jobs: all of them, those of some queues, and never more sessions than it may have."""

from __future__ import annotations

import threading

import psycopg

from tests.factories import InThread, column, scalar
from tests.lifecycle.conftest import StartWorker, done, row, send
from tests.waiting import wait_until
from worker import clock

KINDS = ("note", "note_async", "note_by_pool")


MINE = "datname = current_database() AND application_name LIKE 'carpool%%'"
COUNT = f"SELECT count(*) FROM pg_stat_activity WHERE {MINE}"  # noqa: S608
KILL_ONE = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {MINE} ORDER BY random() LIMIT 1"  # noqa: S608
BETWEEN_KILLS = 0.25


class Sampler:
    """Counts the workers' sessions as fast as it can, and kills one of them every now and then."""

    def __init__(self, database: str) -> None:
        self.counts: set[int] = set()
        self._over = threading.Event()
        self._thread = InThread(lambda: self._run(database))

    def stop(self) -> None:
        self._over.set()
        self._thread.result()

    def _run(self, database: str) -> None:
        with psycopg.connect(database, autocommit=True) as db:
            kill_at = 0.0
            while not self._over.is_set():
                self.counts.add(scalar(db, COUNT))
                if clock.monotonic() >= kill_at:
                    kill_at = clock.monotonic() + BETWEEN_KILLS
                    db.execute(KILL_ONE.encode())


def test_every_kind_of_job_runs(start_worker: StartWorker, database: str, noted: psycopg.Connection) -> None:
    jobs = [send(noted, kind, word=kind) for kind in KINDS]
    start_worker(database).running()

    assert [done(noted, job_id) for job_id in jobs] == ["done"] * 3
    assert sorted(column(noted, "SELECT word FROM note")) == sorted(KINDS)


def test_until_empty_ends_with_success_when_all_is_done(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    for number in range(20):
        send(noted, "note", word=str(number))

    assert start_worker(database, "--until-empty").wait() == 0
    assert scalar(noted, "SELECT count(*) FROM note") == 20


def test_until_empty_does_not_wait_for_what_is_due_later(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    later = send(noted, "note", word="later", delay=3600.0)

    assert start_worker(database, "--until-empty").wait() == 0
    assert row(noted, later) == ("scheduled", 0)


def test_only_the_named_queues_are_served(start_worker: StartWorker, database: str, noted: psycopg.Connection) -> None:
    other = send(noted, "note", word="other")
    mine = send(noted, "note_by_mail", "mail", word="mine")

    assert start_worker(database, "--queues", "mail", "--until-empty").wait() == 0
    assert done(noted, mine) == "done"
    assert row(noted, other) == ("available", 0)


def test_a_worker_never_has_more_sessions_than_its_pool_size(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    """Counted by the server's own books, while one session after the other is killed."""
    start_worker(database, "--pool-size", "2", "--slots", "4").running()
    sampler = Sampler(database)
    try:
        for number in range(150):
            send(noted, KINDS[number % 3], word=str(number))
        wait_until(lambda: scalar(noted, "SELECT count(DISTINCT word) FROM note") == 150, 60, "the end of all jobs")
    finally:
        sampler.stop()

    assert max(sampler.counts) == 2


def test_two_workers_share_the_jobs_and_run_each_once(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    for number in range(300):
        send(noted, "note", word=str(number))
    for worker in [start_worker(database, "--until-empty") for _ in range(2)]:
        assert worker.wait() == 0

    assert sorted(column(noted, "SELECT word::int FROM note")) == list(range(300))
