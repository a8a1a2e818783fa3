"""The runtime's own connection: one that jobs can never take, whatever they do to the pool."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress

import psycopg
import pytest
from psycopg_pool import PoolTimeout
from structlog.testing import capture_logs

from tests.chaos.cable import Cable
from tests.factories import InThread, backend_pid, column, num_sessions, scalar, terminate
from tests.pool.conftest import OpenPool
from tests.waiting import wait_until
from worker.pool import Pool, mark

WAIT = 15.0


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


# A network that is silent


@pytest.fixture
def cable(database: str) -> Iterator[Cable]:
    with Cable(database) as cable:
        yield cable


def test_a_pinned_session_that_does_not_answer_is_given_up_after_its_patience(
    open_pool: OpenPool, cable: Cable
) -> None:
    pool = open_pool(cable.url, max_size=2)
    with pool.reserve(), pool.pinned(patience=0.2) as conn:
        cable.cut()

        with pytest.raises(psycopg.OperationalError, match=r"did not answer within 0\.2 s"):
            conn.execute("SELECT 1")


def test_what_a_silent_network_has_left_behind_is_ended_with_the_help_of_a_session_that_works(
    open_pool: OpenPool, cable: Cable, db: psycopg.Connection
) -> None:
    """One pinned, one idle, one in use: none of them is ever heard of again, and the server knows nothing of it."""
    pool = open_pool(cable.url, max_size=3)
    in_use, forgotten = threading.Event(), threading.Event()

    def wait_for_an_answer() -> None:
        with pool.connection() as conn:
            conn.execute("SELECT 1")
            in_use.set()
            assert forgotten.wait(WAIT)
            conn.execute("SELECT 2")

    with pool.reserve():
        waiting = InThread(wait_for_an_answer)
        assert in_use.wait(WAIT)
        with pool.connection() as idle:
            idle.execute("SELECT 1")
        with suppress(psycopg.OperationalError), pool.pinned(patience=0.2) as conn:
            cable.forget()
            forgotten.set()
            conn.execute("SELECT 1")

        with pool.pinned(patience=5) as conn:
            while waiting.is_running or num_sessions(db) > 1:
                pool.mend(conn)
            with pool.connection(timeout=2) as new:
                assert scalar(new, "SELECT 1") == 1
    with pytest.raises(psycopg.OperationalError):
        waiting.result()


LOCK = 4711
WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database()"


@pytest.fixture
def job(reserved: Pool, db: psycopg.Connection) -> Iterator[InThread]:
    """A job whose statement takes long; its session has the job's name behind the pool's."""
    db.execute("SELECT pg_advisory_lock(%s)", [LOCK])

    def wait_long() -> None:
        mark.set("3f9a1c report")
        with reserved.connection() as conn:
            conn.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])

    waiting = InThread(wait_long)
    wait_until(lambda: column(db, WAITING), WAIT, "the job's statement")
    yield waiting
    db.execute("SELECT pg_advisory_unlock_all()")


def test_a_job_whose_statement_takes_long_is_not_taken_for_one_that_waits_in_vain(
    reserved: Pool, db: psycopg.Connection, job: InThread
) -> None:
    reserved.doubt()

    with reserved.pinned() as conn, capture_logs() as logs:
        for _ in range(3):
            reserved._looked_at = 0.0
            reserved.mend(conn)

    assert [line["event"] for line in logs] == []
    db.execute("SELECT pg_advisory_unlock(%s)", [LOCK])
    job.result()


def test_the_session_of_a_job_is_ended_too_when_nobody_confirms_its_end(
    reserved: Pool, db: psycopg.Connection, job: InThread
) -> None:
    reserved._ghosts += column(db, WAITING)

    with reserved.pinned() as conn:
        reserved.mend(conn)

        with pytest.raises(psycopg.OperationalError):
            job.result()
        wait_until(lambda: not column(db, WAITING), WAIT, "its end")
