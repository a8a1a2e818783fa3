"""The budget: what the pools of all workers may hold together, against what the server gives."""

from __future__ import annotations

from typing import Any, NamedTuple

import psycopg

from worker import log
from worker.errors import ConfigError
from worker.queue.schema import Schema
from worker.runtime.statements import READ_BUDGET

logger = log.get_logger(__name__)


class Budget(NamedTuple):
    """
    Sessions that the server gives to this role in this database, and what live workers hold at most.

    Args:
        server: `max_connections` less those reserved for superusers and maintenance.
        role: The role's own limit, None when it has none.
        database: The database's own limit, None when it has none.
        workers: Live workers.
        pools: The sum of their pools.
    """

    server: int
    role: int | None
    database: int | None
    workers: int
    pools: int

    @classmethod
    def read(cls, conn: psycopg.Connection[Any], schema: Schema) -> Budget:
        """The budget at this moment."""
        row = conn.execute(schema.render(READ_BUDGET).encode()).fetchone()
        return cls(*row or ())

    @property
    def limit(self) -> int:
        """The least of the limits."""
        return min(limit for limit in (self.server, self.role, self.database) if limit is not None)

    def admit(self, pool_size: int, whole: int = 0) -> None:
        """
        Say in the log when one more pool of *pool_size* is more than the server gives to all workers together.

        Args:
            whole: What this pool is a share of, with those of other processes; 0 when it is not.

        Raises:
            ConfigError: It is too large even by itself.
        """
        if (mine := max(pool_size, whole)) > self.limit:
            raise ConfigError(f"pool size {mine}: {self._given}; make the pool smaller, or the server's limit larger")
        together = self.pools + pool_size
        if together > self.limit:
            logger.warning(
                "worker.over_budget",
                pool_size=pool_size,
                others=self.workers,
                together=together,
                limit=self.limit,
                advice=f"{self._given}: some worker will be refused connections; make the pools smaller",
            )

    @property
    def _given(self) -> str:
        limits = [f"the server gives {self.server} sessions (max_connections less reserved ones)"]
        limits += [f"the role {self.role}"] if self.role is not None else []
        limits += [f"the database {self.database}"] if self.database is not None else []
        return ", ".join(limits)
