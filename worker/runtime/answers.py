"""Answers: what a worker says about its connections when it is asked, by a signal or through its row."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from worker import log
from worker.pool import Checkout, Pool
from worker.queue.schema import Schema
from worker.runtime.statements import WRITE_CHECKOUTS

logger = log.get_logger(__name__)


class Answers:
    """Tells what *pool* is used for at this moment."""

    def __init__(self, pool: Pool, schema: Schema, worker_id: UUID) -> None:
        self._pool = pool
        self._schema = schema
        self._worker_id = worker_id

    def write(self, conn: psycopg.Connection[Any]) -> None:
        """Write every checkout into this worker's row."""
        checkouts = Jsonb([described(checkout) for checkout in self._pool.checkouts()])
        parameters = {"worker": self._worker_id, "checkouts": checkouts}
        conn.execute(self._schema.render(WRITE_CHECKOUTS).encode(), parameters)

    def log(self) -> None:
        """Write the numbers of the pool, and every checkout, to the log."""
        stats = self._pool.stats()
        logger.info(
            "pool.stats", size=stats.size, max_size=stats.max_size, idle=stats.idle, out=stats.out,
            waiting=stats.waiting, reclaimed=stats.reclaimed_total, dirty=stats.dirty_total,
        )  # fmt: skip
        for checkout in self._pool.checkouts():
            logger.info("pool.checkout", **described(checkout))


def described(checkout: Checkout) -> dict[str, Any]:
    """*checkout* as it is shown; without the parameters of its statement, which may be anybody's data."""
    return {
        "holder": checkout.who,
        "thread": checkout.thread.name,
        "task": checkout.task.get_name() if checkout.task else None,
        "seconds": round(checkout.age, 3),
        "server_pid": checkout.pgconn.backend_pid if checkout.pgconn else None,
        "statement": checkout.last_statement,
        "taken_at": checkout.taken_at,
    }
