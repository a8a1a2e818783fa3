"""The pool that the whole process shares, opened when somebody first needs it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from worker.config import NO_DATABASE
from worker.errors import ConfigError
from worker.pool.options import PoolOptions
from worker.pool.pool import Pool
from worker.settings import Settings

_lock = threading.Lock()
_pool: Pool | None = None
_attempt: Future[Pool] | None = None


def get_pool(options: PoolOptions | None = None) -> Pool:
    """
    The pool of this process, opened by the first call.

    Callers that come while it opens wait for the same attempt and share its outcome; a failed attempt is not kept, so
    the next call tries again. In a worker this is the worker's own pool. In a coroutine use `get_pool_async`.

    Args:
        options: How to open it, if it is not open; from `WORKER_*` variables when None.

    Raises:
        ConfigError: No database is named.
        DatabaseUnavailable: It could not be reached.
    """
    global _pool, _attempt
    if (pool := _pool) is not None and not pool.is_closed:
        return pool
    with _lock:
        if _pool is not None and not _pool.is_closed:
            return _pool
        mine = _attempt is None
        attempt = _attempt = _attempt or Future()
    if not mine:
        return attempt.result()
    try:
        opened = Pool.connect(options or _options())
    except BaseException as exc:
        with _lock:
            _attempt = None
        attempt.set_exception(exc)
        raise
    with _lock:
        _pool, _attempt = opened, None
    attempt.set_result(opened)
    return opened


async def get_pool_async(options: PoolOptions | None = None) -> Pool:
    """`get_pool` for coroutines: the loop goes on while the pool opens."""
    if (pool := _pool) is not None and not pool.is_closed:
        return pool
    return await asyncio.to_thread(get_pool, options)


@contextmanager
def bind_pool(pool: Pool) -> Iterator[Pool]:
    """
    Make *pool* the one that `get_pool` returns while the block lasts.

    Raises:
        ConfigError: The process has an open pool already; one process has one pool.
    """
    global _pool
    with _lock:
        if _pool is not None and not _pool.is_closed:
            raise ConfigError(f"this process has a pool already: {_pool!r}; use worker.get_pool()")
        _pool = pool
    try:
        yield pool
    finally:
        with _lock:
            _pool = None


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
