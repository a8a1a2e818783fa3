"""What a job, or somebody's open transaction, cannot do to the worker."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from tests.factories import backend_pid, column, scalar, terminate
from tests.running import WAIT, RunningWorker, outcome, row_id
from tests.waiting import wait_until
from worker import PostgresBroker, job
from worker.queue import delivery as delivery_module

pytestmark = pytest.mark.usefixtures("worker")


def test_a_job_that_always_ends_its_own_connection_is_dead_in_the_end(
    broker: PostgresBroker, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "_MAX_CUTS", 2)
    runs = []

    @job(broker=broker, max_retries=0)
    def end_itself(conn: Connection) -> None:
        runs.append(1)
        terminate(db, backend_pid(conn))
        conn.execute("SELECT 1")

    message = end_itself.send()

    assert outcome(db, message) == "dead"
    assert len(runs) == 3
    assert "terminating connection" in scalar(db, "SELECT error FROM worker.job_dead WHERE id = %s", row_id(message))


def test_a_job_that_always_conflicts_counts_attempts_in_the_end(
    broker: PostgresBroker, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "_MAX_CUTS", 1)

    @job(broker=broker, max_retries=1, min_backoff=10, max_backoff=10)
    def conflict(conn: Connection) -> None:
        conn.execute("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")

    message = conflict.send()

    assert outcome(db, message) == "dead"
    assert scalar(db, "SELECT attempt FROM worker.job_dead WHERE id = %s", row_id(message)) == 2


def test_a_row_that_somebody_keeps_locked_keeps_nobody_else_waiting(
    broker: PostgresBroker, database: str, db: psycopg.Connection, worker: RunningWorker
) -> None:
    go_on = threading.Event()

    @job(broker=broker)
    def slow() -> None:
        assert go_on.wait(WAIT)

    @job(broker=broker)
    def quick() -> None: ...

    locked = slow.send()
    wait_until(lambda: scalar(db, "SELECT state FROM worker.job") == "running", WAIT, "the job to run")
    with psycopg.connect(database) as other:
        other.execute("SELECT FROM worker.job WHERE id = %s FOR UPDATE", [row_id(locked)])
        go_on.set()
        wait_until(lambda: worker.dispatcher.num_locked == 1, WAIT, "the outcome to meet the lock")
        before = _heartbeat(db)

        assert outcome(db, quick.send()) == "done"
        wait_until(lambda: _heartbeat(db) > before, WAIT, "a heartbeat while the row is locked")
        assert column(db, "SELECT id FROM worker.job") == [row_id(locked)]

    assert outcome(db, locked) == "done"


def test_an_option_that_makes_no_sense_fails_the_job_and_gives_its_connection_back(
    broker: PostgresBroker, db: psycopg.Connection, worker: RunningWorker
) -> None:
    """A send would refuse it, a hand does not."""

    @job(broker=broker, max_retries=0)
    async def odd(conn: psycopg.AsyncConnection) -> None: ...

    message = odd.message()
    query = """
        INSERT INTO worker.job (id, actor, args, options)
        VALUES (%s, 'odd', '{}', '{"time_limit": "soon", "max_retries": 0}')"""
    db.execute(query, [row_id(message)])

    assert outcome(db, message) == "dead"
    wait_until(lambda: worker.pool.num_out == 0, WAIT, "the connection to come back")


def _heartbeat(db: psycopg.Connection) -> Any:
    return scalar(db, "SELECT heartbeat_at FROM worker.worker")
