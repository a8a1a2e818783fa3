"""A clock that tests move: schedules tick on a real Postgres, at a time that is made up."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

from psycopg import Connection

from worker.queue.schema import Schema
from worker.schedule import Schedule, registered
from worker.schedule.backlog import Entry
from worker.schedule.ledger import Ledger
from worker.schedule.register import Register
from worker.schedule.sending import send
from worker.schedule.trigger import NEVER

# Ticks decided in one transaction: many, as nobody else is there to wait.
_TOGETHER = 200

# As settling a job that is done does, without its history. Uses job_pkey.
FINISH_JOB: LiteralString = "DELETE FROM {schema}.job WHERE id = %(id)s"


class Happened(NamedTuple):
    """One row of the ledger, and whose it is."""

    schedule: str
    entry: Entry


class ScheduleClock:
    """
    Makes schedules tick by moving the time; the policies, the ledger and the jobs it sends are the real ones.

    The time is a parameter of the statements that schedules run, so that the database lives in it too; SQL of your own
    that says `now()` does not.

    Args:
        conn: In autocommit mode.
        start: Where the time begins, aware.
        schedules: Those of the imported modules by default.
        on_fire: Called with the schedule, the tick and the job's id of every run, say to call the job's function. It
            may raise; then the clock stands at that tick.
        finish: Take each job off the queue after *on_fire*, as if it were done at once. Without it jobs stay, and
            overlap policies see them.
    """

    def __init__(
        self,
        conn: Connection[Any],
        *,
        start: datetime = datetime(2026, 1, 1, tzinfo=UTC),
        schedules: Iterable[Schedule] | None = None,
        schema: Schema | None = None,
        on_fire: Callable[[Schedule, datetime, UUID], object] | None = None,
        finish: bool = True,
    ) -> None:
        self.now = start.astimezone(UTC)
        self.on_fire = on_fire
        self.finish = finish
        self._conn = conn
        self._schema = schema or Schema()
        self._ledger = Ledger(send, schema=self._schema)
        self._register = Register(self._schema)
        self._schedules: dict[str, Schedule] = {}
        for schedule in registered() if schedules is None else schedules:
            self.declare(schedule)

    def declare(self, schedule: Schedule) -> None:
        """Declare *schedule* at this moment, as a worker that boots does; one of the same name is replaced."""
        with self._conn.transaction():
            self._register.declare(self._conn, schedule, now=self.now)
        self._schedules[schedule.name] = schedule

    def advance(self, **duration: float) -> list[Happened]:
        """
        Let time pass, with workers running: `advance(days=1, hours=2)`, as for `timedelta`.

        Returns:
            What became of every tick meanwhile, in the order of time.
        """
        return self.move_to(self.now + timedelta(**duration))

    def move_to(self, instant: datetime) -> list[Happened]:
        """Like `advance`, to *instant*."""
        happened: list[Happened] = []
        coming = [(schedule.trigger.after(self.now), name) for name, schedule in self._schedules.items()]
        # What came due while no worker ran is found at once.
        coming += [(self.now, name) for name in self._schedules]
        heapq.heapify(coming)
        while coming and coming[0][0] <= instant:
            with self._conn.transaction():
                for _ in range(_TOGETHER):
                    if not coming or coming[0][0] > instant:
                        break
                    self.now, name = coming[0]
                    happened += self._look(self._schedules[name])
                    tick = self._schedules[name].trigger.after(self.now)
                    if tick == NEVER or any(other == (tick, name) for other in coming[1:]):
                        heapq.heappop(coming)
                    else:
                        heapq.heapreplace(coming, (tick, name))
        self.now = max(self.now, instant.astimezone(UTC))
        return happened

    def sleep(self, **duration: float) -> None:
        """Let time pass while no worker runs: the next `advance` finds what was missed."""
        self.now += timedelta(**duration)

    def pause(self, name: str) -> None:
        """Pause a schedule at this moment."""
        self._ledger.pause(self._conn, name, now=self.now)

    def resume(self, name: str) -> None:
        """Resume it."""
        with self._conn.transaction():
            self._ledger.resume(self._conn, name, now=self.now)

    def _look(self, schedule: Schedule) -> list[Happened]:
        done = self._ledger.advance(self._conn, schedule, now=self.now)
        entries = list(done.entries)
        while done.more:
            done = self._ledger.advance(self._conn, schedule, now=self.now)
            entries += done.entries
        for entry in entries:
            if entry.job_id is None:
                continue
            if self.on_fire is not None:
                self.on_fire(schedule, entry.tick, entry.job_id)
            if self.finish:
                self._conn.execute(self._schema.render(FINISH_JOB).encode(), {"id": entry.job_id})
        return [Happened(schedule.name, entry) for entry in entries]
