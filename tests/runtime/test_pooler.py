"""Behind a pooler in transaction mode: jobs share its sessions, the runtime has one of its own."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import AsyncConnection, Connection

from tests.cli.pooler import Pooler
from tests.factories import column
from tests.running import outcome, running_worker
from worker import Context, Pool, PostgresBroker, job


@pytest.fixture
def pooler(database: str) -> Iterator[Pooler]:
    with Pooler(database) as pooler:
        yield pooler


@pytest.mark.usefixtures("note")
def test_jobs_of_every_kind_run_through_a_pooler_and_commit_with_their_completion(
    broker: PostgresBroker, pooler: Pooler, database: str, db: psycopg.Connection
) -> None:
    """Often enough for psycopg to prepare what it repeats, which the next session would not know."""

    @job(broker=broker, max_retries=0)
    def in_thread(conn: Connection, word: str) -> None:
        conn.execute("INSERT INTO note VALUES (%s)", [word])

    @job(broker=broker, max_retries=0)
    async def in_loop(conn: AsyncConnection, word: str) -> None:
        await conn.execute("INSERT INTO note VALUES (%s)", [word])

    @job(broker=broker, max_retries=0)
    def by_pool(pool: Pool, word: str) -> None:
        with pool.connection() as conn:
            conn.execute("INSERT INTO note VALUES (%s)", [word])

    @job(broker=broker, max_retries=0)
    def at_end(ctx: Context, word: str) -> None:
        with ctx.finish() as conn:
            conn.execute("INSERT INTO note VALUES (%s)", [word])

    @job(broker=broker, max_retries=0)
    def fails(conn: Connection) -> None:
        conn.execute("INSERT INTO note VALUES ('never')")
        raise ZeroDivisionError

    kinds = (in_thread, in_loop, by_pool, at_end)
    with running_worker(broker, pooler.url, direct_url=database):
        words = [f"{each.actor_name} {number}" for each in kinds for number in range(7)]
        sent = [each.send(f"{each.actor_name} {number}") for each in kinds for number in range(7)]

        assert outcome(db, fails.send()) == "dead"
        assert {outcome(db, message) for message in sent} == {"done"}
    assert sorted(column(db, "SELECT word FROM note")) == sorted(words)
    with psycopg.connect(pooler.url, autocommit=True) as through:
        assert column(through, "SELECT name FROM pg_prepared_statements") == []
