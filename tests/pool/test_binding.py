"""An application that has a pool already sends through that one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import dramatiq
import psycopg
import psycopg_pool
import pytest

from tests.factories import APPLICATION, num_sessions, opened_pool, scalar
from worker import job
from worker.errors import ConfigError
from worker.pool import bind_pool, get_pool
from worker.queue.broker import PostgresBroker


@pytest.fixture
def existing(database: str) -> Iterator[psycopg_pool.ConnectionPool]:
    """The pool that the application has had all along."""
    pool = psycopg_pool.ConnectionPool(
        database, min_size=1, max_size=2, open=False, kwargs={"application_name": APPLICATION}
    )
    pool.open(wait=True)
    yield pool
    pool.close()


@pytest.fixture
def broker() -> Iterator[PostgresBroker]:
    broker = PostgresBroker()
    yield broker
    broker.close()


def greet(broker: PostgresBroker) -> dramatiq.Actor[[], None]:
    @dramatiq.actor(broker=broker)
    def greet() -> None: ...

    return greet


def test_a_send_goes_through_the_applications_own_pool(
    existing: psycopg_pool.ConnectionPool, broker: PostgresBroker, db: psycopg.Connection
) -> None:
    with bind_pool(existing):
        greet(broker).send()

    assert scalar(db, "SELECT actor FROM worker.job") == "greet"


def test_a_send_through_the_applications_pool_opens_no_session_beside_it(
    existing: psycopg_pool.ConnectionPool, broker: PostgresBroker, db: psycopg.Connection
) -> None:
    with bind_pool(existing):
        greet(broker).send()

    assert num_sessions(db, "carpool") == 0


def test_a_pool_is_bound_without_a_block_too(
    existing: psycopg_pool.ConnectionPool, broker: PostgresBroker, db: psycopg.Connection
) -> None:
    binding = bind_pool(existing)

    greet(broker).send()

    binding.unbind()
    assert scalar(db, "SELECT count(*) FROM worker.job") == 1


def test_a_pool_whose_connections_are_in_autocommit_serves_as_well(
    database: str, broker: PostgresBroker, db: psycopg.Connection
) -> None:
    with (
        psycopg_pool.ConnectionPool(database, max_size=1, min_size=1, kwargs={"autocommit": True}, open=True) as pool,
        bind_pool(pool),
    ):
        greet(broker).send()

    assert scalar(db, "SELECT count(*) FROM worker.job") == 1


def test_a_pool_whose_check_begins_a_transaction_serves_as_well(
    database: str, broker: PostgresBroker, db: psycopg.Connection
) -> None:
    def check(conn: psycopg.Connection) -> None:
        conn.execute("SELECT 1")

    with psycopg_pool.ConnectionPool(database, min_size=1, max_size=1, check=check, open=True) as pool, bind_pool(pool):
        greet(broker).send()

    assert scalar(db, "SELECT count(*) FROM worker.job") == 1


class Interrupted(psycopg.Connection[Any]):
    """One whose user is interrupted as soon as it commits by itself."""

    def set_autocommit(self, value: bool) -> None:
        super().set_autocommit(value)
        if value:
            raise KeyboardInterrupt


def test_an_interrupted_send_leaves_the_applications_connection_as_it_was(
    database: str, broker: PostgresBroker
) -> None:
    with psycopg_pool.ConnectionPool(database, connection_class=Interrupted, min_size=1, max_size=1, open=True) as pool:
        with bind_pool(pool), pytest.raises(KeyboardInterrupt):
            greet(broker).send()

        with pool.connection() as conn:
            assert not conn.autocommit


@pytest.mark.parametrize("num_jobs", [1, 1000])
def test_a_coroutine_sends_through_the_applications_own_pool(
    existing: psycopg_pool.ConnectionPool, broker: PostgresBroker, db: psycopg.Connection, num_jobs: int
) -> None:
    @job(broker=broker)
    def greet(name: str) -> None: ...

    with bind_pool(existing):
        asyncio.run(greet.send_many_async([(str(i),) for i in range(num_jobs)]))

    assert (scalar(db, "SELECT count(*) FROM worker.job"), num_sessions(db, "carpool")) == (num_jobs, 0)


def test_a_unique_job_is_sent_through_the_applications_own_pool(
    existing: psycopg_pool.ConnectionPool, broker: PostgresBroker, db: psycopg.Connection
) -> None:
    @job(broker=broker, unique=True)
    def greet(name: str) -> None: ...

    with bind_pool(existing):
        first, second = greet.send("you"), greet.send("you")

    assert (second.is_new, second.message_id) == (False, first.message_id)


def test_the_applications_pool_is_not_closed_with_the_binding(existing: psycopg_pool.ConnectionPool) -> None:
    with bind_pool(existing):
        pass

    assert not existing.closed


def test_an_async_pool_is_refused_and_the_way_out_is_named(database: str) -> None:
    pool = psycopg_pool.AsyncConnectionPool(database, open=False)

    with pytest.raises(TypeError, match=r"not an AsyncConnectionPool.*worker\.bind\(conn\)"):
        bind_pool(pool)  # type: ignore[arg-type]  # that is what is refused


def test_what_is_no_pool_is_refused_by_the_name_of_its_class(db: psycopg.Connection) -> None:
    with pytest.raises(TypeError, match=r"takes a psycopg_pool\.ConnectionPool, not psycopg\.Connection"):
        bind_pool(db)  # type: ignore[arg-type]


def test_get_pool_opens_no_second_one_beside_the_bound(existing: psycopg_pool.ConnectionPool) -> None:
    with bind_pool(existing), pytest.raises(ConfigError, match="which the application has bound"):
        get_pool()


def test_a_second_binding_is_refused_naming_the_first(database: str, existing: psycopg_pool.ConnectionPool) -> None:
    with (
        opened_pool(database) as other,
        bind_pool(existing),
        pytest.raises(ConfigError, match="this process has a pool already: <psycopg_pool"),
    ):
        bind_pool(other)


def test_after_unbinding_another_pool_can_be_bound(database: str, existing: psycopg_pool.ConnectionPool) -> None:
    bind_pool(existing).unbind()

    with opened_pool(database) as other, bind_pool(other):
        assert get_pool() is other
