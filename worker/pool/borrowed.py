"""A borrowed connection: one block for threads and coroutines, `with` or `async with`."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from asyncio.events import _get_running_loop
from contextlib import nullcontext
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar, cast

import psycopg

from worker.pool.checkout import shield
from worker.pool.connection import Connection


class Lender(Protocol):
    """What connections are borrowed from."""

    def acquire(self, timeout: float | None = None) -> Connection: ...
    def try_acquire(self) -> Connection | None: ...
    def release(self, conn: Connection) -> None: ...
    async def acquire_async(self, timeout: float | None = None) -> psycopg.AsyncConnection[Any]: ...  # noqa: ASYNC109
    async def try_acquire_async(self) -> psycopg.AsyncConnection[Any] | None: ...
    async def release_async(self, view: psycopg.AsyncConnection[Any]) -> None: ...


SyncT = TypeVar("SyncT")
AsyncT = TypeVar("AsyncT")


class Borrowed(Generic[SyncT, AsyncT]):
    """
    A connection for the length of a block: `with` gives a `psycopg.Connection`, `async with` an `AsyncConnection`.

    At the end of the block the transaction is committed, or rolled back if the block raised; then the connection goes
    back to the pool, whatever happens.

    Args:
        begin: Begin the transaction at once, whatever the first statement is.
        wait: Otherwise the block gets None when no connection is idle, or others wait for one.
    """

    def __init__(self, pool: Lender, timeout: float | None = None, *, begin: bool = False, wait: bool = True) -> None:
        self._pool = pool
        self._timeout = timeout
        self._begin = begin
        self._wait = wait
        self._conn: Connection | None = None
        self._view: psycopg.AsyncConnection[Any] | None = None
        self._transaction: Any = None
        self._loop: AbstractEventLoop | None = None

    def __enter__(self) -> SyncT:
        try:
            shielded = shield.get()
            if shielded is nullcontext:  # the rule outside of jobs; see `Lending.acquire`
                conn = self._conn = self._take()
            else:
                with shielded():  # an interrupt that met the hand-over would lose the connection
                    conn = self._conn = self._take()
            if self._begin and conn is not None:
                self._transaction = conn.transaction()
                self._transaction.__enter__()
        except BaseException:
            self._give_back()
            raise
        return cast("SyncT", conn)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        conn = self._conn
        if conn is None:
            return None
        try:
            # True for `psycopg.Rollback`, which ends the transaction and goes no further.
            swallowed = self._transaction is not None and bool(self._transaction.__exit__(kind, error, trace))
            conn.__exit__(kind, error, trace)
        finally:
            self._give_back()
        # Told to type checkers as None, or they would expect any block to end in the middle.
        return cast("None", swallowed)

    def _take(self) -> Connection | None:
        return self._pool.acquire(self._timeout) if self._wait else self._pool.try_acquire()

    def _give_back(self) -> None:
        shielded = shield.get()
        if shielded is nullcontext:
            self._return()
        else:
            with shielded():
                self._return()

    def _return(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            self._pool.release(conn)

    async def __aenter__(self) -> AsyncT:
        self._loop = _get_running_loop()
        if self._wait:
            self._view = await self._pool.acquire_async(self._timeout)
        else:
            self._view = await self._pool.try_acquire_async()
        try:
            if self._begin and self._view is not None:
                self._transaction = self._view.transaction()
                await self._transaction.__aenter__()
        except BaseException:
            await self._give_back_async()
            raise
        return cast("AsyncT", self._view)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        view = self._view
        if view is None:
            return None
        if _get_running_loop() is not self._loop:
            # A coroutine whose loop is gone, in the hands of the garbage collector: nothing can be awaited here, and no
            # lock may be taken, as whoever holds it may be the one who is being interrupted. The sweep will find it.
            self._view = None
            return None
        swallowed = False
        try:
            if self._transaction is not None:
                swallowed = bool(await self._transaction.__aexit__(kind, error, trace))
            await view.__aexit__(kind, error, trace)
        finally:
            await self._give_back_async()
        return cast("None", swallowed)

    async def _give_back_async(self) -> None:
        view, self._view = self._view, None
        if view is not None and _get_running_loop() is self._loop:
            await self._pool.release_async(view)
