"""What a send costs on the wire and in calls, counted and not timed."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from dramatiq import Broker, Middleware

from tests.bench.protocol import Traffic, watched
from tests.factories import opened_pool
from worker import PostgresBroker, bind, job
from worker.queue.schema import Schema

SENDS = 20
# Until then psycopg tells the server each statement anew.
PREPARED = 6


@pytest.fixture
def charge(broker: PostgresBroker) -> Any:
    @job(broker=broker, name="charge")
    def charge(invoice_id: int) -> None: ...

    return charge


def test_a_send_by_itself_is_one_statement_and_one_trip(charge: Any, broker: PostgresBroker, database: str) -> None:
    with watched() as wire, opened_pool(database) as pool, broker.on(pool, Schema()):
        for _ in range(PREPARED):
            charge.send(1)
        before = wire.traffic()
        for _ in range(SENDS):
            charge.send(1)
        spent = wire.traffic() - before

    # Each statement that nobody has begun a transaction for is one.
    assert spent == Traffic(statements=SENDS, trips=SENDS, commits=SENDS)


def test_a_send_of_a_coroutine_is_one_trip_too(charge: Any, broker: PostgresBroker, database: str) -> None:
    async def send(times: int) -> None:
        for _ in range(times):
            await charge.send_async(1)

    with watched() as wire, opened_pool(database) as pool, broker.on(pool, Schema()):
        asyncio.run(send(PREPARED))
        before = wire.traffic()
        asyncio.run(send(SENDS))
        spent = wire.traffic() - before

        assert spent == Traffic(statements=SENDS, trips=SENDS, commits=SENDS)
        with pool.connection() as conn:
            assert not conn.autocommit


@pytest.mark.parametrize("options", [{"tags": ["mail"]}, {"unique": True}], ids=["tagged", "unique"])
def test_a_send_of_two_statements_begins_and_ends_them_in_three_trips(
    charge: Any, broker: PostgresBroker, database: str, options: dict[str, Any]
) -> None:
    numbers = iter(range(PREPARED + SENDS))

    def send(times: int) -> None:
        for _ in range(times):
            charge.send_with_options(args=(next(numbers),), **options)

    async def send_async(times: int) -> None:
        for _ in range(times):
            await charge.send_with_options_async(args=(next(numbers),), **options)

    with watched() as wire, opened_pool(database) as pool, broker.on(pool, Schema()):
        send(PREPARED)
        before = wire.traffic()
        send(SENDS // 2)
        asyncio.run(send_async(SENDS // 2))
        spent = wire.traffic() - before

    assert spent == Traffic(statements=4 * SENDS, trips=3 * SENDS, commits=SENDS)


@pytest.mark.usefixtures("pool")
def test_a_send_of_a_coroutine_takes_no_thread_when_the_pool_is_open(charge: Any) -> None:
    async def send() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(thread_name_prefix="taken"))
        await charge.send_async(1)
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("taken")]

    asyncio.run(send())


def test_a_bulk_by_itself_is_one_statement_and_one_trip(charge: Any, broker: PostgresBroker, database: str) -> None:
    with watched() as wire, opened_pool(database) as pool, broker.on(pool, Schema()):
        for _ in range(PREPARED):
            charge.send_many([(1,), (2,)])
        before = wire.traffic()
        charge.send_many([(n,) for n in range(3000)])
        spent = wire.traffic() - before

    assert spent == Traffic(statements=1, trips=1, commits=1)


def test_a_send_in_a_transaction_is_one_statement_of_it(charge: Any, broker: PostgresBroker, database: str) -> None:
    with watched() as wire, opened_pool(database) as pool, broker.on(pool, Schema()):
        for _ in range(PREPARED):
            charge.send(1)
        with pool.connection() as conn, bind(conn):
            conn.execute("SELECT 1")
            before = wire.traffic()
            for _ in range(SENDS):
                charge.send(1)
            spent = wire.traffic() - before

    assert (spent.statements, spent.trips) == (SENDS, SENDS)


def test_a_connection_comes_back_from_a_send_as_it_went_out(charge: Any, broker: PostgresBroker, database: str) -> None:
    with opened_pool(database) as pool, broker.on(pool, Schema()):
        charge.send(1)

        with pool.connection() as conn:
            assert not conn.autocommit
        assert pool.stats().dirty_total == 0


def test_a_send_calls_only_hooks_that_somebody_wrote(charge: Any, broker: PostgresBroker, database: str) -> None:
    called: Counter[str] = Counter()

    class Listening(Middleware):
        def before_enqueue(self, broker: Broker, message: object, delay: int | None) -> None:
            called["before"] += 1

        def after_enqueue(self, broker: Broker, message: object, delay: int | None) -> None:
            called["after"] += 1

    with opened_pool(database) as pool, broker.on(pool, Schema()):
        charge.send(1)
        broker.add_middleware(Listening())
        charge.send_many([(1,), (2,)])

    assert called == {"before": 2, "after": 2}
