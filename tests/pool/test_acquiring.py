"""Taking connections: what is handed out works, and a caller who gets none is told why."""

from __future__ import annotations

import threading

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from tests.factories import InThread, backend_pid, is_there, num_sessions, scalar, terminate
from tests.pool.conftest import OpenPool
from tests.waiting import wait_until
from worker.pool import Connection, ConnectOptions, Pool, holder


def take_and_hold(pool: Pool, who: str) -> Connection:
    token = holder.set(who)
    try:
        return pool.getconn()
    finally:
        holder.reset(token)


def insert_and_fail(conn: psycopg.Connection) -> None:
    conn.execute("INSERT INTO note VALUES (1)")
    raise ZeroDivisionError


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


def test_a_block_commits_at_its_end(pool: Pool, db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE note (id int)")

    with pool.connection() as conn:
        conn.execute("INSERT INTO note VALUES (1)")

    assert scalar(db, "SELECT count(*) FROM note") == 1


def test_a_block_that_raises_rolls_back(pool: Pool, db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE note (id int)")

    with pytest.raises(ZeroDivisionError), pool.connection() as conn:
        insert_and_fail(conn)

    assert scalar(db, "SELECT count(*) FROM note") == 0


def test_begin_is_in_a_transaction_before_the_first_statement(pool: Pool) -> None:
    with pool.begin() as conn:
        assert conn.info.transaction_status.name == "INTRANS"


def test_begin_refuses_that_its_block_commits_in_the_middle(pool: Pool) -> None:
    with pool.begin() as conn, pytest.raises(psycopg.ProgrammingError, match="commit"):
        conn.commit()


def test_begin_rolls_back_what_raised(pool: Pool, db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE note (id int)")

    with pytest.raises(ZeroDivisionError), pool.begin() as conn:
        insert_and_fail(conn)

    assert scalar(db, "SELECT count(*) FROM note") == 0


def test_a_rollback_raised_in_begin_ends_with_its_block(pool: Pool, db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE note (id int)")

    with pool.begin() as conn:
        conn.execute("INSERT INTO note VALUES (1)")
        raise psycopg.Rollback

    assert scalar(db, "SELECT count(*) FROM note") == 0
    assert pool.num_out == 0


def test_begin_works_on_connections_in_autocommit(open_pool: OpenPool, db: psycopg.Connection) -> None:
    def commit_by_itself(conn: psycopg.Connection) -> None:
        conn.autocommit = True

    pool = open_pool(after_connect=commit_by_itself)
    db.execute("CREATE TABLE note (id int)")

    with pytest.raises(ZeroDivisionError), pool.begin() as conn:
        insert_and_fail(conn)

    assert scalar(db, "SELECT count(*) FROM note") == 0


def test_a_timeout_with_no_server_in_reach_says_so(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=1)
    pool.connect_options = ConnectOptions("host=127.0.0.1 port=1 user=someone")
    with pool.connection() as conn:
        conn.close()

    with pytest.raises(PoolTimeout, match=r"none of them is out: the server is away .*refused"):
        pool.acquire(timeout=1)


@pytest.mark.parametrize("answer", [False, ZeroDivisionError()])
def test_before_acquire_can_refuse_a_connection(open_pool: OpenPool, answer: object) -> None:
    refused: list[int] = []

    def refuse_the_first(conn: psycopg.Connection) -> bool:
        if refused and backend_pid(conn) not in refused:
            return True
        refused.append(backend_pid(conn))
        if isinstance(answer, Exception):
            raise answer
        return False

    pool = open_pool(max_size=1, before_acquire=refuse_the_first)

    with pool.connection(timeout=5) as conn:
        assert backend_pid(conn) not in refused
    assert len(refused) == 1


@pytest.mark.parametrize("answer", [False, ZeroDivisionError()])
def test_after_release_can_refuse_a_connection(open_pool: OpenPool, answer: object, db: psycopg.Connection) -> None:
    def refuse(conn: psycopg.Connection) -> bool:
        if isinstance(answer, Exception):
            raise answer
        return False

    pool = open_pool(max_size=1, after_release=refuse)
    with pool.connection() as conn:
        pid = backend_pid(conn)

    assert not is_there(db, pid)
    with pool.connection(timeout=5) as conn:
        assert backend_pid(conn) != pid


def test_hooks_that_allow_are_called_at_each_turn(open_pool: OpenPool) -> None:
    called: list[str] = []
    pool = open_pool(
        max_size=1,
        after_connect=lambda conn: called.append("after_connect"),
        before_acquire=lambda conn: called.append("before_acquire"),
        after_release=lambda conn: called.append("after_release"),
    )
    for _ in range(2):
        with pool.connection():
            called.append("used")

    turn = ["before_acquire", "used", "after_release"]
    assert called == ["after_connect", *turn, *turn]


def test_a_hook_may_run_statements_and_leaves_no_transaction(open_pool: OpenPool) -> None:
    def ask(conn: psycopg.Connection) -> None:
        conn.execute("SELECT 1")

    pool = open_pool(max_size=1, before_acquire=ask, after_release=ask)

    with pool.connection() as conn:
        assert conn.info.transaction_status.name == "IDLE"
    assert pool.num_idle == 1


def test_giving_back_twice_is_refused(pool: Pool) -> None:
    conn = pool.acquire()
    pool.release(conn)

    with pytest.raises(ValueError, match="was it given back before"):
        pool.release(conn)


def test_a_connection_of_somebody_else_is_not_taken_back(pool: Pool, db: psycopg.Connection) -> None:
    with pytest.raises(ValueError, match="it is not out of"):
        pool.release(db)


def test_an_interrupted_check_loses_no_connection(open_pool: OpenPool) -> None:
    interrupts: list[BaseException] = [KeyboardInterrupt()]

    def interrupted(conn: psycopg.Connection) -> None:
        if interrupts:
            raise interrupts.pop()

    pool = open_pool(max_size=1, before_acquire=interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.acquire()

    with pool.connection(timeout=5) as conn:
        assert scalar(conn, "SELECT 1") == 1


def test_the_pool_counts_what_it_does(pool: Pool) -> None:
    with pool.connection(), pool.connection():
        stats = pool.stats()

    assert (stats.max_size, stats.size, stats.out, stats.idle, stats.waiting) == (3, 2, 2, 0, 0)
    assert (stats.requests_total, stats.queued_total, stats.connects_total) == (2, 1, 2)
    assert stats.oldest_checkout > 0


def test_the_time_that_callers_waited_is_counted_when_they_are_served(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=1)
    with pool.connection():
        waiter = InThread(pool.acquire)
        wait_until(lambda: pool.stats().waiting == 1, 5, "the thread to wait")
        assert not threading.Event().wait(0.2)

    pool.release(waiter.result())
    assert pool.stats().waited_seconds_total >= 0.2


def test_sizes_say_what_is_idle_and_what_is_out(pool: Pool) -> None:
    with pool.connection():
        with pool.connection():
            pass

        assert (pool.size, pool.num_idle, pool.num_out, pool.max_size, pool.is_closed) == (2, 1, 1, 3, False)
