"""How the pool is sized, timed and connected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from psycopg.conninfo import make_conninfo

from worker.config import Config
from worker.pool.connection import Connection
from worker.pool.hygiene import HygieneMode
from worker.secrecy import redacted

# A dead peer is noticed in about 30 + 3 x 10 s instead of hours, and unsent data is given up after 30 s.
_KEEPALIVES = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


class AsyncMode(StrEnum):
    """How coroutines use the connections of the pool, which is a pool for threads."""

    VIEW = "view"
    """As an `AsyncConnection` over the same session. It rests on private names of psycopg."""
    THREAD = "thread"
    """Each call in a thread of the loop's executor; for a psycopg with which the view does not work."""


@dataclass(frozen=True)
class ConnectOptions:
    """
    Where connections lead and how they are made.

    Args:
        conninfo: Any libpq connection string; its secrets never appear in `repr`.
        parameters: Keyword arguments of `psycopg.connect`, which win over the string's.
    """

    conninfo: str
    parameters: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"ConnectOptions({redacted(make_conninfo(self.conninfo, **self.parameters))!r})"


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """
    How the pool is sized, timed and connected; every duration in seconds.

    Args:
        conninfo: Any libpq connection string.
        application_name: What `pg_stat_activity` shows; also how a dead worker's sessions are found.
        max_size: The most sessions that exist at any time.
        min_size: How many are kept although nobody needs them.
        idle_timeout: After which one that nobody used is closed, below `min_size` too: it is replaced by a fresh one.
        max_lifetime: After which one is replaced, as soon as nobody uses it; a twentieth less for some, so that they
            do not all end together.
        acquire_timeout: How long a caller waits for a connection.
        connect_timeout: How long one attempt to connect may take.
        warn_after: How long somebody may keep a connection before the log names them, once.
        hygiene: What is looked for when a connection comes back, beyond what is free to see.
        async_mode: How coroutines use the connections.
        after_connect: Called with each new connection, to set it up; one for which it raises is closed.
        before_acquire: Called with a connection before it is handed out; False or an error closes it, and another is
            taken.
        after_release: Called with a connection that came back, is clean and idle; False or an error closes it.
        alone: Refuse to open beside another open pool of this process, because the cap on sessions is the process's.
    """

    conninfo: str
    application_name: str = "carpool"
    max_size: int = 20
    min_size: int = 1
    idle_timeout: float = 120.0
    max_lifetime: float = 600.0
    acquire_timeout: float = 5.0
    connect_timeout: float = 5.0
    warn_after: float = 60.0
    hygiene: HygieneMode = HygieneMode.OFF
    async_mode: AsyncMode = AsyncMode.VIEW
    after_connect: Callable[[Connection], object] | None = None
    before_acquire: Callable[[Connection], bool | None] | None = None
    after_release: Callable[[Connection], bool | None] | None = None
    alone: bool = True

    @classmethod
    def from_config(cls, config: Config, **options: Any) -> PoolOptions:
        """The options that *config* sets, each replaced by its keyword if given."""
        settings: dict[str, Any] = {
            "conninfo": config.database_url,
            "max_size": config.pool_size,
            "hygiene": HygieneMode(config.hygiene),
            "async_mode": AsyncMode(config.async_mode),
        }
        return cls(**{**settings, **options})

    def connect_options(self) -> ConnectOptions:
        """Where connections lead and how they are made."""
        parameters = {
            "application_name": self.application_name,
            # libpq takes whole seconds, and reads 1 as 2 anyway.
            "connect_timeout": max(2, round(self.connect_timeout)),
            **_KEEPALIVES,
        }
        return ConnectOptions(self.conninfo, parameters)

    def __repr__(self) -> str:
        return f"PoolOptions({redacted(self.conninfo)!r}, {self.min_size}..{self.max_size})"
