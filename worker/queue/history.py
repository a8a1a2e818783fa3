"""The history's partitions by day: made ahead, dropped by age."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from worker import log
from worker.errors import SchemaError
from worker.queue.history_statements import (
    ATTACH_PARTITION,
    CREATE_PARTITION,
    DETACH_PARTITION,
    DROP_PARTITION,
    FINISH_DETACHING,
    GET_TODAY,
    LIST_PARTITIONS,
    LOCK_HISTORY,
    UNLOCK_HISTORY,
)
from worker.queue.leftovers import Leftovers
from worker.queue.schema import Schema

logger = log.get_logger(__name__)

_DAYS_AHEAD = 7
# Seconds to the next call: as a rule, after one that was kept from its work, and when there is more of it.
_EVERY, _AGAIN, _SOON = 3600.0, 10.0, 1.0
# The dispatcher's own: housekeeping must not keep it from its heartbeat.
_LOCK_TIMEOUT = "SET lock_timeout = '250ms'"
_PREFIX = "job_history_"


class History:
    """
    The partitions of the history, one for each day in UTC.

    Args:
        keep: Days that finished jobs are kept; None drops nothing, for those who are no worker and do not know.
    """

    def __init__(self, schema: Schema, *, keep: int | None = 14) -> None:
        self._schema = schema
        self._keep = keep
        self._leftovers = None if keep is None else Leftovers(schema, keep)

    def maintain(self, conn: psycopg.Connection[Any], today: date | None = None) -> float:
        """
        Make the partitions of *today* and the week ahead, drop those that are too old; a second call does nothing.

        And forget some of what jobs that are gone have left behind. One worker at a time keeps house, and waits at most
        250 ms for any lock. *conn* must be in autocommit.

        Args:
            today: In UTC; by the database's clock when None, because by that the rows are dated.

        Returns:
            Seconds until the next call is due: few when a lock or a timeout was in the way, or there is more to forget.

        Raises:
            SchemaError: The role does not own the tables.
        """
        turn = {"name": f"{self._schema.name}.job_history"}
        [(before,)] = conn.execute("SHOW lock_timeout").fetchall()
        conn.execute(_LOCK_TIMEOUT)
        try:
            conn.execute(LOCK_HISTORY, turn)
            try:
                seconds = self._maintain(conn, today or self._today(conn))
            finally:
                conn.execute(UNLOCK_HISTORY, turn)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled) as exc:
            # No reason to leave the session: the next would only do the same, before all other work.
            logger.warning("history.delayed", reason=str(exc))
            return _AGAIN
        except psycopg.errors.InsufficientPrivilege as exc:
            raise SchemaError(
                f"role {conn.info.user!r} cannot keep house in schema {self._schema.name!r}"
                f" ({exc.diag.message_primary}): make it the owner of the schema and its tables"
            ) from exc
        finally:
            conn.execute("SELECT set_config('lock_timeout', %s, false)", [before])
        return seconds

    def _maintain(self, conn: psycopg.Connection[Any], today: date) -> float:
        present = self._present(conn)
        for ahead in range(_DAYS_AHEAD + 1):
            if (day := today + timedelta(days=ahead)) not in present:
                self._create(conn, day)
        if self._keep is None or self._leftovers is None:
            return _EVERY
        for day, state in present.items():
            if day < today - timedelta(days=self._keep):
                self._drop(conn, day, state)
        return _EVERY if self._leftovers.forget(conn) else _SOON

    def _today(self, conn: psycopg.Connection[Any]) -> date:
        [(today,)] = conn.execute(GET_TODAY).fetchall()
        assert isinstance(today, date)  # noqa: S101  # what the statement returns
        return today

    def _present(self, conn: psycopg.Connection[Any]) -> dict[date, str]:
        rows = conn.execute(LIST_PARTITIONS, {"schema": self._schema.name})
        return {datetime.strptime(name, f"{_PREFIX}%Y%m%d").replace(tzinfo=UTC).date(): state for name, state in rows}

    def _create(self, conn: psycopg.Connection[Any], day: date) -> None:
        with conn.transaction():
            self._run(conn, CREATE_PARTITION, day)
            self._run(conn, ATTACH_PARTITION, day)

    def _drop(self, conn: psycopg.Connection[Any], day: date, state: str) -> None:
        try:
            if state != "detached":
                self._run(conn, DETACH_PARTITION if state == "attached" else FINISH_DETACHING, day)
            self._run(conn, DROP_PARTITION, day)
            logger.info("history.partition_dropped", day=str(day))
        except psycopg.errors.LockNotAvailable:
            raise
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


def has_no_partition(exc: BaseException | None) -> bool:
    """Whether a row of the history found no partition for its day."""
    return isinstance(exc, psycopg.errors.CheckViolation) and "no partition of relation" in str(exc)
