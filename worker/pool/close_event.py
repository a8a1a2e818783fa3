"""The close event: set when the pool begins to close; and work that must not outlive it."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar, overload

import psycopg
from psycopg_pool import PoolClosed

T = TypeVar("T")


class CloseEvent:
    """
    Set once, when its pool begins to close, before anything else happens.

    Wait for it with `wait` in a thread or `await` in a coroutine; run something until then with `do_until`.
    """

    def __init__(self) -> None:
        self._set = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: dict[object, Callable[[], None]] = {}
        self._threads: dict[object, threading.Thread] = {}

    def is_set(self) -> bool:
        """Whether the pool is closing or closed."""
        return self._set.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the pool begins to close, *timeout* seconds at most; whether it did."""
        return self._set.wait(timeout)

    def __await__(self) -> Generator[Any, None, None]:
        return self._wait_async().__await__()

    async def _wait_async(self) -> None:
        closing = asyncio.Event()
        loop = asyncio.get_running_loop()
        with self._calling(lambda: loop.call_soon_threadsafe(closing.set)):
            await closing.wait()

    @overload
    def do_until(self, work: Awaitable[T]) -> Awaitable[T]: ...

    @overload
    def do_until(self, work: Callable[[], T]) -> T: ...

    def do_until(self, work: Awaitable[T] | Callable[[], T]) -> Awaitable[T] | T:
        """
        Do *work* until the pool begins to close, and not at all if it is closing already.

        An awaitable gives an awaitable: it is cancelled then, and psycopg cancels what it runs on the server. A
        function is run by the calling thread: the statements it runs on this pool's connections are cancelled. Work
        that ends at the same moment has ended, and its value counts.

        Raises:
            PoolClosed: The pool began to close first.
        """
        if inspect.iscoroutinefunction(work):
            return self._do_async_until(work())
        if inspect.isawaitable(work):
            return self._do_async_until(work)
        return self._do_sync_until(work)

    def _do_sync_until(self, work: Callable[[], T]) -> T:
        key = object()
        with self._lock:
            if not self.is_set():
                self._threads[key] = threading.current_thread()
        try:
            if key not in self._threads:
                raise _closing()
            return work()
        except psycopg.errors.QueryCanceled as exc:
            if self.is_set():
                raise _closing() from exc
            raise
        finally:
            self._threads.pop(key, None)

    async def _do_async_until(self, work: Awaitable[T]) -> T:
        task = asyncio.ensure_future(work)
        closing = asyncio.ensure_future(self._wait_async())
        try:
            if not self.is_set():
                await asyncio.wait({task, closing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            closing.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        if self.is_set() and (task.cancelled() or isinstance(task.exception(), psycopg.errors.QueryCanceled)):
            raise _closing()
        return task.result()

    # For the pool

    def set(self) -> None:
        """The pool begins to close; once."""
        with self._lock:
            self._set.set()
            callbacks = list(self._callbacks.values())
        for callback in callbacks:
            with suppress(RuntimeError):  # its loop is closed: nobody waits there any more
                callback()

    @property
    def threads(self) -> list[threading.Thread]:
        """Those that run a function in `do_until` at this moment."""
        return list(self._threads.values())

    @contextmanager
    def _calling(self, callback: Callable[[], Any]) -> Iterator[None]:
        """Call *callback* at the beginning of the close, or now if that is past, unless the block has ended before."""
        key = object()
        with self._lock:
            past = self.is_set()
            self._callbacks[key] = callback
        try:
            if past:
                callback()
            yield
        finally:
            self._callbacks.pop(key, None)


def _closing() -> PoolClosed:
    return PoolClosed("the pool is closing")
