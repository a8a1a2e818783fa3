"""What chaos has found: things that happen while somebody else is in the middle of something."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import psycopg
import pytest

from tests.factories import InThread, num_sessions
from tests.pool.conftest import OpenPool
from tests.waiting import wait_until
from worker.pool import Connection, Pool, holder

ROUNDS = 40


async def _use_until_it_fails(view: psycopg.AsyncConnection[Any]) -> None:
    while True:
        await view.execute("SELECT pg_sleep(0.001)")


def test_a_coroutine_that_goes_on_after_its_job_is_over_gets_an_error_and_not_a_crash(pool: Pool) -> None:
    """Its statement keeps a pointer into libpq's memory while it waits; freeing that killed the process."""

    async def one_round(number: int) -> None:
        holder.set(f"job {number}")
        view = await pool.acquire_async()
        using = asyncio.create_task(_use_until_it_fails(view))
        await asyncio.sleep(0.001 * (number % 5))
        await asyncio.to_thread(pool.reclaim, f"job {number}")
        with pytest.raises(psycopg.OperationalError):
            await asyncio.wait_for(using, 10)

    for number in range(ROUNDS):
        asyncio.run(one_round(number))

    assert pool.stats().reclaimed_total == ROUNDS


def test_a_thread_that_goes_on_after_its_job_is_over_gets_an_error_and_may_return_what_it_had(pool: Pool) -> None:
    has_one = threading.Event()

    def job() -> Connection:
        holder.set("job 1")
        conn = pool.acquire()
        has_one.set()
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT pg_sleep(600)")
        pool.release(conn)
        return conn

    thread = InThread(job)
    assert has_one.wait(10)
    pool.reclaim("job 1")

    assert thread.result().closed
    assert pool.num_out == 0


def test_a_connection_given_back_while_another_task_is_in_a_statement_is_first_left_by_it(pool: Pool) -> None:
    """Otherwise the next one who has it would meet the statement of the one before."""

    async def main() -> None:
        view = await pool.acquire_async()
        other = asyncio.create_task(view.execute("SELECT pg_sleep(600)"))
        await asyncio.sleep(0.05)
        await asyncio.wait_for(pool.release_async(view), 10)
        with pytest.raises(psycopg.errors.QueryCanceled):
            await asyncio.wait_for(other, 10)

    asyncio.run(main())

    with pool.connection() as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_a_coroutine_that_closes_its_connection_has_ended_the_session(pool: Pool, db: psycopg.Connection) -> None:
    async def main() -> int:
        view = await pool.acquire_async()
        await view.close()
        left = num_sessions(db)
        await pool.release_async(view)
        return left

    assert asyncio.run(main()) == 0


def test_what_a_coroutine_of_a_closed_loop_had_is_found_and_nothing_else_is_left(pool: Pool) -> None:
    loops_before = [thing for thing in gc.get_objects() if isinstance(thing, asyncio.AbstractEventLoop)]
    loop = asyncio.new_event_loop()

    async def be_in_the_middle(has_one: asyncio.Event) -> None:
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")
            has_one.set()
            await asyncio.sleep(600)

    async def leave() -> asyncio.Task[None]:
        has_one = asyncio.Event()
        task = asyncio.create_task(be_in_the_middle(has_one))
        await has_one.wait()
        return task

    task = loop.run_until_complete(leave())
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # it is meant to be
    del task
    gc.collect()

    wait_until(lambda: pool.num_out == 0, 5, "the connection of the closed loop")
    open_loops = [thing for thing in gc.get_objects() if isinstance(thing, asyncio.AbstractEventLoop)]
    assert [each for each in open_loops if each not in loops_before and not each.is_closed()] == []


def test_a_waiter_whose_loop_was_closed_does_not_stand_in_the_line_for_ever(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=1)
    loop = asyncio.new_event_loop()

    async def wait_a_little() -> asyncio.Task[Any]:
        task = asyncio.create_task(pool.acquire_async(timeout=600))
        await asyncio.sleep(0.01)
        return task

    with pool.connection():
        task = loop.run_until_complete(wait_a_little())
        assert pool.stats().waiting == 1
        loop.close()

        wait_until(lambda: pool.stats().waiting == 0, 5, "the sweep")
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # it is meant to be


def test_a_connection_that_the_collector_gives_back_in_the_middle_of_the_pools_own_work(pool: Pool) -> None:
    """The collector closes generators wherever it happens to run, so also in a thread that has the pool's lock."""
    conn = pool.acquire()

    def give_back_in_the_middle() -> None:
        with pool._lock:
            pool.release(conn)

    InThread(give_back_in_the_middle).result(5)

    assert pool.num_out == 0


def test_what_callers_waited_is_counted(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=1)
    with pool.connection() as conn:
        waiting = InThread(lambda: pool.release(pool.acquire()))
        wait_until(lambda: pool.stats().waiting == 1, 5, "the waiter")
        conn.execute("SELECT pg_sleep(0.2)")
    waiting.result()

    assert pool.stats().waited_seconds_total >= 0.2


def test_an_interrupt_of_a_statement_never_meets_the_question_whether_its_own_thread_lives(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Python 3.13 a thread that is interrupted while it asks that of itself counts as ended from then on."""
    asked: list[threading.Thread] = []
    is_alive = threading.Thread.is_alive

    def asking(thread: threading.Thread) -> bool:
        if thread is threading.current_thread():
            asked.append(thread)
        return is_alive(thread)

    monkeypatch.setattr(threading.Thread, "is_alive", asking)
    with pool.connection() as conn:
        conn.execute("SELECT 1")

    assert asked == []
