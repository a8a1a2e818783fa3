"""The line: who asks first is served first, threads and coroutines alike."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from tests.factories import JOIN, InThread, scalar
from tests.pool.conftest import OpenPool
from tests.pool.loops import Loop, running_loop
from tests.waiting import wait_until
from worker import clock
from worker.pool import Pool


@pytest.fixture
def single(open_pool: OpenPool) -> Pool:
    """A pool of one."""
    return open_pool(max_size=1)


@pytest.fixture
def loop() -> Iterator[Loop]:
    with running_loop() as loop:
        yield loop


class Line:
    """Callers who stand in line one behind the other, and the order in which they were served."""

    def __init__(self, pool: Pool, loop: Loop) -> None:
        self._pool, self._loop = pool, loop
        self.served: list[int] = []
        self._threads: list[InThread] = []
        self._tasks: list[Future[None]] = []

    def thread(self) -> None:
        number = len(self)
        self._threads.append(InThread(lambda: self._serve(number)))
        self._await_place(number)

    def coroutine(self) -> None:
        number = len(self)
        self._tasks.append(self._loop.start(self._serve_async(number)))
        self._await_place(number)

    def __len__(self) -> int:
        return len(self._threads) + len(self._tasks)

    def _await_place(self, number: int) -> None:
        wait_until(lambda: self._pool.stats().waiting == number + 1, 10, f"caller {number} to stand in line")

    def _serve(self, number: int) -> None:
        with self._pool.connection(timeout=JOIN):
            self.served.append(number)

    async def _serve_async(self, number: int) -> None:
        async with self._pool.connection(timeout=JOIN):
            self.served.append(number)

    def result(self) -> list[int]:
        for thread in self._threads:
            thread.result()
        for task in self._tasks:
            task.result(JOIN)
        return self.served


def test_threads_and_coroutines_are_served_in_the_order_of_asking(single: Pool, loop: Loop) -> None:
    line = Line(single, loop)
    with single.connection():
        for _ in range(20):
            line.thread()
            line.coroutine()

    assert line.result() == list(range(40))


def test_who_gives_up_does_not_hold_up_those_behind(single: Pool, loop: Loop) -> None:
    line = Line(single, loop)
    with single.connection():
        impatient = InThread(lambda: single.acquire(timeout=0.1))
        with pytest.raises(PoolTimeout):
            impatient.result()
        line.coroutine()
        line.thread()

    assert line.result() == [0, 1]


def test_who_gave_up_is_not_counted_as_waiting(single: Pool) -> None:
    with single.connection():
        for _ in range(3):
            with pytest.raises(PoolTimeout):
                InThread(lambda: single.acquire(timeout=0.01)).result()

        assert single.stats().waiting == 0
        assert single.stats().timeouts_total == 3


def test_hot_loops_share_one_connection_evenly(single: Pool) -> None:
    counts = [0] * 4
    end = clock.monotonic() + 0.5

    def take_often(number: int) -> None:
        while clock.monotonic() < end:
            with single.connection() as conn:
                conn.execute("SELECT 1")
            counts[number] += 1

    threads = [InThread(lambda number=number: take_often(number)) for number in range(4)]  # type: ignore[misc]  # mypy does not infer defaults of lambdas
    for thread in threads:
        thread.result()

    assert min(counts) > 0
    assert max(counts) - min(counts) <= 0.5 * max(counts) + 5


def test_a_cancelled_waiter_leaves_the_line(single: Pool, loop: Loop) -> None:
    with single.connection() as conn:
        waiting = loop.start(single.acquire_async())
        wait_until(lambda: single.stats().waiting == 1, 5, "the coroutine to wait")

        waiting.cancel()

        wait_until(lambda: single.stats().waiting == 0, 5, "the line to be empty")
        assert scalar(conn, "SELECT 1") == 1
    with single.connection(timeout=1):
        pass


def test_a_connection_handed_to_a_waiter_that_is_cancelled_at_that_moment_goes_on(single: Pool) -> None:
    async def cancel_at_the_handover() -> None:
        held = await single.acquire_async()
        waiting = asyncio.ensure_future(single.acquire_async())
        await asyncio.sleep(0)
        await single.release_async(held)  # handed over; the waiter has not run since
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(cancel_at_the_handover())

    assert (single.num_out, single.num_idle) == (0, 1)


def test_a_waiter_whose_loop_was_closed_is_passed_over(single: Pool, loop: Loop) -> None:
    """It must not swallow the connection that is meant for the next in line."""
    with single.connection():
        forsaken = loop.start(single.acquire_async())
        wait_until(lambda: single.stats().waiting == 1, 5, "the coroutine to wait")
        next_in_line = InThread(lambda: single.acquire(timeout=10))
        wait_until(lambda: single.stats().waiting == 2, 5, "the thread to wait")
        loop.close()

    single.release(next_in_line.result())
    assert (single.num_out, single.num_idle) == (0, 1)
    forsaken.cancel()


def test_closed_loops_among_the_waiters_swallow_no_connection(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=4)
    held = [pool.acquire() for _ in range(4)]
    forsaken = []
    for count in range(4):
        with running_loop() as loop:
            forsaken.append(loop.start(pool.acquire_async()))
            wait_until(lambda count=count: pool.stats().waiting == count + 1, 5, "the coroutine to wait")  # type: ignore[misc]

    for conn in held:
        pool.release(conn)

    assert (pool.num_idle, pool.num_out) == (4, 0)
    for future in forsaken:
        future.cancel()


def test_coroutines_of_two_loops_stand_in_the_same_line(single: Pool, loop: Loop) -> None:
    async def use() -> Any:
        async with single.connection() as conn:
            return await (await conn.execute("SELECT 1")).fetchone()

    with running_loop() as other:
        with single.connection():
            asked = [loop.start(use()), other.start(use()), loop.start(use())]
            wait_until(lambda: single.stats().waiting == 3, 5, "three coroutines to wait")

        assert [future.result(JOIN) for future in asked] == [(1,)] * 3


def test_try_acquire_gives_an_idle_connection(single: Pool) -> None:
    conn = single.try_acquire()

    assert conn is not None
    assert scalar(conn, "SELECT 1") == 1
    single.release(conn)


def test_try_acquire_gives_none_at_once_when_none_is_idle(single: Pool) -> None:
    with single.connection():
        started = clock.monotonic()
        assert single.try_acquire() is None
        assert clock.monotonic() - started < 0.5


def test_try_acquire_opens_nothing(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=2)

    with pool.connection():
        assert pool.try_acquire() is None
        assert pool.size == 1


def test_try_acquire_gives_none_when_others_wait(single: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits beside an idle connection for long; this is the moment between its coming and its going."""
    with single.connection():
        waiter = InThread(single.acquire)
        wait_until(lambda: single.stats().waiting == 1, 5, "the thread to wait")
        with monkeypatch.context() as patched:
            patched.setattr(single, "_pool", [object()])
            assert single.try_acquire() is None

    single.release(waiter.result())


