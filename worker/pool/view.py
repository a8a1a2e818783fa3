"""A connection of the sync pool, as an `AsyncConnection` over the same session, for coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any
from weakref import ref

import psycopg
from psycopg._connection_base import BaseConnection

from worker import clock
from worker.pool.connection import Connection
from worker.pool.cursor import AsyncCursor, BeginsAlong
from worker.pool.lent import Lent

_CANCEL_TIMEOUT = 2.0
_CANCEL_INTERVAL = 0.1
_LEAVE = 5.0


class AsyncView(Lent, BeginsAlong, psycopg.AsyncConnection[Any]):
    """
    A pooled `Connection` for coroutines: same session, same transaction, same prepared statements.

    Use one of the two at a time: each has a lock of its own, and the session has one protocol stream. What the view
    changes on itself ends with it.
    """

    def __init__(self, conn: Connection) -> None:
        super().__init__(conn.pgconn)
        self._lend(conn)
        self._prepared = conn._prepared
        self._adapters = conn.adapters
        self._notice_handlers = conn._notice_handlers
        self._notify_handlers = conn._notify_handlers
        # Making the view has pointed the session's handlers at the view, which is gone sooner than the connection.
        conn.pgconn.notice_handler = partial(BaseConnection._notice_handler, ref(conn))
        conn.pgconn.notify_handler = partial(BaseConnection._notify_handler, ref(conn))
        self._autocommit = conn._autocommit
        self._isolation_level = conn._isolation_level
        self._read_only = conn._read_only
        self._deferrable = conn._deferrable
        self.row_factory = conn.row_factory  # type: ignore[assignment]  # row makers are the same for both kinds
        self.cursor_factory = AsyncCursor
        # Inside `conn.transaction()` an explicit commit is an error on the connection, so it is one on the view.
        self._num_transactions = conn._num_transactions
        self._pool = conn._pool  # only looked at: a pooled connection is not closed on exit

    @property
    def checkout(self) -> Any:
        """The `Checkout` that says who has it; None when it is not out any more."""
        return self.pooled.checkout

    def has_news(self) -> bool:
        """Whether the server has said something that nobody asked for."""
        return self.pooled.has_news()

    async def wait(self, *args: Any, **kwargs: Any) -> Any:
        """Whatever is said to the server passes here: the task that last used a view is the one that has it."""
        self._note_use()
        try:
            return await super().wait(*args, **kwargs)
        except psycopg.OperationalError as exc:
            if (conn := self._known()) is not None:
                conn.note_break(exc)
            raise

    def _note_use(self) -> None:
        if (checkout := self.checkout) is not None:
            checkout.used_here()

    async def set_autocommit(self, value: bool) -> None:
        """As that of the connection behind it."""
        if self.is_untouched:
            self._autocommit = bool(value)
        else:
            await super().set_autocommit(value)

    async def commit(self) -> None:
        """As that of the connection behind it."""
        if self.is_untouched:
            self._note_use()
        else:
            await super().commit()

    def _get_tx_start_command(self) -> bytes:
        self.pooled.num_begun += 1
        return super()._get_tx_start_command()

    @asynccontextmanager
    async def transaction(self, *args: Any, **kwargs: Any) -> AsyncIterator[psycopg.AsyncTransaction]:
        """As psycopg's: nested in a transaction that is only promised, it begins that one first."""
        if self.is_promised:
            async with self.lock:
                await self.wait(self._start_query())
            if self._pipeline:
                await self._pipeline.sync()
        async with super().transaction(*args, **kwargs) as transaction:
            yield transaction

    async def end_statements(self) -> None:
        """
        Cancel what other coroutines still do on it, and wait until they have left.

        A block can end while a task that it has started, say by `gather`, is in the middle of a statement. libpq's
        memory must not be freed under it, and the next one's statement must not be mixed with its own.
        """
        deadline = clock.monotonic() + _LEAVE
        conn = self._known()
        while self.lock.locked() and conn is not None and not conn.closed:
            if clock.monotonic() > deadline:
                await asyncio.to_thread(conn.revoke, by_coroutine=True)
                return
            with suppress(psycopg.Error):
                await self.cancel_safe(timeout=_CANCEL_TIMEOUT)
            with suppress(TimeoutError):
                async with asyncio.timeout(_CANCEL_INTERVAL), self.lock:
                    return

    async def close(self) -> None:
        """Close the connection behind it, whose seat is free when the server has ended the session."""
        if self.is_given_back:
            return  # that is the next one's to close
        await self.end_statements()
        self._closed = True
        await asyncio.to_thread(self.pooled.close)
