"""Sends of coroutines: by a bound AsyncConnection or the pool, and the loop goes on."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

import psycopg
import pytest
from dramatiq.errors import BrokerConnectionError

from tests.factories import scalar
from tests.waiting import wait_until
from worker import ArgumentError, Pool, PostgresBroker, bind, job
from worker.pool.threaded import ThreadedConnection


@pytest.fixture
def charge(broker: PostgresBroker) -> Any:
    @job(broker=broker, name="charge")
    def charge(invoice_id: int) -> None: ...

    return charge


def num_jobs(db: psycopg.Connection) -> int:
    return int(scalar(db, "SELECT count(*) FROM worker.job"))


async def connect(database: str) -> psycopg.AsyncConnection[Any]:
    return await psycopg.AsyncConnection.connect(database)


def test_a_send_of_a_coroutine_is_durable_when_it_returns(charge: Any, db: psycopg.Connection) -> None:
    message = asyncio.run(charge.send_async(42))

    assert str(scalar(db, "SELECT id FROM worker.job")) == message.message_id


@pytest.mark.parametrize(("end", "expected"), [("commit", 1), ("rollback", 0)])
def test_a_send_under_a_bound_async_connection_joins_its_transaction(
    charge: Any, database: str, db: psycopg.Connection, end: str, expected: int
) -> None:
    async def send() -> int:
        async with await connect(database) as conn:
            with bind(conn):
                await charge.send_async(42)
            before = num_jobs(db)
            await getattr(conn, end)()
            return before

    assert (asyncio.run(send()), num_jobs(db)) == (0, expected)


def test_a_send_by_async_connection_joins_its_transaction(charge: Any, database: str, db: psycopg.Connection) -> None:
    async def send() -> None:
        async with await connect(database) as conn:
            await charge.send_with_options_async(args=(42,), connection=conn, tags=["a"], unique="k")
            await conn.rollback()

    asyncio.run(send())

    assert num_jobs(db) == 0


def test_a_send_under_a_bound_async_connection_that_would_block_is_refused(charge: Any, database: str) -> None:
    async def send() -> None:
        async with await connect(database) as conn:
            with bind(conn):
                charge.send(42)

    with pytest.raises(ArgumentError, match=r"would block its event loop: use `await send_async\(\.\.\.\)`"):
        asyncio.run(send())


def test_so_is_one_under_a_connection_whose_calls_run_in_threads(charge: Any, pool: Pool) -> None:
    with pool.connection() as conn, bind(ThreadedConnection(conn)):  # type: ignore[arg-type]  # it has the methods
        with pytest.raises(ArgumentError, match="would block its event loop"):
            charge.send(42)

        asyncio.run(charge.send_async(43))
        conn.rollback()


def test_an_async_connection_given_to_a_send_that_would_block_it_is_refused(charge: Any, database: str) -> None:
    async def send() -> None:
        async with await connect(database) as conn:
            charge.send_with_options(args=(42,), connection=conn)

    with pytest.raises(ArgumentError, match=r"use `await send_with_options_async\(\.\.\.\)`"):
        asyncio.run(send())


def test_a_coroutine_may_send_by_a_bound_sync_connection(charge: Any, database: str, db: psycopg.Connection) -> None:
    with psycopg.connect(database) as conn:
        with bind(conn):
            asyncio.run(charge.send_async(42))
        conn.rollback()

    assert num_jobs(db) == 0


def test_two_tasks_each_have_their_own_binding(charge: Any, database: str, db: psycopg.Connection) -> None:
    async def send(invoice_id: int, end: str, barrier: asyncio.Barrier) -> None:
        async with await connect(database) as conn:
            with bind(conn):
                await barrier.wait()
                await charge.send_async(invoice_id)
                await barrier.wait()
            await getattr(conn, end)()

    async def send_both() -> None:
        barrier = asyncio.Barrier(2)
        await asyncio.gather(send(1, "commit", barrier), send(2, "rollback", barrier))

    asyncio.run(send_both())

    assert scalar(db, "SELECT array_agg(args ->> 'invoice_id') FROM worker.job") == ["1"]


def test_the_loop_goes_on_while_a_send_waits(charge: Any, database: str, db: psycopg.Connection) -> None:
    """Somebody has the key in an open transaction, which ends only because the loop goes on."""

    async def send() -> bool:
        async with await connect(database) as holder:
            await charge.send_with_options_async(args=(1,), connection=holder, unique="k")
            second = asyncio.create_task(charge.send_with_options_async(args=(2,), unique="k"))
            waiting = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"
            await asyncio.to_thread(wait_until, lambda: scalar(db, waiting), 10, "the second send to wait")
            await holder.commit()
            return bool((await second).is_new)

    assert asyncio.run(send()) is False


def test_many_jobs_of_a_coroutine_are_one_transaction(charge: Any, database: str, db: psycopg.Connection) -> None:
    async def send() -> int:
        async with await connect(database) as conn:
            sent = await charge.send_many_async([(n,) for n in range(1500)], connection=conn)
            before = num_jobs(db)
            await conn.commit()
            assert len(sent) == 1500
            return before

    assert (asyncio.run(send()), num_jobs(db)) == (0, 1500)


class Stopping:
    """A dispatcher that gives up what it was to send."""

    def send(self, jobs: object, sender: object = None) -> Future[None]:
        sent: Future[None] = Future()
        sent.cancel()
        return sent


def test_a_send_that_a_stopping_worker_gives_up_is_an_error_and_no_cancellation(
    charge: Any, broker: PostgresBroker
) -> None:
    broker.dispatcher = Stopping()  # type: ignore[assignment]  # all that a send needs of one

    with pytest.raises(BrokerConnectionError, match="the worker has stopped before it was written"):
        asyncio.run(charge.send_async(42))


def test_an_argument_that_does_not_fit_is_refused_at_the_await(charge: Any, db: psycopg.Connection) -> None:
    with pytest.raises(ArgumentError, match="invoice_id"):
        asyncio.run(charge.send_async("x"))

    assert num_jobs(db) == 0
