"""The hard cap: never more sessions than `max_size`, counted by the server itself."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psycopg
import pytest

from tests.factories import APPLICATION, InThread, num_sessions, scalar
from tests.pool.conftest import OpenPool
from tests.waiting import wait_until
from worker.pool import Pool

KILLS = 40


class Sampler:
    """Counts sessions as fast as it can, from a connection of its own."""

    def __init__(self) -> None:
        self.most = self.looks = 0

    def look(self, db: psycopg.Connection) -> None:
        self.most = max(self.most, num_sessions(db))
        self.looks += 1


@contextmanager
def sampling(database: str) -> Iterator[Sampler]:
    sampler, over = Sampler(), threading.Event()

    def sample() -> None:
        with psycopg.connect(database, autocommit=True) as db:
            while not over.is_set():
                sampler.look(db)

    thread = InThread(sample)
    try:
        yield sampler
    finally:
        over.set()
        thread.result()


@contextmanager
def users(pool: Pool, count: int) -> Iterator[None]:
    """Threads that take connections and give them back, whatever happens to them."""
    over = threading.Event()

    def use() -> None:
        while not over.is_set():
            try:
                with pool.connection(timeout=10) as conn:
                    conn.execute("SELECT 1")
            except psycopg.OperationalError:
                pass  # killed in use: that is what this test does

    threads = [InThread(use) for _ in range(count)]
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.result()


def kill_one(db: psycopg.Connection) -> int:
    """Terminate one session of the pool, if there is one; how many."""
    # Other tests may use the same server, with databases of their own.
    query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND datname = current_database()"
    listed = db.execute(query, [APPLICATION]).fetchall()
    if not listed:
        return 0
    db.execute("SELECT pg_terminate_backend(%s)", random.choice(listed))  # noqa: S311  # any will do
    return 1


def test_the_cap_holds_while_connections_are_killed_and_replaced(
    open_pool: OpenPool, database: str, db: psycopg.Connection
) -> None:
    pool = open_pool(max_size=4)
    with sampling(database) as sampler, users(pool, 6):
        killed = 0
        while killed < KILLS:
            killed += kill_one(db)

    assert sampler.most <= 4


def test_the_cap_holds_with_a_pinned_connection_that_is_killed_and_made_again(
    open_pool: OpenPool, database: str, db: psycopg.Connection
) -> None:
    pool = open_pool(max_size=3)
    with ExitStack() as stack:
        stack.enter_context(pool.reserve())
        sampler = stack.enter_context(sampling(database))
        stack.enter_context(users(pool, 4))
        for _ in range(KILLS // 2):
            with pool.pinned() as conn:
                kill_one(db)
                conn.close()

    assert sampler.most <= 3


def test_a_sampler_that_looked_saw_the_pool_at_its_cap(
    open_pool: OpenPool, database: str, db: psycopg.Connection
) -> None:
    """Otherwise the two tests above would pass with a sampler that is blind."""
    pool = open_pool(max_size=4)

    with sampling(database) as sampler:
        taken = [pool.getconn() for _ in range(4)]
        wait_until(lambda: sampler.most >= 4, 5, "a look at the full pool")
        for conn in taken:
            pool.putconn(conn)

    assert sampler.most == 4


@pytest.mark.parametrize("round_", range(3))
def test_closing_a_connection_returns_when_its_session_is_gone(
    open_pool: OpenPool, db: psycopg.Connection, round_: int
) -> None:
    pool = open_pool(max_size=8)
    taken = [pool.getconn() for _ in range(8)]

    left = []
    for conn in taken:
        conn.close()
        left.append(num_sessions(db))

    assert left == [7, 6, 5, 4, 3, 2, 1, 0]
    for conn in taken:
        pool.putconn(conn)


def test_closing_a_connection_in_the_middle_of_a_statement_ends_its_session_too(
    open_pool: OpenPool, db: psycopg.Connection
) -> None:
    """The server hears Terminate only when the statement is over."""
    pool = open_pool(max_size=1)
    conn = pool.getconn()
    conn.pgconn.send_query(b"SELECT pg_sleep(600)")
    wait_until(lambda: scalar(db, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"), 5, "the query")

    conn.close()

    assert num_sessions(db) == 0
    pool.putconn(conn)


@pytest.mark.parametrize("mends", [False, True], ids=["by itself", "with a session that works"])
def test_the_seat_of_a_connection_that_broke_in_a_statement_is_free_when_its_session_has_ended(
    open_pool: OpenPool, database: str, db: psycopg.Connection, *, mends: bool
) -> None:
    """Something on the way has broken it, and the server is at work for it until it notices."""
    pool = open_pool(max_size=2 + mends)
    with ExitStack() as stack:
        if mends:
            stack.enter_context(pool.reserve())
            reserved = stack.enter_context(pool.pinned())
        busy = [InThread(lambda: _sleep(pool)) for _ in range(2)]
        wait_until(lambda: _num_asleep(db) == 2, 5, "both statements")
        sampler = stack.enter_context(sampling(database))
        for checkout in pool.checkouts():
            assert checkout.conn is not None
            checkout.conn.wake()
        for one in busy:
            with pytest.raises(psycopg.OperationalError):
                one.result()
        again = [InThread(lambda: _select(pool)) for _ in range(2)]
        while mends and any(one.is_running for one in again):
            pool.mend(reserved)
        for one in again:
            one.result()

    assert sampler.most == 2 + mends


def _sleep(pool: Pool) -> None:
    with pool.connection() as conn:
        conn.execute("SELECT pg_sleep(600)")


def _select(pool: Pool) -> None:
    with pool.connection(timeout=10) as conn:
        conn.execute("SELECT 1")


def _num_asleep(db: psycopg.Connection) -> int:
    return int(
        scalar(
            db,
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()",
        )
    )