def test_try_acquire_never_hands_out_a_dead_connection(single: Pool, db: psycopg.Connection) -> None:
    db.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'carpool-test'"
    )

    assert single.try_acquire() is None


def test_coroutines_try_too(single: Pool) -> None:
    async def try_twice() -> tuple[bool, bool]:
        first = await single.try_acquire_async()
        second = await single.try_acquire_async()
        assert first is not None
        await single.release_async(first)
        return first is not None, second is not None

    assert asyncio.run(try_twice()) == (True, False)


def test_try_begin_gives_a_transaction_or_none(single: Pool, db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE note (id int)")

    with single.try_begin() as first, single.try_begin() as second:
        assert first is not None
        first.execute("INSERT INTO note VALUES (1)")
        assert second is None

    assert scalar(db, "SELECT count(*) FROM note") == 1


def test_coroutines_try_to_begin_too(single: Pool) -> None:
    async def try_twice() -> tuple[bool, bool]:
        async with single.try_begin() as first, single.try_begin() as second:
            return first is not None, second is not None

    assert asyncio.run(try_twice()) == (True, False)


def test_who_is_handed_a_bad_connection_keeps_its_place(open_pool: OpenPool, loop: Loop) -> None:
    refused: list[object] = []

    def refuse_once(conn: psycopg.Connection) -> bool:
        refused.append(conn)
        return len(refused) != 2

    single = open_pool(max_size=1, before_acquire=refuse_once)
    line = Line(single, loop)
    with single.connection():
        line.thread()
        line.coroutine()
        line.thread()

    assert line.result() == [0, 1, 2]


def test_no_time_to_wait_is_no_reason_to_distrust_an_idle_connection(
    open_pool: OpenPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has been idle for long is asked before it is handed out, and asking takes a moment."""
    pool = open_pool(max_size=1)
    monkeypatch.setattr("worker.pool.supply._ASK_AFTER", -1.0)

    conn = pool.acquire(timeout=0)

    assert scalar(conn, "SELECT 1") == 1
    pool.release(conn)
