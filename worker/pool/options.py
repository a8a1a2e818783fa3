"""How the pool is sized, timed and connected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from worker.config import Config, redacted

# A dead peer is noticed in about 30 + 3 x 10 s instead of hours, and unsent data is given up after 30 s.
_KEEPALIVES = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """
    How the pool is sized, timed and connected; every duration in seconds.

    Args:
        conninfo: Any libpq connection string.
        application_name: What `pg_stat_activity` shows; also how a dead worker's sessions are found.
        acquire_timeout: How long a caller waits for a connection.
        reconnect_timeout: How long one background attempt to reconnect goes on; the next caller starts another.
    """

    conninfo: str
    application_name: str = "carpool"
    max_size: int = 20
    min_size: int = 1
    idle_timeout: float = 120.0
    max_lifetime: float = 600.0
    acquire_timeout: float = 5.0
    connect_timeout: float = 5.0
    reconnect_timeout: float = 5.0

    @classmethod
    def from_config(cls, config: Config, *, application_name: str = "carpool") -> PoolOptions:
        return cls(conninfo=config.database_url, application_name=application_name, max_size=config.pool_size)

    def connect_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of `psycopg.connect`."""
        return {
            "application_name": self.application_name,
            # libpq takes whole seconds, and reads 1 as 2 anyway.
            "connect_timeout": max(2, round(self.connect_timeout)),
            **_KEEPALIVES,
        }

    def __repr__(self) -> str:
        return f"PoolOptions({redacted(self.conninfo)!r}, {self.min_size}..{self.max_size})"
