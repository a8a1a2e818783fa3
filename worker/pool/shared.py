"""The pool that the whole process shares, opened when somebody first needs it."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import Future
from typing import Any

import psycopg_pool

from worker.config import NO_DATABASE
from worker.errors import ConfigError, DatabaseUnavailable
from worker.pool.options import PoolOptions
from worker.pool.pool import Pool
from worker.settings import Settings

_lock = threading.Lock()
_pool: psycopg_pool.ConnectionPool[Any] | None = None
_attempt: Future[Pool] | None = None
_opener: threading.Thread | None = None


def get_pool(options: PoolOptions | None = None) -> Pool:
    """
    The pool of this process, opened by the first call.

    Callers that come while it opens wait for the same attempt and share its outcome; a failed attempt is not kept, so
    the next call tries again. In a worker this is the worker's own pool. In a coroutine use `get_pool_async`.

    Args:
        options: How to open it, if it is not open; from `WORKER_*` variables when None.

    Raises:
        ConfigError: No database is named, or the application has bound a pool that is not of ours.
        DatabaseUnavailable: It could not be reached.
    """
    if (pool := _opened()) is not None:
        return pool
    attempt, is_mine = _join()
    if is_mine:
        _carry_out(attempt, options)
    elif _opener is threading.current_thread():
        raise ConfigError(
            "get_pool() was called by what opens the pool, such as its after_connect hook: it is not open"
        )
    return attempt.result()


async def get_pool_async(options: PoolOptions | None = None) -> Pool:
    """`get_pool` for coroutines: the loop goes on while the pool opens. Threads and coroutines share one attempt."""
    if (pool := _opened()) is not None:
        return pool
    attempt, is_mine = _join()
    if is_mine:
        # A thread of its own: one of the executor's may never begin, and then nobody who joined would ever be told.
        threading.Thread(target=_carry_out, args=(attempt, options), name="pool-open", daemon=True).start()
    # Shielded, because whoever is cancelled must not cancel the attempt of the others.
    return await asyncio.shield(asyncio.wrap_future(attempt))


class Binding:
    """What `bind_pool` has bound; as a context manager it ends the binding."""

    def __init__(self, pool: psycopg_pool.ConnectionPool[Any]) -> None:
        self._bound = pool

    def unbind(self) -> None:
        """The pool is the process's no more; twice is harmless."""
        global _pool
        with _lock:
            if _pool is self._bound:
                _pool = None

    def __enter__(self) -> psycopg_pool.ConnectionPool[Any]:
        return self._bound

    def __exit__(self, *_: object) -> None:
        self.unbind()


def bind_pool(pool: psycopg_pool.ConnectionPool[Any]) -> Binding:
    """
    Make *pool* the one of this process: sends outside of a transaction take their connections from it.

    For an application that has a `psycopg_pool.ConnectionPool` already and should not open a second one in order to
    send. It stays the application's: it opens, sizes and closes it. The binding lasts until `unbind`, or to the end of
    the block in `with bind_pool(pool):`. A `worker.Pool` is also what `get_pool` returns then.

    Raises:
        TypeError: *pool* is not a `psycopg_pool.ConnectionPool`.
        ConfigError: The process has an open pool already; one process has one pool.
    """
    global _pool
    if isinstance(pool, psycopg_pool.AsyncConnectionPool):
        raise TypeError(
            "bind_pool() takes a psycopg_pool.ConnectionPool, not an AsyncConnectionPool, which belongs to one event"
            " loop: send within worker.bind(conn), with a connection for threads, or let worker.get_pool() open a pool"
        )
    if not isinstance(pool, psycopg_pool.ConnectionPool):
        raise TypeError(
            f"bind_pool() takes a psycopg_pool.ConnectionPool, not {type(pool).__module__}.{type(pool).__qualname__};"
            " to send through a single connection use worker.bind(conn)"
        )
    with _lock:
        if _pool is not None and not _pool.closed:
            raise ConfigError(f"this process has a pool already: {_pool!r}; use worker.get_pool()")
        _pool = pool
    return Binding(pool)


def get_lender() -> psycopg_pool.ConnectionPool[Any]:
    """
    What sends borrow their connections from: the pool that was bound, or else the process's, opened now.

    Raises:
        As `get_pool`.
    """
    bound = _pool
    return get_pool() if bound is None or isinstance(bound, Pool) else bound


async def get_lender_async() -> psycopg_pool.ConnectionPool[Any]:
    """`get_lender` for coroutines: the loop goes on while the pool opens."""
    bound = _pool
    return await get_pool_async() if bound is None or isinstance(bound, Pool) else bound


def _opened() -> Pool | None:
    pool = _pool
    if pool is None or isinstance(pool, Pool):
        return None if pool is None or pool.is_closed else pool
    raise ConfigError(
        f"this process has a pool already, which the application has bound: {pool!r};"
        " borrow from it, or bind a worker.Pool instead"
    )


def _join() -> tuple[Future[Pool], bool]:
    """The attempt that everybody waits for, and whether it is the caller's to carry out."""
    global _attempt
    with _lock:
        if (pool := _opened()) is not None:
            done: Future[Pool] = Future()
            done.set_result(pool)
            return done, False
        is_mine = _attempt is None
        _attempt = _attempt or Future()
        return _attempt, is_mine


def _carry_out(attempt: Future[Pool], options: PoolOptions | None) -> None:
    global _pool, _attempt, _opener
    _opener = threading.current_thread()
    # So that nobody who waits can cancel it for the others.
    attempt.set_running_or_notify_cancel()
    try:
        opened = Pool.connect(options or _options())
    except BaseException as exc:
        with _lock:
            _attempt = None
        if isinstance(exc, Exception):
            attempt.set_exception(exc)
            return
        attempt.set_exception(DatabaseUnavailable(f"whoever opened the pool was interrupted: {exc!r}"))
        raise
    finally:
        _opener = None
    with _lock:
        _pool, _attempt = opened, None
    attempt.set_result(opened)


def _options() -> PoolOptions:
    config = Settings.read(os.environ).config
    if not config.database_url:
        raise ConfigError(NO_DATABASE)
    return PoolOptions.from_config(config)


def _forget_parent() -> None:
    """A forked child opens its own on first use."""
    global _lock, _pool, _attempt
    _lock, _pool, _attempt = threading.Lock(), None, None


os.register_at_fork(after_in_child=_forget_parent)
