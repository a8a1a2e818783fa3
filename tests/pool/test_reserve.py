"""The runtime's own connection: one that jobs can never take, whatever they do to the pool."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from tests.factories import InThread, backend_pid, num_sessions, scalar, terminate
from tests.pool.conftest import OpenPool
from tests.waiting import wait_until
from worker.pool import Pool


@pytest.fixture
def reserved(open_pool: OpenPool) -> Iterator[Pool]:
    """A pool of 2, one of them reserved and not taken yet."""
    pool = open_pool(max_size=2)
    with pool.reserve():
        yield pool


def test_jobs_get_one_connection_less(reserved: Pool) -> None:
    with reserved.connection(), pytest.raises(PoolTimeout):
        reserved.getconn(timeout=0.1)


def test_the_reserved_connection_is_there_for_the_runtime_when_jobs_hold_all_others(reserved: Pool) -> None:
    with reserved.connection(), reserved.pinned() as conn:
        assert scalar(conn, "SELECT 1") == 1


def test_the_reserved_connection_can_be_made_again_while_jobs_wait_for_one(
    reserved: Pool, db: psycopg.Connection
) -> None:
    with reserved.connection():
        waiter = InThread(lambda: reserved.getconn(timeout=0.5))
        wait_until(lambda: reserved.get_stats()["requests_waiting"], 5, "a job to wait")
        with reserved.pinned() as conn:
            terminate(db, backend_pid(conn))

        with reserved.pinned() as conn:
            assert scalar(conn, "SELECT 1") == 1

        with pytest.raises(PoolTimeout):
            waiter.result()


def test_a_pinned_session_ends_with_its_block(reserved: Pool, db: psycopg.Connection) -> None:
    with reserved.pinned():
        pass

    assert num_sessions(db) == 0


def test_no_job_inherits_the_settings_of_the_pinned_session(reserved: Pool) -> None:
    with reserved.pinned() as conn:
        conn.execute("SET statement_timeout = '17s'")

    with reserved.connection() as conn:
        assert scalar(conn, "SHOW statement_timeout") == "0"


def test_a_connection_too_many_is_ended_when_one_is_set_aside(open_pool: OpenPool, db: psycopg.Connection) -> None:
    pool = open_pool(max_size=2)
    for conn in [pool.getconn() for _ in range(2)]:
        pool.putconn(conn)

    with pool.reserve():
        assert num_sessions(db) == 1


def test_the_place_is_given_back_at_the_end(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=2)
    with pool.reserve():
        pass

    with pool.connection(), pool.connection(timeout=2) as second:
        assert scalar(second, "SELECT 1") == 1
