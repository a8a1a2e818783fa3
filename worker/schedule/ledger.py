"""The ledger: decides each tick of a schedule once, in one transaction, whatever number of processes try."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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
from worker.schedule.sending import Firing

# Puts jobs into the queue in the transaction of the connection given; returns their ids in order, or why a schedule can
# have none, for each of its firings.
Enqueue = Callable[[Connection[Any], Sequence[Firing]], Sequence[UUID | Exception]]

# Seconds that the ledger remembers; longer than any tick stays undecided while one worker runs.
KEEP = 30 * 86400.0

# How many of its jobs may live before a tick is skipped.
_MAX_LIVE: dict[str, int | None] = {"allow": None, "skip": 1, "queue_one": 2}
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
        failed: Why its job could not be made: nothing was decided, and the next look tries again.
    """

    now: datetime | None = None
    entries: tuple[Entry, ...] = ()
    more: bool = False
    refused: Literal["locked", "stale"] | None = None
    failed: Exception | None = None


class Ledger:
    """
    The ticks in the database, and what became of them.

    Each method works inside the caller's transaction, which must be READ COMMITTED: under a stricter level a tick would
    not see the job of the tick before. *now* replaces the database's clock, for tests.

    Args:
        enqueue: Sends jobs in that transaction and returns their ids.
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

        Raises:
            Exception: Whatever keeps its job from being made, say because its arguments cannot be computed.
        """
        [done] = self.advance_all(conn, [schedule], now=now)
        if done.failed is not None:
            raise done.failed
        return done

    def advance_all(
        self, conn: Connection[Any], schedules: Sequence[Schedule], *, now: datetime | None = None
    ) -> list[Pass]:
        """
        Like `advance` for each of *schedules*, in as few statements as for one.

        One whose job cannot be made has `failed` and stays undecided, the others do not notice.
        """
        rows = self._rows.lock_free(conn, [schedule.name for schedule in schedules], now)
        looks = [_look(schedule, rows.get(schedule.name)) for schedule in schedules]
        due = [
            _Due(schedule, rows[schedule.name], look.entries)
            for schedule, look in zip(schedules, looks, strict=True)
            if look.entries
        ]
        if due:
            self._decide(conn, due)
        decided = {each.row.name: each for each in due}
        return [
            replace(look, entries=decided[schedule.name].entries, failed=decided[schedule.name].failed)
            if schedule.name in decided
            else look
            for schedule, look in zip(schedules, looks, strict=True)
        ]

    def _decide(self, conn: Connection[Any], due: Sequence[_Due]) -> None:
        live, undecided = self._rows.find_decided(conn, [(each.row, each.entries) for each in due])
        for each, living, entries in zip(due, live, undecided, strict=True):
            each.live, each.entries = living, each.apply_overlap(entries, len(living))
        firings = [firing for each in due for firing in each.firings]
        sent = iter(self._enqueue(conn, firings) if firings else ())
        for each in due:
            each.take([next(sent) for _ in each.firings])
        done = [each for each in due if each.failed is None]
        if done:
            with conn.pipeline():
                self._rows.record(conn, [(each.row, each.entries) for each in done])
                self._rows.move_on(conn, [(each.row, each.last_tick, each.live) for each in done])

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
        [live], _ = self._rows.find_decided(conn, [(row, ())])
        limit = _MAX_LIVE[row.overlap]
        if limit is not None and len(live) >= limit and not force:
            raise Refused(
                f"schedule {row.name!r}: job {live[0]} of an earlier tick is not done, and its overlap policy is"
                f" {row.overlap!r}: wait for it, or run with --force"
            )
        [job_id] = self._enqueue(conn, [Firing(schedule, tick)])
        if isinstance(job_id, Exception):
            raise job_id
        entry = Entry(tick, "fired", 0.0, job_id=job_id, manual=True)
        self._rows.record(conn, [(row, [entry])])
        self._rows.move_on(conn, [(row, row.last_tick, [*live, job_id])])
        return entry

    def pause(self, conn: Connection[Any], name: str, *, now: datetime | None = None) -> bool:
        """Stop *name* from firing, in every process; its ticks are recorded as skipped. False: no such schedule."""
        return conn.execute(self._rows.sql(statements.PAUSE_SCHEDULE), {"name": name, "now": now}).rowcount == 1

    def resume(self, conn: Connection[Any], name: str, *, now: datetime | None = None) -> bool:
        """
        Let *name* fire again from its next tick on; False when it was not paused.

        Ticks of the pause that no process was there to record are recorded as skipped.
        """
        row = self._rows.lock(conn, name, now)
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
        row = self._rows.lock(conn, name, now)
        if row is None:
            raise NotFound(f"schedule {name!r} is not in the database: a worker that declares it has not run yet")
        return row


@dataclass
class _Due:
    """A schedule whose row is locked, what is due of it, and what becomes of that; *live* jobs oldest first."""

    schedule: Schedule
    row: Row
    entries: tuple[Entry, ...]
    live: list[UUID] = field(default_factory=list)
    failed: Exception | None = None

    def __post_init__(self) -> None:
        newest = self.entries[-1]
        # `until` itself is not decided yet, only what comes before it.
        self.last_tick = newest.tick if newest.until is None else newest.until - timedelta(microseconds=1)

    def apply_overlap(self, entries: Sequence[Entry], num_live: int) -> tuple[Entry, ...]:
        """*entries*, those skipped whose firing would be one more job than may live."""
        limit = _MAX_LIVE[self.schedule.overlap]
        applied = []
        for entry in entries:
            if _fires(entry):
                if limit is not None and num_live >= limit:
                    applied.append(replace(entry, outcome="skipped", reason="overlap"))
                    continue
                num_live += 1
            applied.append(entry)
        return tuple(applied)

    @property
    def firings(self) -> list[Firing]:
        """What to send for the entries that fire."""
        return [Firing(self.schedule, each.tick, self._due_at(each)) for each in self.entries if _fires(each)]

    def take(self, sent: Sequence[UUID | Exception]) -> None:
        """Note what became of the firings, in their order."""
        job_ids = [each for each in sent if isinstance(each, UUID)]
        self.failed = next((each for each in sent if isinstance(each, Exception)), None)
        if self.failed is not None:
            self.entries = ()
            return
        following = iter(job_ids)
        self.entries = tuple(replace(each, job_id=next(following)) if _fires(each) else each for each in self.entries)
        self.live += job_ids

    def _due_at(self, entry: Entry) -> datetime | None:
        wait = jitter(self.schedule.name, entry.tick, self.schedule.jitter)
        return entry.tick + timedelta(seconds=wait) if wait > entry.lateness else None


def _fires(entry: Entry) -> bool:
    return entry.outcome in ("fired", "late")


def _look(schedule: Schedule, row: Row | None) -> Pass:
    """What is due, before anybody asked which of it is decided and what still runs."""
    if row is None:
        return Pass(refused="locked")
    now = row.now.astimezone(UTC)
    if row.terms != schedule.terms or row.source != schedule.source or row.disabled_at is not None:
        return Pass(now, refused="stale")
    due = backlog(schedule, last_tick=row.last_tick, now=now, paused=row.paused_at is not None)
    return Pass(now, due.entries, due.more)
