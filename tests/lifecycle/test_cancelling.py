"""`worker jobs cancel` from another process than the one that runs the job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psycopg

from tests.factories import column, scalar
from tests.lifecycle.conftest import WAIT, StartWorker, busy_in_sql, done, running_in, send
from tests.waiting import wait_until

SLEEPING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND state = 'active' AND query LIKE 'SELECT pg_sleep%%'"""


def cancel(database: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "worker", "jobs", "cancel", *arguments]
    environment = {**os.environ, "WORKER_DATABASE_URL": database}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WAIT, check=False)


def test_a_query_of_ten_minutes_is_over_within_a_second(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    start_worker(database).running()
    job_id = send(noted, "work", word="hello", seconds=600)
    busy_in_sql(noted)

    ended = cancel(database, str(job_id))
    said_at = time.monotonic()
    wait_until(lambda: scalar(noted, SLEEPING) == 0, WAIT, "the end of the query")

    assert time.monotonic() - said_at < 1
    assert (ended.returncode, ended.stdout) == (0, f"{job_id}\n")
    assert done(noted, job_id) == "dead"
    assert column(noted, "SELECT word FROM note") == []


def test_a_job_whose_worker_died_while_it_was_cancelled_does_not_run_again(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    worker = start_worker(database).running()
    job_id = send(noted, "hang", seconds=600)
    running_in(noted, job_id)
    assert cancel(database, "--actor", "hang").returncode == 0
    worker.end(signal.SIGKILL)

    start_worker(database).running()

    assert done(noted, job_id) == "dead"
    assert column(noted, "SELECT error FROM worker.job_dead") == ["cancelled"]
