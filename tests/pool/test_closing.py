"""Closing: waiters are told at once, borrowers get their grace, no session and no complaint stays on the server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg_pool import PoolClosed

from tests.factories import InThread, num_sessions, opened_pool, scalar
from tests.pool.conftest import Events, OpenPool
from tests.pool.loops import Loop, running_loop
from tests.pool.proxy import black_hole, proxied
from tests.waiting import wait_until
from worker import clock
from worker.embedded import EmbeddedPostgres
from worker.errors import ConfigError
from worker.pool import ConnectOptions, Pool, holder


class Borrower:
    """A thread that holds a connection until it is told to return it."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._taken, self.enough = threading.Event(), threading.Event()
        self.thread = InThread(self._hold)
        assert self._taken.wait(10)

    def _hold(self) -> int:
        with self._pool.connection() as conn:
            self._taken.set()
            assert self.enough.wait(10)
            return int(scalar(conn, "SELECT 42"))


def sleeper(pool: Pool, db: psycopg.Connection) -> InThread:
    """A thread whose connection is busy for ten minutes; returns when the server has begun."""

    def sleep() -> None:
        with pool.connection() as conn:
            conn.execute("SELECT pg_sleep(600)")

    thread = InThread(sleep)
    query = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)' AND state = 'active'"
    wait_until(lambda: scalar(db, query), 10, "the query to begin")
    return thread


def test_no_session_is_left_when_close_returns(open_pool: OpenPool, db: psycopg.Connection) -> None:
    pool = open_pool(max_size=5)
    for conn in [pool.getconn() for _ in range(5)]:
        pool.putconn(conn)

    pool.close()

    assert num_sessions(db) == 0


def test_close_waits_for_a_connection_that_is_out(pool: Pool) -> None:
    borrower = Borrower(pool)

    closing = InThread(lambda: pool.close(grace=10))
    wait_until(lambda: pool.is_closed, 5, "the pool to close")
    waiting = closing.is_running
    borrower.enough.set()
    closing.result()

    assert waiting
    assert borrower.thread.result() == 42


def test_a_connection_that_came_back_while_closing_has_ended_its_session(pool: Pool, db: psycopg.Connection) -> None:
    borrower = Borrower(pool)

    closing = InThread(lambda: pool.close(grace=10))
    wait_until(lambda: pool.is_closed, 5, "the pool to close")
    borrower.enough.set()
    closing.result()

    assert num_sessions(db) == 0


def test_statements_still_running_after_the_grace_are_cancelled(pool: Pool, db: psycopg.Connection) -> None:
    sleeping = sleeper(pool, db)

    pool.close(grace=0.1)

    with pytest.raises(psycopg.errors.QueryCanceled):
        sleeping.result()


def test_the_session_of_a_cancelled_statement_is_gone_when_close_returns(pool: Pool, db: psycopg.Connection) -> None:
    sleeping = sleeper(pool, db)

    pool.close(grace=0.1)

    assert num_sessions(db) == 0
    with pytest.raises(psycopg.errors.QueryCanceled):
        sleeping.result()


def test_a_connection_that_does_not_come_back_is_revoked_after_the_grace(pool: Pool, db: psycopg.Connection) -> None:
    borrower = Borrower(pool)
    started = clock.monotonic()

    pool.close(grace=0.2)

    assert clock.monotonic() - started < 3
    assert num_sessions(db) == 0
    borrower.enough.set()
    with pytest.raises(psycopg.OperationalError, match="closed"):
        borrower.thread.result()


def test_a_waiter_is_told_at_once_that_the_pool_closes(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=1)
    borrower = Borrower(pool)
    waiter = InThread(lambda: pool.getconn(timeout=10))
    wait_until(lambda: pool.get_stats()["requests_waiting"], 5, "the waiter to wait")
    closing = InThread(lambda: pool.close(grace=10))

    with pytest.raises(PoolClosed):
        waiter.result(timeout=2)

    borrower.enough.set()
    borrower.thread.result()
    closing.result()


