"""Health: restarts, outages and silent networks cost callers as little as can be, and never their deadline."""

from __future__ import annotations

import asyncio
import threading

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from tests.factories import InThread, column, num_sessions, scalar
from tests.pool.conftest import Events, OpenPool
from tests.pool.outage import Server
from tests.pool.proxy import black_hole, proxied
from tests.waiting import wait_until
from worker import clock
from worker.pool import ConnectOptions, Pool

OUTAGE = 3.0


def fill(pool: Pool, count: int) -> None:
    """Have *count* idle connections."""
    for conn in [pool.acquire() for _ in range(count)]:
        pool.release(conn)


def answer(pool: Pool, timeout: float | None = None) -> object:
    with pool.connection(timeout) as conn:
        return scalar(conn, "SELECT 1")


def make_old(pool: Pool) -> None:
    """As if the idle ones had been idle for longer than is believed without asking."""
    for conn in pool._pool:
        conn.idle_since -= 31


def test_a_restart_of_the_server_under_ten_idle_connections_costs_no_error(
    open_pool: OpenPool, stoppable: Server
) -> None:
    pool = open_pool(stoppable.url, max_size=10)
    fill(pool, 10)
    stoppable.stop()
    stoppable.start()
    started = clock.monotonic()

    answers = [InThread(lambda: answer(pool)) for _ in range(10)]

    assert [each.result() for each in answers] == [1] * 10
    assert clock.monotonic() - started < 1


def test_a_restart_between_two_statements_of_coroutines_costs_no_error(open_pool: OpenPool, stoppable: Server) -> None:
    pool = open_pool(stoppable.url, max_size=3)
    fill(pool, 3)
    stoppable.stop()
    stoppable.start()

    async def use() -> object:
        async with pool.connection() as conn:
            return await (await conn.execute("SELECT 1")).fetchone()

    assert asyncio.run(use()) == (1,)


def test_after_an_outage_who_waits_is_served_within_two_seconds(open_pool: OpenPool, stoppable: Server) -> None:
    pool = open_pool(stoppable.url, max_size=3)
    fill(pool, 3)
    stoppable.stop()
    waiters = [InThread(lambda: answer(pool, 60)) for _ in range(5)]
    threading.Event().wait(OUTAGE)

    stoppable.start()
    started = clock.monotonic()

    assert [waiter.result() for waiter in waiters] == [1] * 5
    assert clock.monotonic() - started < 2


def test_after_an_outage_that_nobody_waited_for_the_pool_is_back_within_two_seconds(
    open_pool: OpenPool, stoppable: Server
) -> None:
    pool = open_pool(stoppable.url, max_size=3, min_size=2)
    wait_until(lambda: pool.num_idle == 2, 5, "the minimum")
    stoppable.stop()
    wait_until(lambda: pool.num_idle == 0, 5, "the pool to notice")
    threading.Event().wait(OUTAGE)

    stoppable.start()
    started = clock.monotonic()

    wait_until(lambda: pool.num_idle == 2, 5, "the minimum to be back")
    assert clock.monotonic() - started < 2


def test_an_outage_is_logged_once_with_its_reason_and_once_when_it_is_over(
    open_pool: OpenPool, stoppable: Server, events: Events
) -> None:
    pool = open_pool(stoppable.url, max_size=3, min_size=1)
    stoppable.stop()
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=1.5)
    stoppable.start()
    answer(pool, 10)

    logged = [event for event in events if event["event"] in ("pool.unreachable", "pool.reachable")]
    assert [event["event"] for event in logged] == ["pool.unreachable", "pool.reachable"]
    assert "connection" in logged[0]["reason"]


def test_during_an_outage_callers_fail_at_their_deadline(open_pool: OpenPool, stoppable: Server) -> None:
    pool = open_pool(stoppable.url, max_size=3)
    stoppable.stop()
    started = clock.monotonic()

    with pytest.raises(PoolTimeout, match="the server is away"):
        pool.acquire(timeout=0.5)

    assert clock.monotonic() - started < 1.5
    stoppable.start()


