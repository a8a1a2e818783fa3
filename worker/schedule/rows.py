"""The rows of schedules and ticks: locking, reading and recording them, within the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, LiteralString
from uuid import UUID

from psycopg import Connection
from psycopg.rows import class_row, tuple_row

from worker import log
from worker.errors import ConfigError
from worker.queue.schema import Schema
from worker.schedule import spec, statements
from worker.schedule.backlog import Entry, Reason, dropped
from worker.schedule.declaration import Terms
from worker.schedule.trigger import Trigger

logger = log.get_logger(__name__)

# Terms that nobody confirmed for so long belong to processes that are gone: a living one declares its own.
ABANDONED_AFTER = 30.0


@dataclass(frozen=True)
class Row:
    """A schedule as the database has it, and the database's time at which it was read."""

    name: str
    spec: str
    tz: str
    actor: str
    missed: str
    overlap: str
    grace: float
    jitter: float
    args: Any
    source: str
    module: str | None
    last_tick: datetime
    job_ids: list[UUID]
    paused_at: datetime | None
    disabled_at: datetime | None
    declared_at: datetime
    confirmed_at: datetime
    now: datetime

    @property
    def terms(self) -> Terms:
        return Terms(self.spec, self.tz, self.actor, self.missed, self.overlap, self.grace, self.jitter, self.args)

    @property
    def abandoned(self) -> bool:
        return (self.now - self.confirmed_at).total_seconds() > ABANDONED_AFTER

    @property
    def trigger(self) -> Trigger:
        """
        When it ticks, whoever declared it.

        Raises:
            ConfigError: A newer worker wrote a spec that this one does not understand.
        """
        return spec.read(self.spec, self.tz)


class Rows:
    """The statements, rendered for a schema."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def sql(self, statement: LiteralString) -> bytes:
        return self._schema.render(statement).encode()

    def fetch(self, conn: Connection[Any], statement: LiteralString, parameters: dict[str, Any]) -> list[Row]:
        """The schedules that *statement* selects."""
        with conn.cursor(row_factory=class_row(Row)) as cur:
            return cur.execute(self.sql(statement), parameters).fetchall()

    def lock(self, conn: Connection[Any], name: str, now: datetime | None, *, wait: bool = False) -> Row | None:
        """The schedule's row, locked; None when it does not exist, or unless *wait* when somebody else holds it."""
        statement = statements.WAIT_FOR_SCHEDULE if wait else statements.LOCK_SCHEDULE
        return next(iter(self.fetch(conn, statement, {"name": name, "now": now})), None)

    def lock_all(self, conn: Connection[Any], names: Sequence[str], now: datetime | None) -> list[Row | None]:
        """Like `lock` for each of *names*, in one exchange with the server."""
        with conn.pipeline():
            statement = self.sql(statements.LOCK_SCHEDULE)
            cursors = [
                conn.cursor(row_factory=class_row(Row)).execute(statement, {"name": name, "now": now}) for name in names
            ]
            return [cur.fetchone() for cur in cursors]

    def find_decided(
        self, conn: Connection[Any], row: Row, entries: Sequence[Entry]
    ) -> tuple[list[UUID], set[datetime]]:
        """Which jobs of the schedule live, oldest first, and which of the *entries* have a row already."""
        return self.find_all_decided(conn, [(row, entries)])[0]

    def find_all_decided(
        self, conn: Connection[Any], looks: Sequence[tuple[Row, Sequence[Entry]]]
    ) -> list[tuple[list[UUID], set[datetime]]]:
        """Like `find_decided` for each, in one exchange with the server."""
        with conn.pipeline():
            statement = self.sql(statements.FIND_DECIDED)
            cursors = [
                conn.cursor(row_factory=tuple_row).execute(
                    statement,
                    {"name": row.name, "job_ids": row.job_ids, "ticks": [entry.tick for entry in entries]},
                )
                for row, entries in looks
            ]
            found = [cur.fetchone() for cur in cursors]
        pairs = [map(set, each) if each is not None else (set(), set()) for each in found]
        return [
            ([job_id for job_id in row.job_ids if job_id in living], decided)
            for (row, _), (living, decided) in zip(looks, pairs, strict=True)
        ]

    def record(self, conn: Connection[Any], row: Row, entries: Sequence[Entry]) -> None:
        """Write *entries* into the ledger."""
        if not entries:
            return
        names = ("tick", "outcome", "lateness", "reason", "coalesced_into", "until", "job_id", "manual")
        columns = {name: [getattr(entry, name) for entry in entries] for name in names}
        conn.execute(self.sql(statements.RECORD_TICKS), {"schedule": row.name, "now": row.now, **columns})

    def close(self, conn: Connection[Any], row: Row, until: datetime, reason: Reason) -> None:
        """Record the ticks of the locked *row* that are undecided up to *until* as skipped, because its terms end."""
        try:
            trigger = row.trigger
        except ConfigError as exc:
            logger.warning("schedule.unreadable", schedule=row.name, reason=str(exc))
            return
        now = row.now.astimezone(UTC)
        entries = dropped(trigger, row.last_tick.astimezone(UTC), min(until.astimezone(UTC), now), now, reason)
        _, decided = self.find_decided(conn, row, entries)
        self.record(conn, row, [entry for entry in entries if entry.tick not in decided])