def test_a_waiter_is_told_at_once_even_while_a_connection_is_being_made_in_vain(
    open_pool: OpenPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = open_pool(max_size=2)
    enough = threading.Event()
    monkeypatch.setattr(Pool, "_connect", lambda *_: enough.wait(10))
    with pool.connection():
        waiter = InThread(lambda: pool.getconn(timeout=10))
        wait_until(lambda: pool.get_stats()["requests_waiting"], 5, "the waiter to wait")
        closing = InThread(lambda: pool.close(grace=10))

        with pytest.raises(PoolClosed):
            waiter.result(timeout=1)

        enough.set()
    closing.result()


def test_a_closed_pool_hands_out_nothing(pool: Pool) -> None:
    pool.close()

    with pytest.raises(PoolClosed):
        pool.getconn()


def test_closing_twice_is_harmless(pool: Pool) -> None:
    pool.close()
    pool.close()

    assert pool.is_closed


@pytest.fixture
def complaints(logged_server: EmbeddedPostgres) -> Callable[[], list[str]]:
    """What the server's log says since the test began that it would not say about a client who took leave."""
    log = Path(logged_server.folder, "server.log")
    before = len(log.read_text())

    def listed() -> list[str]:
        words = ("unexpected EOF", "onnection reset", "could not receive", "could not send", "Broken pipe")
        return [line for line in log.read_text()[before:].splitlines() if any(word in line for word in words)]

    return listed


Complaints = Callable[[], list[str]]


def test_the_servers_log_has_no_complaint_about_a_pool_that_was_used_and_closed(
    logged_server: EmbeddedPostgres, complaints: Complaints
) -> None:
    with opened_pool(logged_server.url) as pool, pool.reserve(), pool.pinned() as pinned, pool.connection() as conn:
        pinned.execute("LISTEN something")
        conn.execute("SELECT 1")

    assert complaints() == []


def test_the_servers_log_has_no_complaint_about_idle_connections_that_are_closed_with_the_pool(
    logged_server: EmbeddedPostgres, complaints: Complaints
) -> None:
    with opened_pool(logged_server.url, max_size=5) as pool:
        for conn in [pool.acquire() for _ in range(5)]:
            pool.release(conn)

    assert complaints() == []


def test_the_servers_log_has_no_complaint_about_connections_that_are_revoked(
    logged_server: EmbeddedPostgres, complaints: Complaints
) -> None:
    with opened_pool(logged_server.url) as pool:
        idle = pool.acquire()
        in_transaction = pool.acquire()
        in_transaction.execute("SELECT 1")
        pool.close(grace=0.1)

    assert complaints() == []
    assert idle.closed
    assert in_transaction.closed


def test_the_servers_log_has_no_complaint_about_statements_that_are_cancelled(
    logged_server: EmbeddedPostgres, complaints: Complaints
) -> None:
    with opened_pool(logged_server.url) as pool, psycopg.connect(logged_server.url, autocommit=True) as db:
        sleeping = sleeper(pool, db)
        pool.close(grace=0.1)
        with pytest.raises(psycopg.errors.QueryCanceled):
            sleeping.result()

    assert complaints() == []


def test_the_servers_log_has_no_complaint_about_a_user_who_runs_on_after_the_cancel(
    logged_server: EmbeddedPostgres, complaints: Complaints
) -> None:
    """It holds the connection's lock when it is revoked, so only the socket can be shut under it."""
    stubborn = threading.Event()

    def go_on() -> None:
        with pool.connection() as conn:
            stubborn.set()
            while not conn.closed:
                try:
                    conn.execute("SELECT pg_sleep(600)")
                except psycopg.errors.QueryCanceled:
                    conn.rollback()

    with opened_pool(logged_server.url) as pool:
        thread = InThread(go_on)
        assert stubborn.wait(5)
        pool.close(grace=0.1)
        with pytest.raises(psycopg.OperationalError):
            thread.result()

    assert complaints() == []


def test_the_servers_log_has_no_complaint_about_coroutines_whose_connections_are_revoked(
    logged_server: EmbeddedPostgres, complaints: Complaints
) -> None:
    with opened_pool(logged_server.url) as pool, running_loop() as loop:
        taken = threading.Event()

        async def hold() -> None:
            async with pool.connection() as conn:
                await conn.execute("SELECT 1")
                taken.set()
                await asyncio.sleep(600)

        holding = loop.start(hold())
        assert taken.wait(5)
        pool.close(grace=0.1)
        holding.cancel()

    assert complaints() == []


def test_what_is_revoked_is_named_by_job_place_and_statement(pool: Pool, events: Events) -> None:
    token = holder.set("job charge 42")
    conn = pool.acquire()
    holder.reset(token)
    conn.execute("SELECT 42")

    pool.close(grace=0)

    revoked = next(event for event in events if event["event"] == "pool.revoked")
    assert "job charge 42 for" in revoked["checkout"]
    assert "test_closing.py" in revoked["checkout"]
    assert revoked["statement"] == "SELECT 42"


def test_the_end_is_logged_with_the_number_of_revoked_connections(pool: Pool, events: Events) -> None:
    kept = pool.acquire()

    pool.close(grace=0)

    assert [event["revoked"] for event in events if event["event"] == "pool.closed"] == [1]
    assert kept.closed


def test_a_second_close_waits_for_the_same_end(pool: Pool) -> None:
    borrower = Borrower(pool)
    first = InThread(lambda: pool.close(grace=10))
    wait_until(lambda: pool.is_closed, 5, "the pool to close")

    second = InThread(lambda: pool.close(grace=0))

    assert not threading.Event().wait(0.2)
    assert second.is_running
    assert borrower.thread.is_running
    borrower.enough.set()
    first.result()
    second.result()
    assert borrower.thread.result() == 42


def test_a_coroutine_closes_the_pool_while_those_of_its_loop_return_what_they_have(pool: Pool) -> None:
    async def close_under_a_borrower() -> object:
        taken = asyncio.Event()

        async def borrow() -> object:
            async with pool.connection() as conn:
                taken.set()
                await pool.close_event()
                return await (await conn.execute("SELECT 42")).fetchone()

        borrower = asyncio.ensure_future(borrow())
        await taken.wait()
        await pool.close_async(grace=10)
        return borrower.result() if borrower.done() else await borrower

    assert asyncio.run(close_under_a_borrower()) == (42,)


def test_a_waiting_coroutine_is_told_at_once_that_the_pool_closes(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=1)
    borrower = Borrower(pool)
    with running_loop() as loop:
        waiter = loop.start(pool.acquire_async(timeout=10))
        wait_until(lambda: pool.stats().waiting == 1, 5, "the coroutine to wait")
        closing = InThread(lambda: pool.close(grace=10))

        with pytest.raises(PoolClosed):
            waiter.result(timeout=2)

    borrower.enough.set()
    borrower.thread.result()
    closing.result()


def test_coroutines_get_nothing_from_a_closed_pool(pool: Pool) -> None:
    pool.close()

    with pytest.raises(PoolClosed):
        asyncio.run(pool.acquire_async())


def test_a_closed_pool_tries_nothing_either(pool: Pool) -> None:
    pool.close()

    with pytest.raises(PoolClosed):
        pool.try_acquire()


def test_a_pool_is_not_closed_before_it_is(pool: Pool) -> None:
    assert not pool.is_closed
    pool.close()
    assert pool.is_closed
    assert repr(pool).endswith(": closed>")


def test_connections_that_come_back_at_once_make_closing_quick(pool: Pool) -> None:
    with pool.connection():
        pass
    started = clock.monotonic()

    pool.close(grace=10)

    assert clock.monotonic() - started < 1


def test_closing_does_not_wait_for_a_server_that_never_answers(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=2)
    borrower = Borrower(pool)
    with black_hole() as nowhere:
        pool.connect_options = ConnectOptions(nowhere, {"connect_timeout": 5})
        waiter = InThread(lambda: pool.acquire(timeout=10))
        wait_until(lambda: pool.stats().waiting == 1, 5, "the thread to wait")
        started = clock.monotonic()
        closing = InThread(lambda: pool.close(grace=0.5))

        with pytest.raises(PoolClosed):
            waiter.result(timeout=1)
        borrower.enough.set()
        closing.result()

        assert clock.monotonic() - started < 4
    borrower.thread.result()


def test_closing_does_not_wait_long_for_a_network_that_has_gone_silent(open_pool: OpenPool, database: str) -> None:
    with proxied(database) as proxy:
        pool = open_pool(proxy.conninfo, max_size=10)
        taken = [pool.acquire() for _ in range(10)]
        for conn in taken[:5]:
            pool.release(conn)
        proxy.go_silent()
        started = clock.monotonic()

        pool.close(grace=0.1)

        assert clock.monotonic() - started < 7


def test_a_statement_of_a_coroutine_is_cancelled_after_the_grace(pool: Pool, db: psycopg.Connection) -> None:
    with running_loop() as loop:
        sleeping = async_sleeper(pool, loop, db)

        pool.close(grace=0.1)

        with pytest.raises(psycopg.errors.QueryCanceled):
            sleeping.result(5)
    assert num_sessions(db) == 0


def test_a_coroutine_whose_loop_is_stuck_cannot_hold_up_the_end(pool: Pool, db: psycopg.Connection) -> None:
    """Its statement is cancelled on the server, but nobody reads the answer; libpq's memory must outlive that."""
    with running_loop() as loop:
        sleeping = async_sleeper(pool, loop, db)
        unstuck = threading.Event()
        loop.loop.call_soon_threadsafe(unstuck.wait, 10)

        pool.close(grace=0.1)

        assert num_sessions(db) == 0
        unstuck.set()
        with pytest.raises(psycopg.OperationalError):
            sleeping.result(5)


def async_sleeper(pool: Pool, loop: Loop, db: psycopg.Connection) -> Future[None]:
    """A coroutine whose connection is busy for ten minutes; returns when the server has begun."""

    async def sleep() -> None:
        async with pool.connection() as conn:
            await conn.execute("SELECT pg_sleep(600)")

    sleeping = loop.start(sleep())
    query = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)' AND state = 'active'"
    wait_until(lambda: scalar(db, query), 10, "the query to begin")
    return sleeping


