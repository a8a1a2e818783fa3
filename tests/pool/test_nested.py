"""A second connection while one is held: fine as long as it cannot deadlock, else refused at once, with both places."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tests.factories import InThread, scalar
from tests.pool.conftest import OpenPool
from tests.pool.loops import running_loop
from tests.waiting import wait_until
from worker import clock
from worker.errors import PoolDeadlock
from worker.pool import Pool, holder


def take_inner(pool: Pool) -> None:
    with pool.connection():
        pass


def take_outer(pool: Pool) -> None:
    with pool.connection():
        take_inner(pool)


def test_a_second_connection_is_given_while_there_are_more(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=2)

    with pool.connection() as outer, pool.connection() as inner:
        assert scalar(outer, "SELECT 1") == scalar(inner, "SELECT 1") == 1


def test_one_who_holds_all_there_is_and_asks_for_more_is_told_at_once(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=1)
    started = clock.monotonic()

    with pytest.raises(PoolDeadlock):
        take_outer(pool)

    assert clock.monotonic() - started < 1


def test_both_places_in_the_code_are_named(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=1)

    with pytest.raises(PoolDeadlock) as caught:
        take_outer(pool)

    assert "asks for a second connection at test_nested.py" in str(caught.value)
    assert "take_inner" in str(caught.value)
    assert "while it holds one taken at test_nested.py" in str(caught.value)
    assert "take_outer" in str(caught.value)


def test_after_the_refusal_the_pool_goes_on(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=1)
    with pytest.raises(PoolDeadlock):
        take_outer(pool)

    with pool.connection() as conn:
        assert scalar(conn, "SELECT 1") == 1


def test_waiting_is_fine_while_somebody_who_does_not_wait_holds_one(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=2)
    with pool.connection():
        nested = InThread(lambda: take_outer(pool))
        wait_until(lambda: pool.stats().waiting == 1, 5, "the other to wait for its second")

    nested.result()


def test_the_last_of_four_nesting_threads_is_told_and_the_others_pass(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=4)
    have_one = threading.Barrier(4, timeout=10)

    def nest() -> str:
        with pool.connection():
            have_one.wait()
            try:
                with pool.connection(timeout=10):
                    return "served"
            except PoolDeadlock:
                return "told"

    started = clock.monotonic()
    outcomes = sorted(thread.result() for thread in [InThread(nest) for _ in range(4)])

    assert outcomes == ["served", "served", "served", "told"]
    assert clock.monotonic() - started < 3


def test_a_task_that_nests_is_told_at_once(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=1)

    async def nest() -> None:
        async with pool.connection(), pool.connection():
            pass

    with pytest.raises(PoolDeadlock, match="asks for a second connection at test_nested"):
        asyncio.run(nest())


def test_tasks_of_one_loop_are_told_apart(open_pool: OpenPool) -> None:
    """They share a thread: one that waits does not hold up the other."""
    pool = open_pool(max_size=1)

    async def main() -> list[object]:
        async def use() -> object:
            async with pool.connection() as conn:
                await asyncio.sleep(0)
                return await (await conn.execute("SELECT 1")).fetchone()

        return list(await asyncio.gather(use(), use(), use()))

    assert asyncio.run(main()) == [(1,)] * 3


def test_an_async_job_that_gathers_more_tasks_than_there_are_connections_gives_no_alarm(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=2)

    async def job() -> list[object]:
        holder.set("job report 7")

        async def part(number: int) -> object:
            async with pool.connection() as conn:
                await conn.execute("SELECT pg_sleep(0.01)")
                return number

        return list(await asyncio.gather(*[part(number) for number in range(10)]))

    with running_loop() as loop:
        assert loop.run(job()) == list(range(10))


def test_a_task_of_a_job_that_holds_the_only_connection_is_told_at_once(open_pool: OpenPool) -> None:
    """The job's own connection comes back when the whole job is over, whichever of its tasks asks."""
    pool = open_pool(max_size=1)

    async def job() -> None:
        holder.set("job report 7")
        conn = pool.acquire()
        assert conn.checkout is not None
        conn.checkout.spans_job = True
        try:
            await asyncio.create_task(use())
        finally:
            pool.release(conn)

    async def use() -> None:
        async with pool.connection():
            pass

    with running_loop() as loop, pytest.raises(PoolDeadlock, match=r"^job report 7 asks for a second connection"):
        loop.run(job())


def test_a_job_whose_part_holds_one_that_comes_back_gives_no_alarm(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=2)

    async def job() -> None:
        holder.set("job report 7")
        conn = pool.acquire()
        assert conn.checkout is not None
        conn.checkout.spans_job = True
        try:
            await asyncio.gather(*[part() for _ in range(5)])
        finally:
            pool.release(conn)

    async def part() -> None:
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")

    with running_loop() as loop:
        loop.run(job())


def test_threads_of_a_job_that_holds_all_connections_are_told_at_once(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=1)

    def ask() -> None:
        holder.set("job report 7")
        take_inner(pool)

    holder_before = holder.set("job report 7")
    conn = pool.acquire()
    holder.reset(holder_before)
    assert conn.checkout is not None
    conn.checkout.spans_job = True

    with pytest.raises(PoolDeadlock):
        InThread(ask).result()

    pool.release(conn)


def test_a_connection_that_was_dropped_is_no_reason_for_alarm(open_pool: OpenPool) -> None:
    """It comes back by itself: the sweep ends it."""
    pool = open_pool(max_size=1)
    pool.acquire()

    with pool.connection(timeout=3) as conn:
        assert scalar(conn, "SELECT 1") == 1