def test_a_black_holed_address_never_holds_a_caller_past_its_deadline(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=5)
    with black_hole() as nowhere, pool.connection():
        pool.connect_options = ConnectOptions(nowhere, {"connect_timeout": 2})
        started = clock.monotonic()
        callers = [InThread(lambda: pool.acquire(timeout=0.5)) for _ in range(8)]

        for caller in callers:
            with pytest.raises(PoolTimeout):
                caller.result()

        assert clock.monotonic() - started < 2


def test_a_black_holed_address_never_holds_a_coroutine_past_its_deadline(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=5)
    with black_hole() as nowhere, pool.connection():
        pool.connect_options = ConnectOptions(nowhere, {"connect_timeout": 2})
        started = clock.monotonic()

        with pytest.raises(PoolTimeout):
            asyncio.run(pool.acquire_async(timeout=0.5))

        assert clock.monotonic() - started < 2


def test_a_network_that_went_silent_under_idle_connections_never_holds_a_caller_past_its_deadline(
    open_pool: OpenPool, database: str
) -> None:
    with proxied(database) as proxy:
        pool = open_pool(proxy.conninfo, max_size=10)
        fill(pool, 10)
        make_old(pool)
        proxy.go_silent()
        started = clock.monotonic()

        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=1)
        with pytest.raises(PoolTimeout):
            asyncio.run(pool.acquire_async(timeout=1))

        assert clock.monotonic() - started < 3.5


def test_a_connection_that_is_idle_for_long_is_asked_before_it_is_used(open_pool: OpenPool, database: str) -> None:
    with proxied(database) as proxy:
        pool = open_pool(proxy.conninfo, max_size=1)
        make_old(pool)
        before = len(proxy.sent)

        with pool.connection():
            wait_until(lambda: len(proxy.sent) > before, 5, "a question to the server")


def test_a_connection_that_was_used_a_moment_ago_is_not_asked(open_pool: OpenPool, database: str) -> None:
    with proxied(database) as proxy:
        pool = open_pool(proxy.conninfo, max_size=1)
        with pool.connection() as conn:
            conn.execute("SELECT 1")
        before = bytes(proxy.sent)

        with pool.connection():
            pass

        assert bytes(proxy.sent) == before


def test_the_minimum_is_kept_up_after_sessions_were_killed(open_pool: OpenPool, db: psycopg.Connection) -> None:
    pool = open_pool(max_size=5, min_size=3)
    wait_until(lambda: pool.num_idle == 3, 5, "the minimum")

    db.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'carpool-test'"
    )

    wait_until(lambda: num_sessions(db) == 3, 5, "the minimum to be made again")


def test_a_cold_burst_of_twenty_with_a_distant_server_is_served_in_time(open_pool: OpenPool, database: str) -> None:
    with proxied(database, delay=0.35) as proxy:
        pool = open_pool(proxy.conninfo, max_size=20)
        started, all_there = clock.monotonic(), threading.Barrier(20, timeout=10)

        def take() -> None:
            with pool.connection(timeout=5):
                all_there.wait()  # none is given back before all were served

        for caller in [InThread(take) for _ in range(20)]:
            caller.result()

        assert clock.monotonic() - started < 5


def test_a_statement_that_times_out_leaves_its_connection_usable(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=1)
    with pool.connection() as conn:
        pid = conn.info.backend_pid

    with pytest.raises(psycopg.errors.QueryCanceled), pool.connection() as conn:
        conn.execute("SET LOCAL statement_timeout = '20ms'").execute("SELECT pg_sleep(60)")

    with pool.connection() as conn:
        assert conn.info.backend_pid == pid


def test_a_session_killed_in_the_middle_of_a_statement_is_replaced_at_once(
    open_pool: OpenPool, db: psycopg.Connection
) -> None:
    pool = open_pool(max_size=1)

    def sleep() -> None:
        with pool.connection() as conn:
            conn.execute("SELECT pg_sleep(600)")

    sleeping = InThread(sleep)
    query = "SELECT pid FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)' AND state = 'active'"
    pid = wait_until(lambda: column(db, query), 5, "the sleep to begin")[0]
    db.execute("SELECT pg_terminate_backend(%s)", [pid])
    with pytest.raises(psycopg.errors.AdminShutdown):
        sleeping.result()

    assert answer(pool, 2) == 1