def test_close_waits_for_a_return_that_is_under_way(open_pool: OpenPool, db: psycopg.Connection) -> None:
    """A hook, a rollback or a look on return takes its time, and the session lives meanwhile."""
    returning, enough = threading.Event(), threading.Event()

    def slow(_: psycopg.Connection) -> None:
        returning.set()
        assert enough.wait(10)

    pool = open_pool(after_release=slow)
    conn = pool.acquire()
    release = InThread(lambda: pool.release(conn))
    assert returning.wait(10)

    closing = InThread(lambda: pool.close(grace=10))
    wait_until(lambda: pool.is_closed, 5, "the pool to close")
    still_closing = closing.is_running
    enough.set()
    closing.result()

    assert (still_closing, num_sessions(db)) == (True, 0)
    release.result()


def test_a_close_that_was_interrupted_is_finished_by_the_next(
    pool: Pool, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    conn = pool.acquire()
    with monkeypatch.context() as patch:
        patch.setattr(Pool, "_let_return", lambda *_: interrupt())
        with pytest.raises(KeyboardInterrupt):
            pool.close(grace=5)

    pool.close(grace=0)

    assert (num_sessions(db), conn.closed) == (0, True)


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("grace", [-1, float("nan"), None, "soon"])
def test_a_grace_that_cannot_be_is_refused_before_anything_closes(pool: Pool, grace: Any) -> None:
    with pytest.raises(ConfigError, match="expected seconds, 0 or more"):
        pool.close(grace)

    assert not pool.is_closed


def test_a_process_that_forgets_its_pool_says_goodbye_all_the_same(logged_server: EmbeddedPostgres) -> None:
    log = Path(logged_server.folder, "server.log")
    before = len(log.read_text())
    code = """
import sys
from worker import PoolOptions, Pool
conn = Pool.connect(PoolOptions(conninfo=sys.argv[1])).acquire()
conn.execute("SELECT 1")
"""

    ended = subprocess.run([sys.executable, "-c", code, logged_server.url], timeout=30, check=False)

    assert ended.returncode == 0
    assert "unexpected EOF" not in log.read_text()[before:]
