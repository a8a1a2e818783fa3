"""The ledger: decides each tick of a schedule once, in one transaction, whatever number of processes try."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from psycopg import Connection

from worker.errors import NotFound, Refused
from worker.queue.schema import Schema
from worker.schedule import statements
from worker.schedule.backlog import Entry, backlog
from worker.schedule.declaration import Schedule
from worker.schedule.jitter import jitter
from worker.schedule.rows import Row, Rows

# Puts the schedule's job into the queue, in the transaction of the connection given and due after so many seconds, and
# returns the job's id.
Enqueue = Callable[[Connection[Any], Schedule, datetime, float], UUID]

# Days that the ledger remembers; longer than any tick stays undecided while one worker runs.
KEEP = 30 * 86400.0

# How many of its jobs may live before a tick is skipped.
_MAX_LIVE: dict[str, int | None] = {"allow": None, "skip": 1, "queue_one": 2}
# Under "allow" a stuck queue lets them grow without end, and each fire rewrites the list.
_MAX_JOB_IDS = 1000
# Rows of the ledger forgotten in one statement.
_FORGET = 2000


@dataclass(frozen=True)
class Pass:
    """
    What one look at a schedule decided.

    Attributes:
        now: The database's time, by which ticks were found due; None when the schedule was not read.
        entries: The decided ticks, oldest first, as the ledger has them from this transaction's commit on.
        more: More ticks are due than one transaction takes: look again.
        refused: Why nothing was decided: there is no such row or somebody else has it locked (`locked`), or it has
            other terms than ours (`stale`).
    """

    now: datetime | None = None
    entries: tuple[Entry, ...] = ()
    more: bool = False
    refused: Literal["locked", "stale"] | None = None


class Ledger:
    """
    The ticks in the database, and what became of them.

    Each method works inside the caller's transaction, which must be READ COMMITTED: under a stricter level a tick would
    not see the job of the tick before. *now* replaces the database's clock, for tests.

    Args:
        enqueue: Sends the schedule's job in that transaction and returns the job's id.
    """

    def __init__(self, enqueue: Enqueue, *, schema: Schema) -> None:
        self._enqueue = enqueue
        self._rows = Rows(schema)

    def advance(self, conn: Connection[Any], schedule: Schedule, *, now: datetime | None = None) -> Pass:
        """
        Decide every tick of *schedule* that is due and undecided, and enqueue the jobs of those that fire.

        All of them, not only the one that somebody's timer went off for: a tick that another process failed to decide
        is never stepped over. Nothing is due before the database's clock says so. A second call finds nothing. It never
        waits for a row that somebody else holds.
        """
        return self.advance_all(conn, [schedule], now=now)[0]

    def advance_all(
        self, conn: Connection[Any], schedules: Sequence[Schedule], *, now: datetime | None = None
    ) -> list[Pass]:
        """Like `advance` for each of *schedules*, in as few exchanges with the server as for one."""
        rows = self._rows.lock_all(conn, [schedule.name for schedule in schedules], now)
        passes = [_look(schedule, row) for schedule, row in zip(schedules, rows, strict=True)]
        due = [
            (schedule, row, number)
            for number, (schedule, row) in enumerate(zip(schedules, rows, strict=True))
            if row is not None and passes[number].entries
        ]
        if not due:
            return passes
        found = self._rows.find_all_decided(conn, [(row, passes[number].entries) for _, row, number in due])
        # Only what is written: what anything above found is known by now.
        with conn.pipeline():
            for (schedule, row, number), (live, decided) in zip(due, found, strict=True):
                entries = passes[number].entries
                decided_now = self._decide(conn, schedule, row, entries, live, decided)
                passes[number] = replace(passes[number], entries=decided_now)
        return passes

    def _decide(
        self,
        conn: Connection[Any],
        schedule: Schedule,
        row: Row,
        due: Sequence[Entry],
        live: list[UUID],
        decided: set[datetime],
    ) -> tuple[Entry, ...]:
        entries = tuple(
            self._fire(conn, schedule, entry, live) if entry.outcome in ("fired", "late") else entry
            for entry in due
            if entry.tick not in decided
        )
        self._rows.record(conn, row, entries)
        # `until` itself is not decided yet, only what comes before it.
        last_tick = due[-1].until - timedelta(microseconds=1) if due[-1].until else due[-1].tick
        self._move_on(conn, row, last_tick, live)
        return entries

    def run_now(
        self, conn: Connection[Any], schedule: Schedule, *, force: bool = False, now: datetime | None = None
    ) -> Entry:
        """
        Send the schedule's job now, also while it is paused; its ledger row is marked manual and moves no other tick.

        Args:
            force: Also when the jobs of earlier ticks still live and its overlap policy forbids another.

        Raises:
            NotFound: There is no such schedule in the database.
            Refused: The overlap policy forbids it, or the schedule is disabled.
        """
        row = self._found(conn, schedule.name, now)
        if row.disabled_at is not None:
            raise Refused(
                f"schedule {row.name!r} is disabled since {row.disabled_at:%Y-%m-%d %H:%M}: module {row.module!r} does"
                " not declare it any more"
            )
        tick = row.now.astimezone(UTC)
        live, _ = self._rows.find_decided(conn, row, ())
        limit = _MAX_LIVE[row.overlap]
        if limit is not None and len(live) >= limit and not force:
            raise Refused(
                f"schedule {row.name!r}: job {live[0]} of an earlier tick is not done, and its overlap policy is"
                f" {row.overlap!r}: wait for it, or run with --force"
            )
        job_id = self._enqueue(conn, schedule, tick, 0.0)
        entry = Entry(tick, "fired", 0.0, job_id=job_id, manual=True)
        self._rows.record(conn, row, [entry])
        self._move_on(conn, row, row.last_tick, [*live, job_id])
        return entry

    def pause(self, conn: Connection[Any], name: str, *, now: datetime | None = None) -> bool:
        """Stop *name* from firing, in every process; its ticks are recorded as skipped. False: no such schedule."""
        return conn.execute(self._rows.sql(statements.PAUSE_SCHEDULE), {"name": name, "now": now}).rowcount == 1

    def resume(self, conn: Connection[Any], name: str, *, now: datetime | None = None) -> bool:
        """
        Let *name* fire again from its next tick on; False when it was not paused.

        Ticks of the pause that no process was there to record are recorded as skipped.
        """
        row = self._rows.lock(conn, name, now, wait=True)
        if row is None or row.paused_at is None:
            return False
        self._rows.close(conn, row, row.now, "paused")
        conn.execute(self._rows.sql(statements.RESUME_SCHEDULE), {"name": name, "now": row.now})
        return True

    def forget(self, conn: Connection[Any], *, keep: float = KEEP, now: datetime | None = None) -> bool:
        """Delete rows older than *keep* seconds, a few thousand at a time; True when there may be more."""
        done = conn.execute(
            self._rows.sql(statements.FORGET_TICKS), {"keep": keep, "now": now, "limit": _FORGET}
        ).rowcount
        return done == _FORGET

    def _found(self, conn: Connection[Any], name: str, now: datetime | None) -> Row:
        row = self._rows.lock(conn, name, now, wait=True)
        if row is None:
            raise NotFound(f"schedule {name!r} is not in the database: a worker that declares it has not run yet")
        return row

    def _fire(self, conn: Connection[Any], schedule: Schedule, entry: Entry, live: list[UUID]) -> Entry:
        limit = _MAX_LIVE[schedule.overlap]
        if limit is not None and len(live) >= limit:
            return replace(entry, outcome="skipped", reason="overlap")
        delay = max(0.0, jitter(schedule.name, entry.tick, schedule.jitter) - entry.lateness)
        job_id = self._enqueue(conn, schedule, entry.tick, delay)
        live.append(job_id)
        return replace(entry, job_id=job_id)

    def _move_on(self, conn: Connection[Any], row: Row, last_tick: datetime, live: Sequence[UUID]) -> None:
        conn.execute(
            self._rows.sql(statements.ADVANCE_SCHEDULE),
            {"name": row.name, "last_tick": last_tick, "job_ids": list(live[-_MAX_JOB_IDS:]), "now": row.now},
        )


def _look(schedule: Schedule, row: Row | None) -> Pass:
    """What is due, before anybody asked which of it is decided and what still runs."""
    if row is None:
        return Pass(refused="locked")
    now = row.now.astimezone(UTC)
    if row.terms != schedule.terms or row.source != schedule.source or row.disabled_at is not None:
        return Pass(now, refused="stale")
    due = backlog(schedule, last_tick=row.last_tick, now=now, paused=row.paused_at is not None)
    return Pass(now, due.entries, due.more)
