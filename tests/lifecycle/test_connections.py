"""`worker connections` and SIGUSR1: who has which connection, told by the worker itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import psycopg

from tests.factories import column, scalar
from tests.lifecycle.conftest import ROOT, WAIT, StartWorker, busy_in_sql, running_in, send
from worker.queue.identity import uuid7
from worker.queue.lease import Lease
from worker.queue.schema import Schema


def connections(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worker", "connections", *arguments],
        cwd=ROOT,
        env={**os.environ, "WORKER_DATABASE_URL": url, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )


def told(url: str, *arguments: str) -> list[dict[str, Any]]:
    asked = connections(url, "--json", *arguments)
    answers: list[dict[str, Any]] = json.loads(asked.stdout)
    return answers


def test_a_busy_worker_tells_what_its_job_holds(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    start_worker(database).running()
    job_id = send(noted, "work", word="slow", seconds=30)
    running_in(noted, job_id)
    busy_in_sql(noted)

    [worker] = told(database)

    [checkout] = worker["checkouts"]
    assert checkout["holder"].startswith(f"job work {job_id}")
    assert (checkout["state"], checkout["statement"]) == ("active", "SELECT pg_sleep(%s)")


def test_the_session_that_is_told_is_the_servers_own(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    start_worker(database).running()
    running_in(noted, send(noted, "work", word="slow", seconds=30))
    busy_in_sql(noted)

    [worker] = told(database)

    busy = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%%' AND state = 'active'"
    assert column(noted, busy) == [worker["checkouts"][0]["server_pid"]]


def test_every_worker_answers_for_itself(start_worker: StartWorker, database: str, noted: psycopg.Connection) -> None:
    first, second = start_worker(database).running(), start_worker(database).running()

    answers = told(database)

    assert [answer["id"] for answer in answers] == [str(first.id), str(second.id)]
    assert [(answer["answered"], answer["checkouts"]) for answer in answers] == [(True, []), (True, [])]


def test_asking_costs_the_worker_no_session(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    worker = start_worker(database, "--pool-size", "2").running()
    running_in(noted, send(noted, "work", word="slow", seconds=30))

    told(database)

    # One of them has the job's name behind.
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE %s"
    assert scalar(noted, query, f"carpool {worker.id}%") == 2


def test_a_worker_that_cannot_answer_is_told_and_is_a_failure(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    worker = start_worker(database).running()
    worker.send(signal.SIGSTOP)

    asked = connections(database, "--timeout", "0.5")

    worker.send(signal.SIGCONT)
    assert asked.returncode == 1
    assert f"{worker.id}  did not answer" in asked.stdout


def test_a_dead_worker_is_not_asked(database: str, db: psycopg.Connection) -> None:
    Lease(Schema(), duration=10.0, slots=1, pool_size=3, worker_id=uuid7()).register(db)
    db.execute("UPDATE worker.worker SET heartbeat_at = now() - interval '11 seconds'")

    asked = connections(database)

    assert (asked.returncode, asked.stdout) == (0, "no worker is alive\n")


def test_sigusr1_logs_what_is_out(start_worker: StartWorker, database: str, noted: psycopg.Connection) -> None:
    worker = start_worker(database, "--pool-size", "4").running()
    job_id = send(noted, "work", word="slow", seconds=30)
    running_in(noted, job_id)
    busy_in_sql(noted)

    worker.send(signal.SIGUSR1)

    assert worker.event("pool.stats")["max_size"] == 4
    checkout = worker.event("pool.checkout")
    assert checkout["holder"].startswith(f"job work {job_id}")
    assert checkout["statement"] == "SELECT pg_sleep(%s)"
