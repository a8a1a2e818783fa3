"""The sweep: what is too old goes although nobody asks, and what is missing comes."""

from __future__ import annotations

import psycopg
import pytest

from tests.factories import InThread, backend_pid, column, is_there, num_sessions, scalar
from tests.pool.conftest import Events, OpenPool
from tests.pool.proxy import black_hole
from tests.waiting import wait_until
from worker.pool import ConnectOptions, Pool


def pids(db: psycopg.Connection) -> set[int]:
    return set(
        column(
            db,
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'carpool-test'",
        )
    )


def test_idle_connections_go_all_at_once_after_the_idle_timeout(open_pool: OpenPool, db: psycopg.Connection) -> None:
    pool = open_pool(max_size=5, idle_timeout=0.5)
    for conn in [pool.acquire() for _ in range(5)]:
        pool.release(conn)

    wait_until(lambda: num_sessions(db) == 0, 3, "all five to end")

    # The server knows a moment before the pool does.
    wait_until(lambda: pool.size == 0, 3, "their seats to be free")


def test_the_idle_timeout_holds_below_the_minimum_too(open_pool: OpenPool, db: psycopg.Connection) -> None:
    """A proxy on the way forgets idle connections, whatever our minimum is: they are replaced by fresh ones."""
    pool = open_pool(max_size=5, min_size=2, idle_timeout=0.5)
    wait_until(lambda: pool.num_idle == 2, 5, "the minimum")
    before = pids(db)

    wait_until(lambda: len(pids(db)) == 2 and not before & pids(db), 5, "two fresh ones")


def test_a_connection_in_use_is_not_idle(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=1, idle_timeout=0.05)

    with pool.connection() as conn:
        pid = backend_pid(conn)
        pool.sweep_once()
        assert scalar(conn, "SELECT pg_backend_pid()") == pid


def test_the_lifetime_holds_below_the_minimum_too(open_pool: OpenPool, db: psycopg.Connection) -> None:
    pool = open_pool(max_size=5, min_size=1, max_lifetime=0.5)
    before = pids(db)

    wait_until(lambda: len(pids(db)) == 1 and not before & pids(db), 5, "a fresh one")
    assert pool.size == 1


def test_a_connection_past_its_lifetime_is_not_handed_out(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=1)
    with pool.connection() as conn:
        pid = backend_pid(conn)
    conn._expire_at = 0

    with pool.connection() as conn:
        assert backend_pid(conn) != pid


def test_a_connection_past_its_idle_timeout_is_not_handed_out(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=1)
    with pool.connection() as conn:
        pid = backend_pid(conn)
    conn.idle_since -= 121

    with pool.connection() as conn:
        assert backend_pid(conn) != pid


def test_a_connection_past_its_lifetime_is_ended_when_it_comes_back(
    open_pool: OpenPool, db: psycopg.Connection
) -> None:
    pool = open_pool(max_size=1)
    with pool.connection() as conn:
        pid = backend_pid(conn)
        conn._expire_at = 0

    assert not is_there(db, pid)


def test_draining_replaces_idle_connections_and_those_out_when_they_come_back(
    open_pool: OpenPool, db: psycopg.Connection
) -> None:
    pool = open_pool(max_size=2)
    out, idle = pool.acquire(), pool.acquire()
    before = {backend_pid(out), backend_pid(idle)}
    pool.release(idle)

    pool.drain()

    assert scalar(out, "SELECT 1") == 1
    pool.release(out)
    with pool.connection() as first, pool.connection() as second:
        assert not before & {backend_pid(first), backend_pid(second)}


def test_a_notice_to_an_idle_connection_does_not_end_it(open_pool: OpenPool, db: psycopg.Connection) -> None:
    pool = open_pool(max_size=1)
    with pool.connection() as conn:
        pid = backend_pid(conn)
        conn.execute("LISTEN something")
    db.execute("NOTIFY something")

    pool.sweep_once()

    assert pids(db) == {pid}
    assert pool.num_idle == 1


def test_one_failed_pass_is_logged_and_not_the_last(
    open_pool: OpenPool, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, passes = open_pool(), 0

    def fail() -> None:
        nonlocal passes
        passes += 1
        raise ZeroDivisionError

    monkeypatch.setattr(pool._sweep, "_sweep_once", fail)

    wait_until(lambda: passes >= 2, 5, "a second pass")
    assert any(event["event"] == "pool.sweep_failed" for event in events)


def test_leaks_are_found_while_all_threads_of_the_pool_are_busy_with_a_dead_server(
    open_pool: OpenPool, db: psycopg.Connection
) -> None:
    pool = open_pool(max_size=10)
    pid = drop_one(pool)
    with black_hole() as nowhere:
        pool.connect_options = ConnectOptions(nowhere, {"connect_timeout": 3})
        waiters = [InThread(lambda: pool.try_acquire() or pool.acquire(timeout=2.5)) for _ in range(8)]

        wait_until(lambda: not is_there(db, pid), 2, "the leak to be found")

        for waiter in waiters:
            with pytest.raises(psycopg.OperationalError):
                waiter.result()


def drop_one(pool: Pool) -> int:
    return backend_pid(pool.acquire())
