"""The history's partitions by day: made ahead, dropped by age."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from worker import log
from worker.queue.schema import Schema
from worker.queue.statements import (
    ATTACH_PARTITION,
    CREATE_PARTITION,
    DETACH_PARTITION,
    DROP_PARTITION,
    LIST_PARTITIONS,
)

logger = log.get_logger(__name__)

_DAYS_AHEAD = 7
_LOCK_TIMEOUT = "SET lock_timeout = '2s'"
_RESET_LOCK_TIMEOUT = "RESET lock_timeout"
_PREFIX = "job_history_"


class History:
    """
    The partitions of the history, one for each day in UTC.

    Args:
        keep: Days that finished jobs are kept.
    """

    def __init__(self, schema: Schema, *, keep: int = 14) -> None:
        self._schema = schema
        self._keep = keep

    def maintain(self, conn: psycopg.Connection[Any], today: date) -> None:
        """
        Make the partitions of *today* and the week ahead, drop those that are too old; a second call does nothing.

        Waits at most 2 s for a lock and leaves the rest to the next call. *conn* must be in autocommit.
        """
        conn.execute(_LOCK_TIMEOUT)
        try:
            # Two workers that boot together want the same partitions: the second finds them made.
            present = self._present(conn)
            for ahead in range(_DAYS_AHEAD + 1):
                if (day := today + timedelta(days=ahead)) not in present:
                    self._create(conn, day)
            for day in present:
                if day < today - timedelta(days=self._keep):
                    self._drop(conn, day)
        finally:
            conn.execute(_RESET_LOCK_TIMEOUT)

    def _present(self, conn: psycopg.Connection[Any]) -> set[date]:
        rows = conn.execute(LIST_PARTITIONS, {"parent": f"{self._schema.name}.job_history"})
        return {datetime.strptime(name, f"{_PREFIX}%Y%m%d").replace(tzinfo=UTC).date() for (name,) in rows}

    def _create(self, conn: psycopg.Connection[Any], day: date) -> None:
        try:
            with conn.transaction():
                self._run(conn, CREATE_PARTITION, day)
                self._run(conn, ATTACH_PARTITION, day)
        except (psycopg.errors.DuplicateTable, psycopg.errors.UniqueViolation, psycopg.errors.WrongObjectType) as exc:
            logger.debug("history.partition_made_elsewhere", day=str(day), reason=str(exc))
        except psycopg.errors.LockNotAvailable as exc:
            logger.warning("history.partition_delayed", day=str(day), reason=str(exc))

    def _drop(self, conn: psycopg.Connection[Any], day: date) -> None:
        try:
            self._run(conn, DETACH_PARTITION, day)
            self._run(conn, DROP_PARTITION, day)
            logger.info("history.partition_dropped", day=str(day))
        except psycopg.Error as exc:
            logger.warning("history.drop_delayed", day=str(day), reason=str(exc))

    def _run(self, conn: psycopg.Connection[Any], statement: LiteralString, day: date) -> None:
        start = datetime(day.year, day.month, day.day, tzinfo=UTC)
        conn.execute(
            sql.SQL(statement).format(
                schema=sql.Identifier(self._schema.name),
                partition=sql.Identifier(f"{_PREFIX}{day:%Y%m%d}"),
                start=sql.Literal(start.isoformat()),
                stop=sql.Literal((start + timedelta(days=1)).isoformat()),
            )
        )
