"""A pooled connection for coroutines whose calls run in threads: what the view falls back to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Never, TypeVar

import psycopg

from worker import clock
from worker.errors import Refused
from worker.pool.connection import Connection
from worker.pool.lent import Lent

T = TypeVar("T")

_CANCEL_TIMEOUT = 2.0
_CANCEL_INTERVAL = 0.1
# How long a cancelled call may take to leave its statement before its session is ended under it.
_LEAVE = 5.0


class ThreadedConnection(Lent):
    """
    The part of `psycopg.AsyncConnection` that jobs use, each call in a thread of the loop's executor.

    A cancelled call cancels its statement on the server and returns when the thread has left it.
    """

    def __init__(self, conn: Connection) -> None:
        self._lend(conn)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pooled, name)

    async def __aenter__(self) -> ThreadedConnection:
        return self

    async def __aexit__(self, *error: Any) -> None:
        await _in_thread(self.pooled, lambda: self.pooled.__exit__(*error))

    async def execute(self, *args: Any, **options: Any) -> ThreadedCursor:
        return ThreadedCursor(self, await _in_thread(self.pooled, lambda: self.pooled.execute(*args, **options)))

    def cursor(self, *args: Any, **options: Any) -> ThreadedCursor:
        return ThreadedCursor(self, self.pooled.cursor(*args, **options))

    async def commit(self) -> None:
        await _in_thread(self.pooled, self.pooled.commit)

    async def rollback(self) -> None:
        await _in_thread(self.pooled, self.pooled.rollback)

    async def close(self) -> None:
        await _in_thread(self.pooled, self.pooled.close)

    async def set_autocommit(self, value: bool) -> None:
        self.pooled.autocommit = value

    async def set_isolation_level(self, value: psycopg.IsolationLevel | None) -> None:
        self.pooled.isolation_level = value

    async def set_read_only(self, value: bool | None) -> None:
        self.pooled.read_only = value

    async def set_deferrable(self, value: bool | None) -> None:
        self.pooled.deferrable = value

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:  # noqa: ASYNC109  # psycopg's name for it
        # Not by `_in_thread`, which would cancel in order to cancel.
        await asyncio.to_thread(self.pooled.cancel_safe, timeout=timeout)

    def notifies(self, *_: object, **__: object) -> Never:
        _refuse("notifies()")

    def pipeline(self) -> Never:
        _refuse("pipeline()")

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

    def __init__(self, view: ThreadedConnection, cursor: psycopg.Cursor[Any] | psycopg.ServerCursor[Any]) -> None:
        self._view = view  # whoever holds this holds that too: a view that nobody holds has been dropped
        self._conn = view.pooled
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

    async def scroll(self, *args: Any, **options: Any) -> None:
        await _in_thread(self._conn, lambda: self._cursor.scroll(*args, **options))

    async def stream(self, *args: Any, **options: Any) -> AsyncIterator[Any]:
        """The rows as they come, a trip to a thread for each."""
        rows = self._cursor.stream(*args, **options)
        try:
            while (row := await _in_thread(self._conn, lambda: next(rows, _END))) is not _END:
                yield row
        finally:
            await _in_thread(self._conn, rows.close)

    def copy(self, *_: object, **__: object) -> Never:
        _refuse("copy()")


_END = object()


def _refuse(call: str) -> Never:
    raise Refused(f'{call} cannot be used in async mode "thread": set async_mode (WORKER_ASYNC_MODE) to "view"')


async def _in_thread(conn: Connection, call: Callable[[], T]) -> T:
    working = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await _made_to_leave(conn, working)
        raise


async def _made_to_leave(conn: Connection, working: asyncio.Future[Any]) -> None:
    deadline = clock.monotonic() + _LEAVE
    while not working.done() and clock.monotonic() < deadline:
        with suppress(psycopg.Error):
            await asyncio.to_thread(conn.cancel_safe, timeout=_CANCEL_TIMEOUT)
        await asyncio.wait({working}, timeout=_CANCEL_INTERVAL)
    if not working.done():
        await asyncio.to_thread(conn.revoke)
        await asyncio.wait({working}, timeout=_LEAVE)
    # Looked at, or asyncio complains about it, however late it ends.
    working.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
