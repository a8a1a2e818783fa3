"""Closing: waiters are told at once, borrowers get their grace, no session and no complaint stays on the server."""

from __future__ import annotations

import threading
from pathlib import Path

import psycopg
import pytest
from psycopg_pool import PoolClosed

from tests.factories import InThread, num_sessions, opened_pool, scalar
from tests.pool.conftest import OpenPool
from tests.waiting import wait_until
from worker import clock
from worker.embedded import EmbeddedPostgres
from worker.pool import Pool


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


def test_the_servers_log_has_no_complaint_about_a_pool_that_was_used_and_closed(
    logged_server: EmbeddedPostgres,
) -> None:
    log = Path(logged_server.folder, "server.log")
    before = len(log.read_text())
    with opened_pool(logged_server.url) as pool, pool.reserve(), pool.pinned() as pinned, pool.connection() as conn:
        pinned.execute("LISTEN something")
        conn.execute("SELECT 1")

    said = log.read_text()[before:]

    assert "unexpected EOF" not in said
