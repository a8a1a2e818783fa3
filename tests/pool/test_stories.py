"""What has happened to others, replayed: each story that made somebody write about their pool."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from tests.factories import InThread, num_sessions, scalar
from tests.pool.conftest import Events, OpenPool
from tests.waiting import wait_until
from worker import clock
from worker.pool import Connection, Pool, holder

REQUESTS = 1000


class Handler:
    """A web application's way through a request, with every way of going wrong."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.ways: list[Callable[[], None]] = [
            self.succeeds, self.raises, self.breaks_its_transaction, self.closes_its_connection,
            self.asks_for_nonsense, self.leaves_its_transaction_open, self.times_out, self.is_denied_a_second,
        ]  # fmt: skip

    def succeeds(self) -> None:
        with self._pool.connection() as conn:
            assert conn.execute("SELECT generate_series(1, 3)").fetchall() == [(1,), (2,), (3,)]

    def raises(self) -> None:
        with self._pool.connection() as conn:
            conn.execute("SELECT 1")
            raise RuntimeError

    def breaks_its_transaction(self) -> None:
        with self._pool.begin() as conn:
            conn.execute("SELECT 1/0")

    def closes_its_connection(self) -> None:
        """What `return_to_pool` of the story skipped, and so lost."""
        with self._pool.connection() as conn:
            conn.close()

    def asks_for_nonsense(self) -> None:
        with self._pool.connection() as conn:
            conn.execute("SELEC 1")

    def leaves_its_transaction_open(self) -> None:
        conn = self._pool.acquire()
        conn.execute("SELECT 1")
        self._pool.release(conn)

    def times_out(self) -> None:
        with self._pool.connection() as conn:
            conn.execute("SET LOCAL statement_timeout = '1ms'")
            conn.execute("SELECT pg_sleep(60)")

    def is_denied_a_second(self) -> None:
        with self._pool.connection(), self._pool.connection(), self._pool.connection():
            pass


def test_the_thirty_minute_leak(open_pool: OpenPool, db: psycopg.Connection) -> None:
    """All is well when it is deployed; half an hour later the pool is full, and every answer empty."""
    pool = open_pool(max_size=2)
    handler = Handler(pool)
    served = 0

    for number in range(REQUESTS):
        try:
            handler.ways[number % len(handler.ways)]()
        except (RuntimeError, psycopg.Error):
            pass  # that request failed, as it should
        else:
            served += 1

    with pool.connection() as conn:
        assert scalar(conn, "SELECT 1") == 1
    assert served == REQUESTS * 3 / len(handler.ways)
    assert (pool.num_out, pool.stats().reclaimed_total) == (0, 0)
    assert num_sessions(db) <= 2
    idle = """
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'carpool-test' AND state <> 'idle'"""
    assert scalar(db, idle) == 0


def test_a_full_pool_is_an_error_and_never_an_empty_answer(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=1)

    def answer() -> list[object]:
        with pool.connection(timeout=0.05) as conn:
            return conn.execute("SELECT 1").fetchall()

    with pool.connection(), pytest.raises(PoolTimeout):
        InThread(answer).result()


def test_three_threads_of_rails_that_died_with_all_three_connections(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=3)
    kept: list[Connection] = [thread.result() for thread in [InThread(pool.acquire) for _ in range(3)]]

    with pool.connection(timeout=5) as conn:
        assert scalar(conn, "SELECT 1") == 1
    assert all(conn.revoked for conn in kept)


def test_the_fourth_thread_of_rails_is_served_although_the_three_died_while_it_waited(open_pool: OpenPool) -> None:
    """There it waits for 5 s and fails, as dead owners are looked for once, when the wait begins."""
    pool = open_pool(max_size=3)
    die, all_taken = threading.Event(), threading.Barrier(4, timeout=10)

    def take_and_die() -> Connection:
        conn = pool.acquire()
        all_taken.wait()
        assert die.wait(10)
        return conn

    three = [InThread(take_and_die) for _ in range(3)]
    all_taken.wait()
    fourth = InThread(lambda: pool.acquire(timeout=5))
    wait_until(lambda: pool.stats().waiting == 1, 5, "the fourth to wait")

    die.set()

    pool.release(fourth.result())
    assert all(thread.result().revoked for thread in three)


def test_four_threads_of_rails_that_return_what_they_take(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=3)

    def use() -> object:
        with pool.connection() as conn:
            conn.execute("SELECT pg_sleep(0.05)")
            return scalar(conn, "SELECT 1")

    assert [thread.result() for thread in [InThread(use) for _ in range(4)]] == [1] * 4


def test_a_pool_made_in_one_event_loop_and_used_in_another(database: str) -> None:
    """The loop that made it is gone, and with it whatever served it: the next statement hung for ever."""
    from worker.pool import PoolOptions

    async def make() -> Pool:
        pool = Pool.connect(PoolOptions(conninfo=database, max_size=2, alone=False))
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")
        return pool

    async def use(pool: Pool) -> list[object]:
        async with pool.connection() as first, pool.connection() as second:  # one more than the first loop had made
            return [await (await conn.execute("SELECT 1")).fetchone() for conn in (first, second)]

    pool = asyncio.run(make())
    started = clock.monotonic()

    answers = asyncio.run(use(pool))

    assert answers == [(1,), (1,)]
    assert clock.monotonic() - started < 3
    asyncio.run(pool.close_async())
    assert pool.is_closed


def test_twenty_checkouts_against_a_pool_of_three(open_pool: OpenPool, db: psycopg.Connection) -> None:
    """The caller who gets none fails at the deadline and is told who has them; the server never sees a fourth."""
    pool = open_pool(max_size=3)
    taken, over = threading.Semaphore(0), threading.Event()

    def check_out(number: int) -> str:
        holder.set(f"job import {number}")
        try:
            conn = pool.acquire(timeout=1)
        except PoolTimeout as exc:
            return str(exc)
        taken.release()
        assert over.wait(10)
        pool.release(conn)
        return "served"

    callers = [InThread(lambda number=number: check_out(number)) for number in range(20)]  # type: ignore[misc]  # mypy does not infer defaults of lambdas
    for _ in range(3):
        assert taken.acquire(timeout=5)
    wait_until(lambda: sum(caller.is_running for caller in callers) == 3, 5, "seventeen to be denied")
    assert num_sessions(db) == 3
    over.set()

    said = [caller.result() for caller in callers]
    denied = [each for each in said if each != "served"]
    assert len(denied) == 17
    assert all(each.count("job import") == 3 and "pool of 3" in each for each in denied)
    assert pool.num_idle == 3


def test_twenty_short_checkouts_against_a_pool_of_three_are_all_served(
    open_pool: OpenPool, db: psycopg.Connection, events: Events
) -> None:
    pool = open_pool(max_size=3)

    def use() -> object:
        with pool.connection(timeout=10) as conn:
            return scalar(
                conn,
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name = 'carpool-test'",
            )

    seen = [thread.result() for thread in [InThread(use) for _ in range(20)]]

    assert max(seen) <= 3
    assert not [event for event in events if event["log_level"] in ("warning", "error")]
