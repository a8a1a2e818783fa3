"""The supply: whatever ends a connection or keeps one from being made, its seat is free when its session is gone."""

from __future__ import annotations

import queue
from typing import NoReturn

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from tests.factories import num_sessions, scalar
from tests.pool.conftest import Events, OpenPool
from tests.pool.proxy import Proxy, proxied
from tests.waiting import wait_until
from worker import clock
from worker.errors import DatabaseUnavailable, Refused
from worker.pool import Connection, ConnectOptions, Pool, supply


def fill(pool: Pool, count: int) -> None:
    """Have *count* idle connections."""
    for conn in [pool.acquire() for _ in range(count)]:
        pool.release(conn)


def go_round(pool: Pool, proxy: Proxy, database: str) -> None:
    """The proxy says nothing any more; new connections do without it."""
    pool.connect_options = ConnectOptions(database, pool.connect_options.parameters)
    proxy.go_silent()


def all_workers_live(pool: Pool) -> bool:
    return len(pool._workers) == pool.num_workers and all(worker.is_alive() for worker in pool._workers)


def test_a_finalizer_can_put_a_task_in_the_middle_of_taking_one(pool: Pool) -> None:
    """The garbage collector runs it in any thread at any time; only this kind of queue is documented to bear that."""
    assert isinstance(pool._tasks, queue.SimpleQueue)


def test_draining_silent_connections_blocks_nobody_and_keeps_the_cap(
    open_pool: OpenPool, database: str, db: psycopg.Connection
) -> None:
    with proxied(database) as proxy:
        pool = open_pool(proxy.conninfo, max_size=2, min_size=2)
        fill(pool, 2)
        go_round(pool, proxy, database)
        started = clock.monotonic()

        pool.drain()

        assert clock.monotonic() - started < 1
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=1.5)
        assert num_sessions(db) == 2


def test_checking_silent_connections_takes_one_timeout_and_keeps_the_cap(
    open_pool: OpenPool, database: str, db: psycopg.Connection
) -> None:
    with proxied(database) as proxy:
        pool = open_pool(proxy.conninfo, max_size=4, min_size=4)
        fill(pool, 4)
        go_round(pool, proxy, database)
        started = clock.monotonic()

        pool.check()

        assert clock.monotonic() - started < 2.5
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=1.5)
        assert num_sessions(db) == 4


def test_checking_connections_that_answer_keeps_them(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=2)
    fill(pool, 2)
    before = set(pool._pool)

    pool.check()

    assert set(pool._pool) == before


