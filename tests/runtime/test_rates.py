"""Rates in running workers: never more starts than allowed, and the next begins as soon as it may."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests.factories import scalar
from tests.running import outcome, running_worker
from tests.waiting import wait_until
from worker import PostgresBroker, Rate, job

BOOT = 60.0
MOST = """
    SELECT max(starts) FROM (
        SELECT count(*) OVER (ORDER BY started_at RANGE BETWEEN '1999999 us' PRECEDING AND CURRENT ROW) AS starts
        FROM worker.job_history
    ) AS windows"""


ROWS = """
    INSERT INTO worker.job (queue, actor, args, options)
    SELECT 'rated', 'rated_visit', '{}', '{"lane": {"rate": {"name": "rated_visit", "size": 4, "per": 2}}}'
    FROM generate_series(1, 14)"""


@contextmanager
def process(database: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "WORKER_DATABASE_URL": database, "WORKER_LOG_LEVEL": "warning"}
    command = [sys.executable, "-m", "worker", "run", "--jobs", "tests.runtime.rated_jobs", "--pool-size", "3"]
    with subprocess.Popen(command, env=environment, cwd=Path(__file__).parents[2]) as started:
        try:
            yield started
        finally:
            started.terminate()
            started.wait(BOOT)


def test_three_processes_keep_to_the_rate_together_and_after_one_was_killed(
    database: str, db: psycopg.Connection
) -> None:
    with process(database) as victim, process(database), process(database):
        wait_until(lambda: scalar(db, "SELECT count(*) FROM worker.worker") == 3, BOOT, "the workers")
        db.execute(ROWS)
        wait_until(lambda: scalar(db, "SELECT count(*) FROM worker.job_history") >= 4, BOOT, "the first jobs")
        victim.kill()
        wait_until(lambda: scalar(db, "SELECT count(*) FROM worker.job_history") == 14, BOOT, "all jobs")

    assert scalar(db, MOST) == 4


def test_the_next_begins_when_it_may_and_not_at_a_poll(
    broker: PostgresBroker, database: str, db: psycopg.Connection
) -> None:
    @job(broker=broker, rate=Rate(1, per=0.5))
    def visit() -> None: ...

    with running_worker(broker, database) as _:
        sent = [visit.send() for _ in range(10)]
        assert [outcome(db, one) for one in sent] == ["done"] * 10

    # By polls alone it would be 2 s from one to the next; the least is 4.5 s.
    query = "SELECT extract(epoch FROM max(started_at) - min(started_at))::float8 FROM worker.job_history"
    assert 4.5 <= scalar(db, query) < 12.0
