"""A job that holds a connection and asks for another: served while somebody can still return one, else told at once."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from psycopg import AsyncConnection, Connection

from tests.factories import scalar
from tests.running import RunningWorker, dead_error, outcome, running_worker
from worker import Pool, PostgresBroker, clock, job


def test_a_second_connection_is_given_while_one_is_free(worker: RunningWorker, broker: PostgresBroker) -> None:
    @job(broker=broker, max_retries=0)
    def nest(conn: Connection, pool: Pool) -> None:
        with pool.connection() as second:
            second.execute("SELECT 1")

    with psycopg.connect(worker.pool.options.conninfo, autocommit=True) as db:
        assert outcome(db, nest.send()) == "done"


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_second_connection_that_can_never_come_is_refused_at_once_and_names_both_places(
    broker: PostgresBroker, database: str, db: psycopg.Connection, kind: str
) -> None:
    took: list[float] = []

    @job(broker=broker, max_retries=0)
    def nest(conn: Connection, pool: Pool) -> None:
        started = clock.monotonic()
        try:
            with pool.connection():
                raise AssertionError("there is only one")
        finally:
            took.append(clock.monotonic() - started)

    @job(broker=broker, max_retries=0)
    async def nest_async(conn: AsyncConnection, pool: Pool) -> None:
        started = clock.monotonic()
        try:
            async with pool.connection():
                raise AssertionError("there is only one")
        finally:
            took.append(clock.monotonic() - started)

    with running_worker(broker, database, pool_size=2):
        message = (nest if kind == "def" else nest_async).send()
        assert outcome(db, message) == "dead"

    error = dead_error(db, message)
    assert "PoolDeadlock" in error
    assert error.count("test_nested.py:") >= 1
    assert "transaction.py:" in error
    assert took[0] < 1.0


def test_an_async_job_may_want_more_connections_one_after_another_than_there_are(
    broker: PostgresBroker, database: str, db: psycopg.Connection
) -> None:
    @job(broker=broker, max_retries=0)
    async def fan_out(pool: Pool) -> None:
        async def one() -> None:
            async with pool.connection() as conn:
                await conn.execute("INSERT INTO note VALUES ('one')")

        await asyncio.gather(*(one() for _ in range(10)))

    db.execute("CREATE TABLE note (word text)")
    with running_worker(broker, database, pool_size=3):
        assert outcome(db, fan_out.send()) == "done"

    assert scalar(db, "SELECT count(*) FROM note") == 10
