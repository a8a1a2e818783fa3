"""Async mode "thread": what a connection offers to coroutines, and what it refuses by name."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.factories import InThread
from tests.pool.conftest import OpenPool
from worker.errors import Refused
from worker.pool import AsyncMode, Pool, threaded

Use = Callable[[Any], Any]


@pytest.fixture
def pool(open_pool: OpenPool) -> Pool:
    return open_pool(async_mode=AsyncMode.THREAD)


def use(pool: Pool, call: Use) -> Any:
    async def borrow() -> Any:
        async with pool.connection() as conn:
            return await call(conn)

    return asyncio.run(borrow())


def test_a_transactions_kind_can_be_set(pool: Pool) -> None:
    async def kind(conn: psycopg.AsyncConnection) -> Any:
        await conn.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
        await conn.set_read_only(True)
        await conn.set_deferrable(True)
        shown = "current_setting('transaction_isolation'), current_setting('transaction_read_only')"
        cur = await conn.execute(f"SELECT {shown}, current_setting('transaction_deferrable')")
        return await cur.fetchone()

    assert use(pool, kind) == ("serializable", "on", "on")


def test_rows_can_be_streamed(pool: Pool) -> None:
    async def stream(conn: psycopg.AsyncConnection) -> list[Any]:
        async with conn.cursor() as cur:
            return [row[0] async for row in cur.stream("SELECT generate_series(1, %s)", [4])]

    assert use(pool, stream) == [1, 2, 3, 4]


def test_a_statement_can_be_cancelled(pool: Pool) -> None:
    async def cancel(conn: psycopg.AsyncConnection) -> None:
        sleeping = asyncio.ensure_future(conn.execute("SELECT pg_sleep(600)"))
        while not sleeping.done():
            await conn.cancel_safe(timeout=2)
            await asyncio.wait({sleeping}, timeout=0.1)
        with pytest.raises(psycopg.errors.QueryCanceled):
            await sleeping

    use(pool, cancel)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("copy", lambda conn: conn.cursor().copy("COPY t TO STDOUT")),
        ("notifies", lambda conn: conn.notifies()),
        ("pipeline", lambda conn: conn.pipeline()),
    ],
)
def test_what_threads_cannot_do_is_refused_naming_the_mode_that_can(pool: Pool, name: str, call: Use) -> None:
    async def try_it(conn: psycopg.AsyncConnection) -> None:
        with pytest.raises(Refused, match=rf'^{name}\(\) cannot be used in async mode "thread".*"view"'):
            call(conn)

    use(pool, try_it)


def test_a_cancelled_call_that_does_not_end_has_its_connection_revoked(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threaded, "_LEAVE", 0.3)
    revoked = threading.Event()

    async def cancel_what_is_stuck(conn: Any) -> None:
        monkeypatch.setattr(conn.pooled, "revoke", revoked.set)
        stuck = asyncio.ensure_future(threaded._in_thread(conn.pooled, lambda: revoked.wait(20)))
        await asyncio.sleep(0)
        stuck.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stuck

    use(pool, cancel_what_is_stuck)

    assert revoked.is_set()


def test_a_view_is_its_users(open_pool: OpenPool) -> None:
    """One that was handed to another loop is not taken from it when the first is over."""
    pool = open_pool(max_size=1)
    pool._sweep.stop(5)
    view = asyncio.run(pool.acquire_async())

    async def look() -> bool:
        await view.execute("SELECT 1")
        checkout = pool.checkouts()[0]
        return (checkout.loop, checkout.task, checkout.thread) == (
            asyncio.get_running_loop(),
            asyncio.current_task(),
            threading.current_thread(),
        )

    async def look_and_release() -> bool:
        try:
            return await look()
        finally:
            await pool.release_async(view)

    assert InThread(lambda: asyncio.run(look_and_release())).result()
