"""The vacuum horizon: who keeps dead rows from being vacuumed, and the word about it in the log."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, LiteralString

import psycopg
from psycopg.rows import class_row

from worker import clock, log

logger = log.get_logger(__name__)

# Claims that are dear for a moment, beside a report of some seconds, are nobody's business.
_INTERVAL = 10.0

# Those that see dead rows of this database, or may: transactions with a snapshot or with writes of their own, prepared
# ones, replication slots, and standbys that report what they read. The oldest by its transaction id first. What other
# roles' sessions do, and since when, only members of pg_read_all_stats are told.
READ_HORIZON: LiteralString = """
    SELECT kind, name, pid, role, application, state, seconds, transactions
    FROM (
        SELECT
            CASE backend_type WHEN 'walsender' THEN 'standby' ELSE 'session' END AS kind,
            pid::text AS name,
            pid,
            usename::text AS role,
            nullif(application_name, '') AS application,
            state,
            extract(epoch FROM clock_timestamp() - coalesce(xact_start, backend_start))::float8 AS seconds,
            greatest(age(backend_xmin), age(backend_xid))::bigint AS transactions
        FROM pg_stat_activity
        WHERE (datname = current_database() OR backend_type = 'walsender')
          AND backend_type <> 'autovacuum worker'
          AND pid <> pg_backend_pid()
        UNION ALL
        SELECT 'prepared transaction', gid, NULL, owner::text, NULL, 'prepared',
            extract(epoch FROM clock_timestamp() - prepared)::float8,
            age(transaction)
        FROM pg_prepared_xacts
        WHERE database = current_database()
        UNION ALL
        SELECT 'replication slot', slot_name::text, active_pid, NULL, NULL,
            CASE WHEN active THEN 'active' ELSE 'unused' END,
            NULL,
            age(xmin)
        FROM pg_replication_slots
    ) AS holder
    WHERE transactions IS NOT NULL
    ORDER BY transactions DESC"""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """
    What keeps dead rows from being vacuumed.

    Args:
        kind: 'session', 'standby', 'prepared transaction' or 'replication slot'.
        name: By which it is ended: a pid, the name of a prepared transaction or of a slot.
        seconds: How long its transaction has lasted; None when nobody knows.
        transactions: How many have begun since its own.
    """

    kind: str
    name: str
    pid: int | None
    role: str | None
    application: str | None
    state: str | None
    seconds: float | None
    transactions: int

    @property
    def remedy(self) -> str:
        """How it is ended, in one statement."""
        return {
            "session": f"end it: SELECT pg_terminate_backend({self.name})",
            "standby": "end the old query on the standby, or turn off its hot_standby_feedback",
            "prepared transaction": f"end it: ROLLBACK PREPARED '{self.name}', or COMMIT PREPARED",
            "replication slot": f"let its reader catch up, or drop it: SELECT pg_drop_replication_slot('{self.name}')",
        }[self.kind]

    def __str__(self) -> str:
        role = f" of {self.role}" if self.role is not None else ""
        told = ", ".join(word for word in (self.application, self.state) if word is not None)
        return f"{self.kind} {self.name}{role}" + (f" ({told})" if told else "")


def find_holders(conn: psycopg.Connection[Any]) -> list[Holder]:
    """Whoever holds the horizon of this database at this moment, the oldest first."""
    with conn.cursor(row_factory=class_row(Holder)) as cur:
        return cur.execute(READ_HORIZON).fetchall()


class HorizonWatch:
    """Says in the log, once for each time, who keeps dead rows from being vacuumed while they make claims dear."""

    def __init__(self) -> None:
        self._again_at: float | None = None
        self._told = False

    def look(self, conn: psycopg.Connection[Any], *, dear: bool) -> None:
        """At each pass; asks the database while claims are *dear*, now and then."""
        if not dear:
            self._again_at = None
            self._say(None)
        elif self._again_at is None:
            self._again_at = clock.monotonic() + _INTERVAL
        elif clock.monotonic() >= self._again_at:
            self._again_at = clock.monotonic() + _INTERVAL
            old = (one for one in find_holders(conn) if one.seconds is None or one.seconds >= _INTERVAL)
            self._say(next(old, None))

    def _say(self, holder: Holder | None) -> None:
        if holder is not None and not self._told:
            logger.warning("vacuum.held", holder=str(holder), **asdict(holder))
        elif holder is None and self._told:
            logger.info("vacuum.free")
        self._told = holder is not None
