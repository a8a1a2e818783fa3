"""The pool that the whole process shares, opened when somebody first needs it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from worker.config import NO_DATABASE, Config
from worker.errors import ConfigError
from worker.pool.options import PoolOptions
from worker.pool.pool import Pool

_opening = threading.Lock()
_pool: Pool | None = None


def get_pool() -> Pool:
    """
    The pool of this process, opened by the first call from `WORKER_*` variables.

    Callers that come while it opens wait for the same attempt; a failed attempt is not kept, so the next call tries
    again. In a worker this is the worker's own pool.

    Raises:
        ConfigError: No database is named.
        DatabaseUnavailable: It could not be reached.
    """
    global _pool
    if (pool := _pool) is not None and not pool.is_closed:
        return pool
    with _opening:
        if _pool is None or _pool.is_closed:
            config = Config.from_env(os.environ)
            if not config.database_url:
                raise ConfigError(NO_DATABASE)
            _pool = Pool.connect(PoolOptions.from_config(config))
        return _pool


@contextmanager
def bind_pool(pool: Pool) -> Iterator[Pool]:
    """
    Make *pool* the one that `get_pool` returns while the block lasts.

    Raises:
        ConfigError: The process has an open pool already; one process has one pool.
    """
    global _pool
    with _opening:
        if _pool is not None and not _pool.is_closed:
            raise ConfigError(f"this process has a pool already: {_pool!r}; use worker.get_pool()")
        _pool = pool
    try:
        yield pool
    finally:
        with _opening:
            _pool = None