def test_a_sweep_over_many_silent_suspects_takes_one_timeout(
    open_pool: OpenPool, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxied(database) as proxy:
        pool = open_pool(proxy.conninfo, max_size=5)
        pool._sweep.stop(5)
        fill(pool, 5)
        proxy.go_silent()
        monkeypatch.setattr(Connection, "has_news", lambda _: True)
        started = clock.monotonic()

        pool.sweep_supply()

        assert clock.monotonic() - started < 2.5
        assert pool.num_idle == 0


def test_a_sweep_over_many_silent_stale_ones_waits_for_none(open_pool: OpenPool, database: str) -> None:
    with proxied(database) as proxy:
        pool = open_pool(proxy.conninfo, max_size=8)
        pool._sweep.stop(5)
        fill(pool, 8)
        proxy.go_silent()
        for conn in pool._pool:
            conn._expire_at = 0
        started = clock.monotonic()

        pool.sweep_supply()

        assert clock.monotonic() - started < 0.5


def test_resizing_is_refused_naming_the_options(pool: Pool) -> None:
    with pytest.raises(Refused, match=r"resize\(1, 9\).*PoolOptions\(min_size=..., max_size=...\).*WORKER_POOL_SIZE"):
        pool.resize(1, 9)

    assert pool.max_size == 3


def test_a_connection_that_the_hook_failed_on_keeps_a_seat_until_its_session_has_ended(
    open_pool: OpenPool, database: str, db: psycopg.Connection
) -> None:
    with proxied(database) as proxy:
        made: list[psycopg.Connection] = []

        def fail_in_silence(conn: psycopg.Connection) -> None:
            made.append(conn)
            if len(made) == 2:
                go_round(pool, proxy, database)
                raise ZeroDivisionError

        pool = open_pool(proxy.conninfo, max_size=2, after_connect=fail_in_silence)
        with pool.connection():
            with pytest.raises(PoolTimeout, match="the server has not ended"):
                pool.acquire(timeout=4)

            assert len(made) == 2
            assert num_sessions(db) == 2
            assert pool.size == 2


@pytest.mark.parametrize("leaving", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_hook_that_leaves_costs_neither_a_thread_of_the_pool_nor_a_seat(
    open_pool: OpenPool, leaving: type[BaseException]
) -> None:
    made = 0

    def leave_for_a_while(_: psycopg.Connection) -> None:
        nonlocal made
        made += 1
        if 2 <= made <= 7:
            raise leaving

    pool = open_pool(max_size=2, after_connect=leave_for_a_while)

    with pool.connection(), pool.connection(timeout=15) as second:
        assert scalar(second, "SELECT 1") == 1
    assert all_workers_live(pool)
    assert pool.size == 2
    wait_until(lambda: pool._num_growing == 0, 5, "nothing to be in the making")


def test_a_hook_that_leaves_when_a_connection_comes_back_costs_no_seat(open_pool: OpenPool) -> None:
    def leave(_: psycopg.Connection) -> NoReturn:
        raise SystemExit

    pool = open_pool(max_size=1, after_release=leave)

    conn = pool.acquire()
    with pytest.raises(SystemExit):
        pool.release(conn)

    wait_until(lambda: pool.size == 0, 5, "the seat to be free")


def test_an_interrupt_while_a_connection_is_ended_costs_no_seat(
    open_pool: OpenPool, monkeypatch: pytest.MonkeyPatch, db: psycopg.Connection
) -> None:
    pool = open_pool(max_size=1)
    conn = pool.acquire()
    pool._end_checkout(conn)
    with monkeypatch.context() as patch:
        patch.setattr(conn, "close", lambda _: interrupt())
        with pytest.raises(KeyboardInterrupt):
            pool.retire(conn)
        assert pool.size == 1  # its session lives

    pool.sweep_supply()

    wait_until(lambda: pool.size == 0, 5, "the seat to be free")
    assert num_sessions(db) == 0


def interrupt() -> NoReturn:
    raise KeyboardInterrupt


KEEPALIVES = {
    "tcp_keepalives_idle": 30, "tcp_keepalives_interval": 10, "tcp_keepalives_count": 3, "tcp_user_timeout": 30_000,
}  # fmt: skip
SHOW = "SELECT name, setting::int FROM pg_settings WHERE name = ANY(%s)"


def kept_alive(conn: psycopg.Connection) -> dict[str, int]:
    return dict(conn.execute(SHOW, [list(KEEPALIVES)]).fetchall())


def is_over_tcp(conn: psycopg.Connection) -> bool:
    return scalar(conn, "SELECT client_addr FROM pg_stat_activity WHERE pid = pg_backend_pid()") is not None


def over_tcp(url: str) -> str:
    with psycopg.connect(url) as conn:
        user, port, name = conn.info.user, conn.info.port, conn.info.dbname
    return f"host=127.0.0.1 port={port} user={user} dbname={name}"


def test_the_server_gives_up_a_client_that_vanished_as_soon_as_the_client_gives_up_the_server(
    open_pool: OpenPool, database: str
) -> None:
    try:
        pool = open_pool(over_tcp(database))
    except DatabaseUnavailable:
        pytest.skip("the server listens on no TCP port")

    with pool.connection() as conn:
        assert is_over_tcp(conn)
        assert kept_alive(conn) == KEEPALIVES


def test_a_session_over_a_unix_socket_has_no_keepalives_and_is_none_the_worse(pool: Pool) -> None:
    with pool.connection() as conn:
        if is_over_tcp(conn):
            pytest.skip("the server is reached over TCP")
        assert set(kept_alive(conn).values()) == {0}
        assert scalar(conn, "SHOW client_connection_check_interval") == "2s"


def test_a_server_that_cannot_look_for_its_client_still_keeps_the_session_alive(
    open_pool: OpenPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supply, "_CHECK_CLIENT", "SET client_connection_check_interval = 'never'")
    pool = open_pool()

    with pool.connection() as conn:
        assert scalar(conn, "SHOW client_connection_check_interval") == "0"
        assert scalar(conn, "SELECT source FROM pg_settings WHERE name = 'tcp_keepalives_idle'") == "session"


def test_a_connection_is_set_up_in_one_trip(open_pool: OpenPool, database: str) -> None:
    with proxied(database) as proxy:
        open_pool(proxy.conninfo)

        assert bytes(proxy.sent).count(b"SET client_connection_check_interval") == 1
        assert bytes(proxy.sent).count(b"; SET tcp_keepalives_idle") == 1


def failure_of(pool: Pool) -> str:
    """Why a caller gets nothing, in the error's words."""
    with pytest.raises(PoolTimeout) as caught:
        pool.acquire(timeout=0.6)
    assert str(pool._failure) in str(caught.value)
    return str(pool._failure)


def test_a_hook_that_fails_is_told_to_who_waits(open_pool: OpenPool, events: Events) -> None:
    made = 0

    def after_the_first(_: psycopg.Connection) -> None:
        nonlocal made
        made += 1
        if made > 1:
            raise ValueError("no such tenant")

    pool = open_pool(max_size=2, after_connect=after_the_first)
    pool.drain()

    assert failure_of(pool) == ("raised by the pool's hook after_connect=after_the_first: ValueError('no such tenant')")
    assert [event["hook"] for event in events if event["event"] == "pool.hook_failed"] == ["after_the_first"]
    assert not any(event["event"] == "pool.unreachable" for event in events)


def test_a_statement_of_a_hook_that_fails_is_not_taken_for_the_servers_absence(open_pool: OpenPool) -> None:
    statements = iter(["SELECT 1"])

    def prepare(conn: psycopg.Connection) -> None:
        conn.execute(next(statements, "SELECT nothing"))

    pool = open_pool(max_size=2, after_connect=prepare)
    pool.drain()

    assert failure_of(pool).startswith("raised by the pool's hook after_connect=prepare: UndefinedColumn(")
    assert isinstance(pool._failure, Refused)


def test_a_hook_that_refuses_every_connection_is_told_to_who_waits(open_pool: OpenPool) -> None:
    def refuse(_: psycopg.Connection) -> bool:
        return False

    pool = open_pool(max_size=1, before_acquire=refuse)

    assert failure_of(pool) == "the hook before_acquire=refuse refused the last connection"


def test_connections_that_expire_before_they_are_used_are_told_to_who_waits(
    open_pool: OpenPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = open_pool(max_size=1)
    monkeypatch.setattr(pool, "_is_expired", lambda *_: True)
    monkeypatch.setattr(pool, "max_idle", 0.0)

    assert failure_of(pool) == "the last connection was idle for longer than idle_timeout=0 s"


def test_what_failed_is_forgotten_when_somebody_is_served(open_pool: OpenPool) -> None:
    answers = iter([False])
    pool = open_pool(max_size=1, before_acquire=lambda _: next(answers, True))

    with pool.connection():
        assert pool._failure is None
