"""Taking connections: what is handed out works, and a caller who gets none is told why."""

from __future__ import annotations

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from tests.factories import InThread, backend_pid, is_there, num_sessions, scalar, terminate
from tests.pool.conftest import OpenPool
from worker.pool import Connection, Pool, holder


def take_and_hold(pool: Pool, who: str) -> Connection:
    token = holder.set(who)
    try:
        return pool.getconn()
    finally:
        holder.reset(token)


def test_a_timeout_names_the_job_that_holds_the_connection(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=1)
    held = take_and_hold(pool, "job charge 42")

    waiting = InThread(lambda: pool.getconn(timeout=0.05))

    with pytest.raises(PoolTimeout, match="job charge 42 for "):
        waiting.result()

    pool.putconn(held)


def test_a_timeout_names_the_place_where_the_connection_was_taken(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=1)
    held = take_and_hold(pool, "job charge 42")

    waiting = InThread(lambda: pool.getconn(timeout=0.05))

    with pytest.raises(PoolTimeout, match=r"taken at test_acquiring\.py:\d+ take_and_hold"):
        waiting.result()

    pool.putconn(held)


def test_a_checkout_outside_of_jobs_is_named_by_its_thread(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=1)

    with pool.connection():
        waiting = InThread(lambda: pool.getconn(timeout=0.05))
        with pytest.raises(PoolTimeout, match="thread MainThread for"):
            waiting.result()


def test_a_timeout_says_how_long_was_waited_and_how_large_the_pool_is(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=1)

    with pool.connection():
        waiting = InThread(lambda: pool.getconn(timeout=0.1))
        with pytest.raises(PoolTimeout, match=r"no connection within 0\.1 s, pool of 1"):
            waiting.result()


def test_a_connection_that_died_while_idle_is_not_handed_out(pool: Pool, db: psycopg.Connection) -> None:
    with pool.connection() as conn:
        pid = backend_pid(conn)
    terminate(db, pid)

    with pool.connection() as conn:
        assert scalar(conn, "SELECT pg_backend_pid()") != pid


def test_all_idle_connections_dying_at_once_is_noticed_by_nobody(open_pool: OpenPool, db: psycopg.Connection) -> None:
    pool = open_pool(max_size=5)
    taken = [pool.getconn() for _ in range(5)]
    pids = [backend_pid(conn) for conn in taken]
    for conn in taken:
        pool.putconn(conn)
    for pid in pids:
        terminate(db, pid)

    taken = [pool.getconn() for _ in range(5)]
    answers = [scalar(conn, "SELECT 1") for conn in taken]
    for conn in taken:
        pool.putconn(conn)

    assert answers == [1] * 5


def test_a_connection_that_broke_in_use_is_replaced(open_pool: OpenPool, db: psycopg.Connection) -> None:
    pool = open_pool(max_size=1)
    with pool.connection() as conn:
        terminate(db, backend_pid(conn))

    with pool.connection() as conn:
        assert scalar(conn, "SELECT 1") == 1


def test_a_connection_closed_by_its_user_is_replaced(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=1)
    conn = pool.getconn()
    conn.close()
    pool.putconn(conn)

    with pool.connection() as conn:
        assert scalar(conn, "SELECT 1") == 1


def test_a_transaction_left_open_is_rolled_back_on_return(open_pool: OpenPool, db: psycopg.Connection) -> None:
    pool = open_pool(max_size=1)
    db.execute("CREATE TABLE note (id int)")
    conn = pool.getconn()
    conn.execute("INSERT INTO note VALUES (1)")

    pool.putconn(conn)

    assert scalar(db, "SELECT count(*) FROM note") == 0


def test_a_block_that_raises_gives_its_connection_back(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=1)

    with pytest.raises(ZeroDivisionError), pool.connection():
        _ = 1 / 0

    assert (pool.num_out, pool.num_idle) == (0, 1)


def test_a_cold_pool_serves_as_many_callers_as_it_has_connections(open_pool: OpenPool, db: psycopg.Connection) -> None:
    pool = open_pool(max_size=8)

    callers = [InThread(pool.getconn) for _ in range(8)]
    taken = [caller.result() for caller in callers]

    assert num_sessions(db) == 8
    for conn in taken:
        pool.putconn(conn)


def test_checkouts_are_listed_longest_first(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=2)
    first, second = take_and_hold(pool, "job first"), take_and_hold(pool, "job second")

    assert [checkout.holder for checkout in pool.checkouts()] == ["job first", "job second"]

    pool.putconn(first)
    pool.putconn(second)


def test_what_somebody_who_is_gone_kept_is_ended_and_replaced(open_pool: OpenPool, db: psycopg.Connection) -> None:
    pool = open_pool(max_size=1)
    kept = take_and_hold(pool, "job charge 42")
    pid = backend_pid(kept)

    pool.reclaim("job charge 42")

    assert not is_there(db, pid)
    with pool.connection(timeout=2) as conn:
        assert scalar(conn, "SELECT 1") == 1


def test_what_others_hold_is_not_reclaimed(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=1)
    held = take_and_hold(pool, "job charge 42")

    pool.reclaim("job charge 43")

    assert scalar(held, "SELECT 1") == 1
    pool.putconn(held)
