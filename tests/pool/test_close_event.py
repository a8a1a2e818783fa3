"""The close event: work that must not outlive the pool hears of its end first."""

from __future__ import annotations

import asyncio
import threading

import psycopg
import pytest
from psycopg_pool import PoolClosed

from tests.factories import InThread, num_sessions, scalar
from tests.pool.conftest import OpenPool
from tests.pool.loops import running_loop
from tests.waiting import wait_until
from worker import clock
from worker.pool import Pool

THIRTY_DAYS = "SELECT pg_sleep(30 * 86400)"
SLEEPING = "SELECT count(*) FROM pg_stat_activity WHERE starts_with(query, 'SELECT pg_sleep(30') AND state = 'active'"


def sleep_thirty_days(pool: Pool) -> None:
    with pool.connection() as conn:
        conn.execute(THIRTY_DAYS)


async def sleep_thirty_days_async(pool: Pool) -> None:
    async with pool.connection() as conn:
        await conn.execute(THIRTY_DAYS)


async def do_until_async(pool: Pool) -> None:
    await pool.do_until(sleep_thirty_days_async(pool))


def test_the_event_is_set_before_anything_else_happens(pool: Pool) -> None:
    event, taken = pool.close_event(), threading.Event()

    def hold_until_the_event() -> bool:
        with pool.connection() as conn:
            taken.set()
            assert event.wait(10)
            return scalar(conn, "SELECT true") is True  # whoever is out may go on

    holding = InThread(hold_until_the_event)
    assert taken.wait(5)
    pool.close(grace=10)

    assert holding.result()


def test_the_event_is_not_set_while_the_pool_is_open(pool: Pool) -> None:
    assert not pool.close_event().is_set()
    assert not pool.close_event().wait(0.01)


def test_the_event_of_a_closed_pool_is_set(pool: Pool) -> None:
    pool.close()

    assert pool.close_event().wait(0)


def test_a_coroutine_awaits_the_event(pool: Pool) -> None:
    async def awaiting() -> None:
        await pool.close_event()

    with running_loop() as loop:
        waiting = loop.start(awaiting())
        wait_until(lambda: pool.close_event()._callbacks, 5, "the coroutine to wait")

        pool.close()

        waiting.result(5)


def test_awaiting_the_event_of_a_closed_pool_returns_at_once(pool: Pool) -> None:
    async def awaiting() -> None:
        await asyncio.wait_for(pool.close_event(), 5)

    pool.close()

    asyncio.run(awaiting())


def test_a_loop_that_was_closed_while_awaiting_does_not_hinder_the_end(pool: Pool) -> None:
    async def awaiting() -> None:
        await pool.close_event()

    with running_loop() as loop:
        waiting = loop.start(awaiting())
        wait_until(lambda: pool.close_event()._callbacks, 5, "the coroutine to wait")

    pool.close()

    assert pool.is_closed
    waiting.cancel()


def test_thirty_days_of_sleep_end_when_the_pool_begins_to_close(pool: Pool, db: psycopg.Connection) -> None:
    sleeping = InThread(lambda: pool.do_until(lambda: sleep_thirty_days(pool)))
    wait_until(lambda: scalar(db, SLEEPING), 5, "the sleep to begin")
    started = clock.monotonic()

    pool.close(grace=60)

    assert clock.monotonic() - started < 5
    with pytest.raises(PoolClosed):
        sleeping.result()
    assert num_sessions(db) == 0


def test_a_coroutines_thirty_days_of_sleep_end_too(pool: Pool, db: psycopg.Connection) -> None:
    with running_loop() as loop:
        sleeping = loop.start(do_until_async(pool))
        wait_until(lambda: scalar(db, SLEEPING), 5, "the sleep to begin")
        started = clock.monotonic()

        pool.close(grace=60)

        assert clock.monotonic() - started < 5
        with pytest.raises(PoolClosed):
            sleeping.result(5)
    assert num_sessions(db) == 0


def test_a_statement_that_follows_a_cancelled_one_is_cancelled_as_well(pool: Pool, db: psycopg.Connection) -> None:

    def in_one_block() -> None:
        with pool.connection() as conn:
            try:
                conn.execute(THIRTY_DAYS)
            except psycopg.errors.QueryCanceled:
                conn.rollback()
            conn.execute(THIRTY_DAYS)

    sleeping = InThread(lambda: pool.do_until(in_one_block))
    wait_until(lambda: scalar(db, SLEEPING), 5, "the sleep to begin")

    pool.close(grace=60)

    with pytest.raises(PoolClosed):
        sleeping.result()


def test_what_does_not_ask_for_it_is_left_alone_during_the_grace(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=2)
    begun = threading.Event()

    def work_to_the_end() -> bool:
        with pool.connection() as conn:
            begun.set()
            conn.execute("SELECT pg_sleep(0.3)")
            return True

    working = InThread(work_to_the_end)
    assert begun.wait(5)
    pool.close(grace=10)

    assert working.result()


def test_nothing_is_run_once_the_pool_is_closed(pool: Pool) -> None:
    ran: list[bool] = []
    pool.close()

    with pytest.raises(PoolClosed):
        pool.do_until(lambda: ran.append(True))

    assert not ran


def test_no_coroutine_is_run_once_the_pool_is_closed(pool: Pool) -> None:
    ran: list[bool] = []

    async def run() -> None:
        ran.append(True)

    async def main() -> None:
        await pool.do_until(run())

    pool.close()
    with pytest.raises(PoolClosed):
        asyncio.run(main())

    assert not ran


def test_the_value_of_work_that_has_ended_is_returned(pool: Pool) -> None:
    async def answer() -> int:
        return 42

    async def main() -> int:
        return await pool.do_until(answer())

    assert pool.do_until(lambda: 42) == 42
    assert asyncio.run(main()) == 42


def test_a_value_wins_over_a_close_at_the_same_moment(pool: Pool) -> None:
    async def main() -> int:
        value: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        until = asyncio.ensure_future(pool.do_until(value))
        await asyncio.sleep(0)
        value.set_result(42)
        pool.close_event().set()
        return await until

    assert asyncio.run(main()) == 42


def test_a_function_that_ends_after_the_close_began_has_its_value(pool: Pool) -> None:
    def answer() -> int:
        pool.close_event().set()
        return 42

    assert pool.do_until(answer) == 42


def test_errors_of_the_work_are_its_own(pool: Pool) -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    async def main() -> None:
        await pool.do_until(fail())

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())
    with pytest.raises(ZeroDivisionError):
        pool.do_until(lambda: 1 / 0)


def test_a_statement_cancelled_for_another_reason_is_no_close(pool: Pool) -> None:
    def time_out() -> None:
        with pool.connection() as conn:
            conn.execute("SET LOCAL statement_timeout = '50ms'")
            conn.execute("SELECT pg_sleep(60)")

    with pytest.raises(psycopg.errors.QueryCanceled):
        pool.do_until(time_out)


def test_cancelling_from_outside_is_no_close(pool: Pool) -> None:
    async def main() -> None:
        until = asyncio.ensure_future(pool.do_until(asyncio.sleep(60)))
        await asyncio.sleep(0)
        until.cancel()
        await until

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert not pool.close_event()._callbacks
