"""A pooled connection for coroutines whose calls run in threads: what the view falls back to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import psycopg

from worker.pool.connection import Connection

T = TypeVar("T")

_CANCEL_TIMEOUT = 2.0
_CANCEL_INTERVAL = 0.1


class ThreadedConnection:
    """
    The part of `psycopg.AsyncConnection` that jobs use, each call in a thread of the loop's executor.

    A cancelled call cancels its statement on the server and returns when the thread has left it.
    """

    def __init__(self, conn: Connection) -> None:
        self.pooled = conn
        """The connection behind it; whoever holds this holds that too."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pooled, name)

    async def __aenter__(self) -> ThreadedConnection:
        return self

    async def __aexit__(self, *error: Any) -> None:
        await _in_thread(self.pooled, lambda: self.pooled.__exit__(*error))

    async def execute(self, *args: Any, **options: Any) -> ThreadedCursor:
        return ThreadedCursor(self.pooled, await _in_thread(self.pooled, lambda: self.pooled.execute(*args, **options)))

    def cursor(self, *args: Any, **options: Any) -> ThreadedCursor:
        return ThreadedCursor(self.pooled, self.pooled.cursor(*args, **options))

    async def commit(self) -> None:
        await _in_thread(self.pooled, self.pooled.commit)

    async def rollback(self) -> None:
        await _in_thread(self.pooled, self.pooled.rollback)

    async def close(self) -> None:
        await _in_thread(self.pooled, self.pooled.close)

    async def set_autocommit(self, value: bool) -> None:
        self.pooled.autocommit = value

    @asynccontextmanager
    async def transaction(self, *args: Any, **options: Any) -> AsyncIterator[psycopg.Transaction]:
        block = self.pooled.transaction(*args, **options)
        transaction = await _in_thread(self.pooled, block.__enter__)
        try:
            yield transaction
        except BaseException as exc:
            error = exc
            if not await _in_thread(self.pooled, lambda: block.__exit__(type(error), error, error.__traceback__)):
                raise
        else:
            await _in_thread(self.pooled, lambda: block.__exit__(None, None, None))


class ThreadedCursor:
    """The part of `psycopg.AsyncCursor` that jobs use."""

    def __init__(self, conn: Connection, cursor: psycopg.Cursor[Any] | psycopg.ServerCursor[Any]) -> None:
        self._conn = conn
        self._cursor: Any = cursor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    async def __aenter__(self) -> ThreadedCursor:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (row := await self.fetchone()) is not None:
            yield row

    async def execute(self, *args: Any, **options: Any) -> ThreadedCursor:
        await _in_thread(self._conn, lambda: self._cursor.execute(*args, **options))
        return self

    async def executemany(self, *args: Any, **options: Any) -> None:
        await _in_thread(self._conn, lambda: self._cursor.executemany(*args, **options))

    async def fetchone(self) -> Any:
        return await _in_thread(self._conn, self._cursor.fetchone)

    async def fetchmany(self, size: int = 0) -> list[Any]:
        return await _in_thread(self._conn, lambda: self._cursor.fetchmany(size))

    async def fetchall(self) -> list[Any]:
        return await _in_thread(self._conn, self._cursor.fetchall)

    async def close(self) -> None:
        await _in_thread(self._conn, self._cursor.close)


async def _in_thread(conn: Connection, call: Callable[[], T]) -> T:
    working = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        while not working.done():
            with suppress(psycopg.Error):
                await asyncio.to_thread(conn.cancel_safe, timeout=_CANCEL_TIMEOUT)
            await asyncio.wait({working}, timeout=_CANCEL_INTERVAL)
        working.cancelled() or working.exception()  # looked at, or asyncio complains about it
        raise
