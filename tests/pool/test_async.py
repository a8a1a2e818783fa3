"""Coroutines use the same connections, as a view or through threads; both ways pass the same tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg_pool import PoolTimeout

from tests.factories import column, num_sessions, scalar
from tests.pool.conftest import Events, OpenPool
from tests.pool.loops import running_loop
from tests.waiting import wait_until
from worker.pool import AsyncMode, Pool

SLEEPING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"


@pytest.fixture(params=list(AsyncMode), ids=str)
def single(open_pool: OpenPool, request: pytest.FixtureRequest) -> Pool:
    """A pool of one, in either mode."""
    return open_pool(max_size=1, async_mode=request.param)


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        return await work()

    return asyncio.run(main())


async def fetch(conn: psycopg.AsyncConnection[Any], query: str) -> Any:
    row = await (await conn.execute(query.encode())).fetchone()
    assert row is not None
    return row[0]


async def sleep_in(conn: psycopg.AsyncConnection[Any]) -> None:
    await conn.execute("SELECT pg_sleep(600)")


def test_a_coroutine_uses_the_connection_that_a_thread_used_before(single: Pool) -> None:
    with single.connection() as conn:
        pid = conn.info.backend_pid

    async def use() -> Any:
        async with single.connection() as conn:
            return await fetch(conn, "SELECT pg_backend_pid()")

    assert run(use) == pid


def test_its_block_commits_at_the_end(single: Pool, db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE note (id int)")

    async def insert() -> None:
        async with single.connection() as conn:
            await conn.execute("INSERT INTO note VALUES (1)")

    run(insert)

    assert scalar(db, "SELECT count(*) FROM note") == 1


@pytest.mark.parametrize("block", ["connection", "begin"])
def test_its_block_rolls_back_what_raised(single: Pool, db: psycopg.Connection, block: str) -> None:
    db.execute("CREATE TABLE note (id int)")

    async def insert() -> None:
        async with getattr(single, block)() as conn:
            await conn.execute("INSERT INTO note VALUES (1)")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(insert)

    assert scalar(db, "SELECT count(*) FROM note") == 0
    assert (single.num_out, single.num_idle) == (0, 1)


def test_transactions_nest(single: Pool, db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE note (id int)")

    async def insert() -> None:
        async with single.begin() as conn:
            await conn.execute("INSERT INTO note VALUES (1)")
            async with conn.transaction():
                await conn.execute("INSERT INTO note VALUES (2)")
                raise psycopg.Rollback

    run(insert)

    assert scalar(db, "SELECT array_agg(id) FROM note") == [1]


def test_cursors_work(single: Pool) -> None:
    async def use() -> Any:
        async with single.connection() as conn, conn.cursor() as cur:
            await cur.execute("SELECT generate_series(1, 5)")
            first, few = await cur.fetchone(), await cur.fetchmany(2)
            rest = [row async for row in cur]
            await cur.executemany("SELECT %s", [(1,), (2,)])
            return first, few, rest

    assert run(use) == ((1,), [(2,), (3,)], [(4,), (5,)])


def test_a_statement_prepared_by_a_coroutine_is_used_by_a_thread(single: Pool) -> None:
    query = "SELECT name FROM pg_prepared_statements WHERE statement LIKE $$SELECT 'prepared'$$"

    async def use_often() -> None:
        async with single.connection() as conn:
            for _ in range(8):
                await conn.execute("SELECT 'prepared'")

    run(use_often)

    with single.connection() as conn:
        conn.execute("SELECT 'prepared'")
        assert len(conn.execute(query).fetchall()) == 1


def test_a_coroutine_that_is_denied_is_told_who_holds_what(single: Pool) -> None:
    async def ask() -> None:
        async with single.connection(timeout=0.1):
            pass

    with single.connection(), running_loop() as loop, pytest.raises(PoolTimeout, match="thread MainThread for"):
        loop.run(ask())


def test_a_cancelled_query_ends_on_the_server_and_leaves_its_connection_usable(
    single: Pool, db: psycopg.Connection
) -> None:
    async def sleep() -> None:
        async with single.connection() as conn:
            await sleep_in(conn)

    with single.connection() as conn:
        pid = conn.info.backend_pid
    with running_loop() as loop:
        sleeping = loop.start(sleep())
        wait_until(lambda: scalar(db, SLEEPING), 5, "the sleep")
        sleeping.cancel()
        wait_until(lambda: single.num_idle == 1, 5, "the connection to come back")

    assert not scalar(db, SLEEPING)
    with single.connection() as conn:
        assert scalar(conn, "SELECT pg_backend_pid()") == pid


def test_a_query_that_times_out_in_the_loop_leaves_its_connection_usable(single: Pool) -> None:
    async def time_out() -> Any:
        async with single.connection() as conn:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(sleep_in(conn), 0.1)
            await conn.rollback()
            return await fetch(conn, "SELECT 1")

    assert run(time_out) == 1


def test_a_coroutine_that_is_cancelled_while_its_connection_is_asked_loses_none(open_pool: OpenPool) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def ask(conn: psycopg.Connection) -> None:
        asked.set()
        assert go_on.wait(10)

    pool = open_pool(max_size=1, before_acquire=ask)
    with running_loop() as loop:
        asking = loop.start(pool.acquire_async())
        assert asked.wait(5)
        asking.cancel()
        go_on.set()

        wait_until(lambda: pool.num_out == 0, 5, "the connection to be off the books")
    with pool.connection(timeout=2) as conn:
        assert scalar(conn, "SELECT 1") == 1
    assert pool.stats().reclaimed_total == 0


def test_a_second_loop_uses_the_same_pool_while_the_first_lives(single: Pool) -> None:
    async def use() -> Any:
        async with single.connection() as conn:
            return await fetch(conn, "SELECT pg_backend_pid()")

    with running_loop() as first, running_loop() as second:
        assert first.run(use()) == second.run(use()) == first.run(use())


def test_the_next_loop_uses_the_pool_after_the_first_is_closed(single: Pool) -> None:
    async def use() -> Any:
        async with single.connection() as conn:
            return await fetch(conn, "SELECT pg_backend_pid()")

    assert run(use) == run(use)


def test_the_loop_goes_on_while_a_query_runs(single: Pool) -> None:
    async def main() -> int:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0.005)
                turns += 1

        counting = asyncio.ensure_future(count())
        async with single.connection() as conn:
            await conn.execute("SELECT pg_sleep(0.3)")
        counting.cancel()
        return turns

    assert run(main) > 5


def test_what_a_coroutine_changed_is_not_the_next_ones(single: Pool) -> None:
    async def change() -> None:
        async with single.connection() as conn:
            conn.row_factory = dict_row
        async with single.connection() as conn:
            await conn.set_autocommit(True)

    run(change)

    with single.connection() as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)
        conn.rollback()
        assert not conn.autocommit


def test_a_coroutine_can_neither_commit_nor_leave_a_transaction_that_a_block_has_begun(single: Pool) -> None:
    async def main() -> None:
        async with single.begin() as conn:
            with pytest.raises(psycopg.ProgrammingError, match="forbidden within a Transaction"):
                await conn.commit()
            with pytest.raises(psycopg.ProgrammingError, match="can't change 'autocommit' now"):
                await conn.set_autocommit(True)

    run(main)


def test_a_coroutine_commits_what_it_has_begun(single: Pool, db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE note (id int)")

    async def main() -> None:
        async with single.connection() as conn:
            await conn.execute("INSERT INTO note VALUES (1)")
            await conn.commit()
            assert scalar(db, "SELECT count(*) FROM note") == 1

    run(main)


def test_a_coroutine_that_gives_back_twice_does_not_give_back_the_next_ones(single: Pool) -> None:
    async def main() -> None:
        first = await single.acquire_async()
        await single.release_async(first)
        second = await single.acquire_async()

        with pytest.raises(ValueError, match="was it given back before"):
            await single.release_async(first)

        assert single.num_out == 1
        await single.release_async(second)

    run(main)


def test_a_coroutine_that_goes_on_after_giving_back_does_not_meet_the_next_one(
    single: Pool, db: psycopg.Connection
) -> None:
    db.execute("CREATE TABLE note (id int)")

    async def main() -> None:
        first = await single.acquire_async()
        await single.release_async(first)
        async with single.begin() as second:
            with pytest.raises(psycopg.OperationalError, match="the connection was given back"):
                await first.execute("INSERT INTO note VALUES (1)")
            with suppress(psycopg.OperationalError):
                await first.close()
            await second.execute("INSERT INTO note VALUES (2)")

    run(main)

    assert column(db, "SELECT id FROM note") == [2]


def test_a_connection_given_back_to_another_pool_is_refused_and_stays_out(single: Pool, open_pool: OpenPool) -> None:
    other = open_pool(max_size=1)

    async def main() -> None:
        view = await single.acquire_async()
        with pytest.raises(ValueError, match="it is not out of"):
            await other.release_async(view)
        assert single.num_out == 1
        await single.release_async(view)

    run(main)


def test_a_view_that_its_user_closed_is_replaced(single: Pool, db: psycopg.Connection) -> None:
    async def close() -> None:
        async with single.connection() as conn:
            await conn.close()

    run(close)

    with single.connection(timeout=2) as conn:
        assert scalar(conn, "SELECT 1") == 1
    assert num_sessions(db) == 1


def test_a_transaction_that_a_coroutine_left_open_is_rolled_back(single: Pool, db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE note (id int)")

    async def insert() -> None:
        conn = await single.acquire_async()
        await conn.execute("INSERT INTO note VALUES (1)")
        await single.release_async(conn)

    run(insert)

    assert scalar(db, "SELECT count(*) FROM note") == 0
    assert single.num_idle == 1


def test_forty_coroutines_share_three_connections(open_pool: OpenPool, db: psycopg.Connection) -> None:
    pool = open_pool(max_size=3)

    async def use(number: int) -> Any:
        async with pool.connection(timeout=10) as conn:
            return await fetch(conn, f"SELECT {number}")

    async def main() -> list[Any]:
        return list(await asyncio.gather(*[use(number) for number in range(40)]))

    assert run(main) == list(range(40))
    assert num_sessions(db) <= 3


def test_notifications_and_notices_reach_the_handlers_of_the_connection(single: Pool) -> None:
    said: list[str] = []

    with single.connection() as conn:
        conn.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))

        async def speak() -> None:
            view = single.view(conn)
            await view.execute("DO $$ BEGIN RAISE NOTICE 'hello'; END $$")

        run(speak)

    assert said == ["hello"]


def test_a_loop_that_closes_with_a_block_open_is_collected_without_noise(
    single: Pool, db: psycopg.Connection, events: Events
) -> None:
    import gc

    async def hold() -> None:
        async with single.connection() as conn:
            await sleep_in(conn)

    with running_loop() as loop:
        holding = loop.start(hold())
        wait_until(lambda: scalar(db, SLEEPING), 5, "the sleep")
    del holding, loop
    gc.collect()

    with single.connection(timeout=2) as conn:
        assert scalar(conn, "SELECT 1") == 1
    assert [event["event"] for event in events].count("pool.leaked") == 1
