"""The ledger: decides each tick of a schedule once, in one transaction, whatever number of processes try."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, LiteralString
from uuid import UUID

from psycopg import Connection, Cursor
from psycopg.rows import class_row, tuple_row

from worker.queue.schema import Schema
from worker.schedule import statements
from worker.schedule.backlog import Entry, backlog
from worker.schedule.declaration import Schedule, Terms

# Puts the schedule's job into the queue, in the transaction of the connection given, and returns the job's id.
Enqueue = Callable[[Connection[Any], Schedule, datetime], UUID]

# What a declaration did to the row.
Declared = Literal["added", "changed", "confirmed"]

# A process confirms its terms this often ...
CONFIRM_EVERY = 5.0
# ... and terms that nobody confirmed for so long belong to processes that are gone: a living one declares its own.
ABANDONED_AFTER = 30.0

# How many of its jobs may live before a tick is skipped.
_MAX_LIVE: dict[str, int | None] = {"allow": None, "skip": 1, "queue_one": 2}
# Under "allow" a stuck queue lets them grow without end, and each fire rewrites the list.
_MAX_JOB_IDS = 1000


@dataclass(frozen=True)
class Pass:
    """
    What one look at a schedule decided.

    Attributes:
        now: The database's time, by which ticks were found due; None when the schedule is not in the database.
        entries: The decided ticks, oldest first, as the ledger has them from this transaction's commit on.
        more: More ticks are due than one transaction takes: look again.
        refused: Why nothing was decided: the schedule is `undeclared`, or its row has other terms than ours (`stale`).
    """

    now: datetime | None = None
    entries: tuple[Entry, ...] = ()
    more: bool = False
    refused: Literal["undeclared", "stale"] | None = None


@dataclass(frozen=True)
class Survey:
    """Of the schedules looked at: those with due ticks, and those whose row is missing or abandoned by other terms."""

    due: tuple[Schedule, ...]
    orphaned: tuple[Schedule, ...]


@dataclass(frozen=True)
class _Row:
    name: str
    spec: str
    tz: str
    actor: str
    missed: str
    overlap: str
    grace: float
    last_tick: datetime
    job_ids: list[UUID]
    paused_at: datetime | None
    confirmed_at: datetime
    now: datetime

    @property
    def terms(self) -> Terms:
        return Terms(self.spec, self.tz, self.actor, self.missed, self.overlap, self.grace)

    @property
    def abandoned(self) -> bool:
        return (self.now - self.confirmed_at).total_seconds() > ABANDONED_AFTER


class Ledger:
    """
    The schedules and ticks in the database.

    Each method works inside the caller's transaction, which must be READ COMMITTED: under a stricter level a tick would
    not see the job of the tick before. *now* replaces the database's clock, for tests.

    Args:
        enqueue: Sends the schedule's job in that transaction and returns the job's id.
    """

    def __init__(self, enqueue: Enqueue, *, schema: Schema) -> None:
        self._enqueue = enqueue
        self._schema = schema

    def declare(
        self, conn: Connection[Any], schedule: Schedule, *, takeover: bool = False, now: datetime | None = None
    ) -> Declared:
        """
        Make the database's row say what the code says; the last to declare wins.

        A new schedule, and one whose spec or zone changed, begins at this moment: it does not fire its past.

        Args:
            takeover: Only replace terms that were abandoned, and begin when they were last confirmed: this process ran
                since then, so no tick falls between two deploys. Terms that are alive are left alone.
        """
        terms: dict[str, Any] = {"name": schedule.name, "now": now, **schedule.terms._asdict()}
        with conn.cursor() as cur:
            added = cur.execute(self._sql(statements.ADD_SCHEDULE), terms).rowcount == 1
            row = self._lock(conn, schedule, now)
            if added or row is None:
                return "added"
            if row.terms == schedule.terms or (takeover and not row.abandoned):
                self._confirm(cur, [row] if row.terms == schedule.terms else [])
                return "confirmed"
            same_ticks = (row.spec, row.tz) == (schedule.spec, schedule.tz)
            begins = row.last_tick if same_ticks else row.confirmed_at if takeover else row.now
            cur.execute(self._sql(statements.REDECLARE_SCHEDULE), {**terms, "last_tick": begins, "now": row.now})
            return "changed"

    def survey(self, conn: Connection[Any], schedules: Iterable[Schedule], *, now: datetime | None = None) -> Survey:
        """Find the schedules that need a pass or a declaration, and confirm that our terms are alive; locks nothing."""
        mine = {schedule.name: schedule for schedule in schedules}
        with conn.cursor(row_factory=class_row(_Row)) as cur:
            cur.execute(self._sql(statements.LOOK_AT_SCHEDULES), {"names": list(mine), "now": now})
            rows = {row.name: row for row in cur}
            ours = [row for row in rows.values() if row.terms == mine[row.name].terms]
            self._confirm(cur, ours)
        due = [mine[row.name] for row in ours if mine[row.name].trigger.after(row.last_tick) <= row.now]
        stale = [row.name for row in rows.values() if row not in ours and not row.abandoned]
        kept = {row.name for row in ours}.union(stale)
        return Survey(tuple(due), tuple(schedule for name, schedule in mine.items() if name not in kept))

    def advance(self, conn: Connection[Any], schedule: Schedule, *, now: datetime | None = None) -> Pass:
        """
        Decide every tick of *schedule* that is due and undecided, and enqueue the jobs of those that fire.

        All of them, not only the one that somebody's timer went off for: a tick that another process failed to decide
        is never stepped over. Nothing is due before the database's clock says so. A second call finds nothing.
        """
        row = self._lock(conn, schedule, now)
        if row is None:
            return Pass(refused="undeclared")
        utc_now = row.now.astimezone(UTC)
        if row.terms != schedule.terms:
            return Pass(utc_now, refused="stale")
        due = backlog(schedule, last_tick=row.last_tick, now=utc_now, paused=row.paused_at is not None)
        if not due.entries:
            return Pass(utc_now)
        live, decided = self._find_decided(conn, row, due.entries)
        entries = [
            self._fire(conn, schedule, entry, live) if entry.outcome in ("fired", "late") else entry
            for entry in due.entries
            if entry.tick not in decided
        ]
        self._record(conn, schedule, entries)
        self._move_on(conn, row, due.entries[-1], live)
        return Pass(utc_now, tuple(entries), due.more)

    def pause(self, conn: Connection[Any], name: str, *, now: datetime | None = None) -> bool:
        """Stop *name* from firing, in every process; its ticks are recorded as skipped. False: no such schedule."""
        return conn.execute(self._sql(statements.PAUSE_SCHEDULE), {"name": name, "now": now}).rowcount == 1

    def resume(self, conn: Connection[Any], name: str, *, now: datetime | None = None) -> bool:
        """Let *name* fire again from its next tick on; False when it was not paused."""
        return conn.execute(self._sql(statements.RESUME_SCHEDULE), {"name": name, "now": now}).rowcount == 1

    def _sql(self, statement: LiteralString) -> bytes:
        return self._schema.render(statement).encode()

    def _lock(self, conn: Connection[Any], schedule: Schedule, now: datetime | None) -> _Row | None:
        with conn.cursor(row_factory=class_row(_Row)) as cur:
            return cur.execute(self._sql(statements.LOCK_SCHEDULE), {"name": schedule.name, "now": now}).fetchone()

    def _confirm(self, cur: Cursor[Any], rows: Sequence[_Row]) -> None:
        names = [row.name for row in rows if (row.now - row.confirmed_at).total_seconds() > CONFIRM_EVERY]
        if names:
            cur.execute(
                self._sql(statements.CONFIRM_SCHEDULES), {"names": names, "now": rows[0].now, "age": CONFIRM_EVERY}
            )

    def _find_decided(
        self, conn: Connection[Any], row: _Row, entries: Sequence[Entry]
    ) -> tuple[list[UUID], set[datetime]]:
        with conn.cursor(row_factory=tuple_row) as cur:
            cur.execute(
                self._sql(statements.FIND_DECIDED),
                {"name": row.name, "job_ids": row.job_ids, "ticks": [entry.tick for entry in entries]},
            )
            found = cur.fetchone()
        living, decided = map(set, found) if found is not None else (set(), set())
        return [job_id for job_id in row.job_ids if job_id in living], decided

    def _fire(self, conn: Connection[Any], schedule: Schedule, entry: Entry, live: list[UUID]) -> Entry:
        limit = _MAX_LIVE[schedule.overlap]
        if limit is not None and len(live) >= limit:
            return replace(entry, outcome="skipped", reason="overlap")
        job_id = self._enqueue(conn, schedule, entry.tick)
        live.append(job_id)
        return replace(entry, job_id=job_id)

    def _record(self, conn: Connection[Any], schedule: Schedule, entries: Sequence[Entry]) -> None:
        rows = [{**vars(entry), "schedule": schedule.name} for entry in entries]
        with conn.cursor() as cur:
            cur.executemany(self._sql(statements.RECORD_TICK), rows)

    def _move_on(self, conn: Connection[Any], row: _Row, newest: Entry, live: Sequence[UUID]) -> None:
        # `until` itself is not decided yet, only what comes before it.
        last_tick = newest.until - timedelta(microseconds=1) if newest.until else newest.tick
        conn.execute(
            self._sql(statements.ADVANCE_SCHEDULE),
            {"name": row.name, "last_tick": last_tick, "job_ids": list(live[-_MAX_JOB_IDS:]), "now": row.now},
        )
