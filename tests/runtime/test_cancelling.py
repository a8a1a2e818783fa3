"""A cancel ends a running job wherever it is, its query on the server, and nothing else."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import dramatiq
import psycopg
import pytest
from psycopg import AsyncConnection, Connection
from structlog.testing import capture_logs

from tests.factories import scalar
from tests.running import WAIT, RunningWorker, attempts, error, outcome, row_id, waiting_row
from tests.waiting import wait_until
from worker import Cancelled, Context, Pool, PostgresBroker, clock, job
from worker.queue.jobs import JobFilter, Jobs

pytestmark = pytest.mark.usefixtures("worker")

SLEEPING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND state = 'active' AND query LIKE 'SELECT pg_sleep%%'"""
TOOK = "SELECT extract(epoch FROM clock_timestamp() - %s::timestamptz)::float"


def declare(broker: PostgresBroker, begun: threading.Event) -> dict[str, Any]:
    """Jobs that would go on for ten minutes, each in its own way."""

    @job(broker=broker)
    def in_its_transaction(conn: Connection) -> None:
        begun.set()
        conn.execute("SELECT pg_sleep(600)")

    @job(broker=broker)
    def on_a_connection_of_its_own(pool: Pool) -> None:
        with pool.connection() as conn:
            begun.set()
            conn.execute("SELECT pg_sleep(600)")

    @job(broker=broker)
    async def in_its_transaction_async(conn: AsyncConnection) -> None:
        begun.set()
        await conn.execute("SELECT pg_sleep(600)")

    @job(broker=broker)
    def in_python() -> None:
        begun.set()
        deadline = clock.monotonic() + 600
        while clock.monotonic() < deadline:
            pass

    @job(broker=broker)
    async def in_await() -> None:
        begun.set()
        await asyncio.sleep(600)

    @dramatiq.actor(broker=broker)
    def plain() -> None:
        in_python.fn()

    jobs: list[Any] = [in_its_transaction, on_a_connection_of_its_own, in_its_transaction_async, in_python, in_await]
    return {one.actor_name: one for one in [*jobs, plain]}


EVERY_WAY = sorted(declare(PostgresBroker(schema="worker"), threading.Event()))
IN_SQL = [name for name in EVERY_WAY if "_its_" in f"_{name}_"]


@pytest.fixture
def begun() -> threading.Event:
    return threading.Event()


@pytest.fixture
def jobs(broker: PostgresBroker, begun: threading.Event) -> dict[str, Any]:
    return declare(broker, begun)


@pytest.mark.parametrize("name", EVERY_WAY)
def test_a_job_that_is_cancelled_ends_within_a_second(
    jobs: dict[str, Any], begun: threading.Event, db: psycopg.Connection, name: str
) -> None:
    message = jobs[name].send()
    assert begun.wait(WAIT)
    if name in IN_SQL:
        wait_until(lambda: scalar(db, SLEEPING), WAIT, "the query to begin")
    at = scalar(db, "SELECT clock_timestamp()")

    assert Jobs(db).cancel(JobFilter(id=row_id(message))) == [row_id(message)]

    assert (outcome(db, message), attempts(db, message), error(db, message)) == ("dead", 1, "cancelled")
    assert scalar(db, "SELECT extract(epoch FROM finished_at - %s)::float FROM worker.job_history", at) < 1
    assert scalar(db, SLEEPING) == 0


def test_after_cancels_there_are_as_many_connections_as_before(
    jobs: dict[str, Any], worker: RunningWorker, db: psycopg.Connection
) -> None:
    for message in [jobs[name].send() for name in IN_SQL]:
        waiting_row(db, message, "running")
        Jobs(db).cancel(JobFilter(id=row_id(message)))
        assert outcome(db, message) == "dead"

    with worker.pool.connection(timeout=5) as first, worker.pool.connection(timeout=5) as second:
        assert [scalar(first, "SELECT 1"), scalar(second, "SELECT 1")] == [1, 1]


@pytest.mark.parametrize("answer", ["raise", "return"])
def test_a_job_meets_its_cancel_as_an_interrupt(broker: PostgresBroker, db: psycopg.Connection, answer: str) -> None:
    """What it raises instead is no reason to run again; one that returns has succeeded."""
    begun = threading.Event()
    stopping: list[str | None] = []

    @job(broker=broker)
    def tidy(ctx: Context) -> None:
        try:
            while True:
                begun.set()
        except Cancelled:
            stopping.append(ctx.stopping)
            if answer == "raise":
                raise ValueError("no") from None

    message = tidy.send()
    assert begun.wait(WAIT)
    Jobs(db).cancel(JobFilter(id=row_id(message)))

    assert outcome(db, message) == ("dead" if answer == "raise" else "done")
    assert stopping == ["cancel"]


def test_the_others_beside_it_go_on(jobs: dict[str, Any], broker: PostgresBroker, db: psycopg.Connection) -> None:
    release, begun = threading.Event(), threading.Event()

    @job(broker=broker)
    def other() -> None:
        begun.set()
        assert release.wait(WAIT)

    message, cancelled = other.send(), jobs["in_its_transaction"].send()
    assert begun.wait(WAIT)
    waiting_row(db, cancelled, "running")
    Jobs(db).cancel(JobFilter(actors=["in_its_transaction"]))
    assert outcome(db, cancelled) == "dead"
    release.set()

    assert outcome(db, message) == "done"


def test_what_should_follow_from_a_failure_follows_from_a_cancel(
    jobs: dict[str, Any], begun: threading.Event, broker: PostgresBroker, db: psycopg.Connection
) -> None:
    heard: list[str] = []

    @dramatiq.actor(broker=broker)
    def alarm(message_data: dict[str, Any], exception_data: dict[str, Any]) -> None:
        heard.append(exception_data["type"])

    message = jobs["in_python"].send_with_options(on_failure=alarm)
    assert begun.wait(WAIT)
    Jobs(db).cancel(JobFilter(id=row_id(message)))

    wait_until(lambda: heard, WAIT, "the callback")
    assert heard == ["Cancelled"]


def test_no_retry_is_announced(jobs: dict[str, Any], begun: threading.Event, db: psycopg.Connection) -> None:
    message = jobs["in_python"].send()
    assert begun.wait(WAIT)

    with capture_logs() as logs:
        Jobs(db).cancel(JobFilter(id=row_id(message)))
        outcome(db, message)

    assert [entry["event"] for entry in logs if entry["event"] in ("job.cancelled", "job.retry")] == ["job.cancelled"]
