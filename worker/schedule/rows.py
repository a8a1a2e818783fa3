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

# Under "allow" a stuck queue lets them grow without end, and each fire rewrites the list.
_MAX_JOB_IDS = 1000
# What an entry has in columns of the same names.
_ENTRY = ("tick", "outcome", "lateness", "reason", "coalesced_into", "until", "job_id", "manual")


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


# Ticks of one schedule, oldest first.
Ticks = tuple[Row, Sequence[Entry]]


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

    def lock(self, conn: Connection[Any], name: str, now: datetime | None) -> Row | None:
        """The schedule's row, locked, when nobody else has it any more; None when it does not exist."""
        return next(iter(self.fetch(conn, statements.WAIT_FOR_SCHEDULE, {"name": name, "now": now})), None)

    def lock_free(self, conn: Connection[Any], names: Sequence[str], now: datetime | None) -> dict[str, Row]:
        """The rows of *names*, locked; without those that do not exist or that somebody else holds."""
        rows = self.fetch(conn, statements.LOCK_SCHEDULES, {"names": list(names), "now": now})
        return {row.name: row for row in rows}

    def find_decided(
        self, conn: Connection[Any], due: Sequence[Ticks]
    ) -> tuple[list[list[UUID]], list[tuple[Entry, ...]]]:
        """Of each schedule in *due*, which of its jobs live, oldest first, and which entries nobody has decided yet."""
        pairs = [(row.name, entry.tick) for row, entries in due for entry in entries]
        parameters = {
            "job_ids": [job_id for row, _ in due for job_id in row.job_ids],
            "schedules": [name for name, _ in pairs],
            "ticks": [tick for _, tick in pairs],
        }
        with conn.cursor(row_factory=tuple_row) as cur:
            [(live, places)] = cur.execute(self.sql(statements.FIND_DECIDED), parameters).fetchall()
        living, decided = set(live), {pairs[place - 1] for place in places}
        return (
            [[job_id for job_id in row.job_ids if job_id in living] for row, _ in due],
            [tuple(entry for entry in entries if (row.name, entry.tick) not in decided) for row, entries in due],
        )

    def record(self, conn: Connection[Any], decided: Sequence[Ticks]) -> None:
        """Write what was *decided* into the ledger."""
        written = [(row, entry) for row, entries in decided for entry in entries]
        if not written:
            return
        columns = {name: [getattr(entry, name) for _, entry in written] for name in _ENTRY}
        columns["schedule"] = [row.name for row, _ in written]
        columns["now"] = [row.now for row, _ in written]
        conn.execute(self.sql(statements.RECORD_TICKS), columns)

    def move_on(self, conn: Connection[Any], moves: Sequence[tuple[Row, datetime, Sequence[UUID]]]) -> None:
        """Say of each locked row up to which tick all is decided, and which of its jobs live, oldest first."""
        columns = {
            "names": [row.name for row, _, _ in moves],
            "last_ticks": [last_tick for _, last_tick, _ in moves],
            "job_ids": ["{" + ",".join(map(str, live[-_MAX_JOB_IDS:])) + "}" for _, _, live in moves],
            "nows": [row.now for row, _, _ in moves],
        }
        conn.execute(self.sql(statements.ADVANCE_SCHEDULES), columns)

    def close(self, conn: Connection[Any], row: Row, until: datetime, reason: Reason) -> None:
        """Record the ticks of the locked *row* that are undecided up to *until* as skipped, because its terms end."""
        try:
            trigger = row.trigger
        except ConfigError as exc:
            logger.warning("schedule.unreadable", schedule=row.name, reason=str(exc))
            return
        now = row.now.astimezone(UTC)
        entries = dropped(trigger, row.last_tick.astimezone(UTC), min(until.astimezone(UTC), now), now, reason)
        _, [undecided] = self.find_decided(conn, [(row, entries)])
        self.record(conn, [(row, undecided)])
