"""This worker's lease: its row, the heartbeat that renews it, and the rescue of workers whose lease ended."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from worker import clock, log
from worker.queue.feed import Room, names
from worker.queue.flow import Flow
from worker.queue.identity import uuid7
from worker.queue.last_words import LastWords
from worker.queue.lease_statements import (
    FIND_DEAD,
    FORGET_WORKER,
    LIST_CLAIMED,
    LOCK_DEAD,
    MARK_LOST,
    RECORD_DEATH,
    REGISTER_WORKER,
    RENEW_LEASE,
    RESCUE_JOBS,
    TERMINATE_SESSIONS,
    UNREGISTER_WORKER,
)
from worker.queue.marks import Marks
from worker.queue.schema import Schema

logger = log.get_logger(__name__)

# Between seeing a worker's session gone and rescuing its jobs: a worker that merely lost its connection is back sooner.
# With the poll of whoever sees it that makes less than three seconds from a kill to a run elsewhere.
_COUNTDOWN = 1.25
_JUST_BEHIND = 0.01
# While one cannot be rescued yet for another reason, say a lock.
_AGAIN = 0.25
# After a restart of the server everybody's session is gone; whoever is back first gives the others this long.
_OWN_AGE = 1.0
_MAX_CRASHES = 3


class Look(NamedTuple):
    """
    What a heartbeat saw on its way.

    Args:
        next_due: In seconds; None when no job is scheduled.
        needs_rescue: Whether a worker has died; in a full look also whether a job runs for one without a row.
        has_held: Whether jobs wait before a lane, and ...
        has_throttled: ... for their rate; maybe of a limit that no code knows any more. None when that was not
            looked at.
        toil: What looking for the first jobs has cost, see marks.py.
        workers: How many there are, this one included; it is the *nth* of them, counted from 0.
        at: When it was, database clock, in seconds since 1970.
        took: Seconds, at the server.
        cancelled: The tokens, by id, of this worker's jobs that somebody has cancelled.
    """

    next_due: float | None
    has_available: bool
    needs_rescue: bool
    others_run: bool
    flow: Flow
    has_held: bool | None
    has_throttled: bool | None
    toil: int
    workers: int
    nth: int
    at: float
    took: float
    cancelled: dict[str, int] | None = None


class Rescue(NamedTuple):
    """
    What a look at dead workers has come to.

    Args:
        jobs: How many were made available again.
        again_in: Seconds until the next look.
    """

    jobs: int
    again_in: float = _AGAIN


class Beat(NamedTuple):
    """A heartbeat under way; others count from when it was asked for, monotonic."""

    asked_at: float
    cursor: psycopg.Cursor[Any]


def application_name(worker_id: UUID) -> str:
    """What a worker's sessions are called in `pg_stat_activity`; also how they are found when it is dead."""
    return f"carpool {worker_id}"


class Lease:
    """
    The lease of one worker process, which proves that its jobs are being worked on.

    Args:
        duration: Seconds without a heartbeat until others may rescue the jobs.
        worker_id: Fresh for each boot, so that a restarted process is never taken for the one before.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        duration: float,
        slots: int,
        pool_size: int,
        worker_id: UUID | None = None,
    ) -> None:
        self.worker_id = worker_id or uuid7()
        self.duration = duration
        self._schema = schema
        self._row = {
            "worker": self.worker_id,
            "name": f"{socket.gethostname()}:{os.getpid()}",
            "slots": slots,
            "pool_size": pool_size,
            "lease": duration,
        }
        self._registered_at = self._renewed_at = clock.monotonic()

    @property
    def remaining(self) -> float:
        """Seconds until others may rescue this worker's jobs; negative when they may have."""
        return self._renewed_at + self.duration - clock.monotonic()

    def register(self, conn: psycopg.Connection[Any], served: Sequence[Room] = ()) -> Flow:
        """
        Say that this worker lives on *conn*'s session; again after each reconnect, which ends a countdown.

        Returns:
            What is paused and limited, so that not even the first claim takes it.
        """
        self._registered_at = self._renewed_at = clock.monotonic()
        queues, actors = names(served)
        parameters = {**self._row, "queues": queues, "actors": actors}
        row = self._execute(conn, REGISTER_WORKER, parameters).fetchone()
        return Flow.of(*row) if row is not None else Flow()

    def renew(self, conn: psycopg.Connection[Any], served: Sequence[Room]) -> Look | None:
        """The heartbeat; None when this worker was declared dead and its jobs are others' by now."""
        return self.hear(self.beat(conn, served))

    def beat(
        self,
        conn: psycopg.Connection[Any],
        served: Sequence[Room],
        flow: Flow | None = None,
        marks: Marks | None = None,
        mine: Collection[UUID] | None = None,
        last_words: LastWords = LastWords(),  # noqa: B008  # a tuple
    ) -> Beat:
        """
        The same for a pipeline: `hear` it when that is synced. What *flow* pauses is not looked for.

        Args:
            marks: Where jobs are looked for; everywhere when None.
            mine: The jobs that run here, which is all that is looked at of those that run; None to look at all.
        """
        parameters = self.parameters(served, flow or Flow(), marks or Marks(), mine, last_words)
        asked_at = clock.monotonic()
        return Beat(asked_at, self._execute(conn, RENEW_LEASE, parameters))

    def parameters(
        self,
        served: Sequence[Room],
        flow: Flow,
        marks: Marks,
        mine: Collection[UUID] | None,
        last_words: LastWords = LastWords(),  # noqa: B008  # a tuple
    ) -> dict[str, Any]:
        """Of `RENEW_LEASE`, in a `beat` with the same arguments."""
        known_queues, known_actors = names(served)
        queues, actors = names(flow.through(served))
        return {
            "worker": self.worker_id,
            "known_queues": known_queues,
            "known_actors": known_actors,
            **marks.parameters(queues),
            "actors": actors,
            "due_low": marks.due_low,
            "full": mine is None,
            "mine": list(mine or ()),
            "memory": last_words.memory,
            "statements": Jsonb(last_words.statements) if last_words.statements else None,
        }

    def hear(self, beat: Beat) -> Look | None:
        row = beat.cursor.fetchone()
        if row is None:
            return None
        self._renewed_at = beat.asked_at
        (toil_before, next_due, has_available, toil_after, needs_rescue, others_run, has_held, has_throttled,
         paused_queues, paused_actors, limited_queues, cancelled, workers, nth, at, took) = row  # fmt: skip
        return Look(
            next_due,
            has_available,
            needs_rescue,
            others_run,
            Flow.of(paused_queues, paused_actors, limited_queues),
            has_held,
            has_throttled,
            toil=toil_after - toil_before,
            workers=workers,
            nth=nth,
            at=at,
            took=took,
            cancelled=cancelled,
        )

    def claimed(self, conn: psycopg.Connection[Any]) -> dict[UUID, int]:
        """The jobs, with their tokens, that this worker owns by the database's books."""
        return dict(self._execute(conn, LIST_CLAIMED, {"worker": self.worker_id}).fetchall())

    def bury(self, conn: psycopg.Connection[Any], dead: UUID, how: str) -> int:
        """
        Record how a worker died, for whoever rescues its jobs, and end the sessions that it has left.

        Returns:
            How many sessions the server still had; 0 when nothing is left of them.
        """
        self._execute(conn, RECORD_DEATH, {"dead": dead, "how": how})
        (left,) = self._execute(conn, TERMINATE_SESSIONS, {"application_name": application_name(dead)}).fetchone() or (
            0,
        )
        return int(left)

    def unregister(self, conn: psycopg.Connection[Any]) -> None:
        """The end of an orderly stop."""
        self._execute(conn, UNREGISTER_WORKER, {"worker": self.worker_id})

    def rescue(self, conn: psycopg.Connection[Any]) -> Rescue:
        """Make the jobs of dead workers available again; none while a countdown is still running."""
        age = clock.monotonic() - self._registered_at
        if age < _OWN_AGE:
            return Rescue(0)
        me = {"worker": self.worker_id}
        begun = self._execute(conn, MARK_LOST, me).rowcount > 0
        found = {**me, "countdown": _COUNTDOWN, "unbroken": age >= self.duration}
        dead = self._execute(conn, FIND_DEAD, found).fetchall()
        jobs = sum(self._rescue_from(conn, worker_id) for (worker_id,) in dead)
        return Rescue(jobs, _COUNTDOWN + _JUST_BEHIND) if begun else Rescue(jobs)

    def _rescue_from(self, conn: psycopg.Connection[Any], dead: UUID) -> int:
        with conn.transaction():
            (mine,) = self._execute(conn, LOCK_DEAD, {"dead": dead}).fetchone() or (False,)
            if not mine:
                return 0
            self._execute(conn, TERMINATE_SESSIONS, {"application_name": application_name(dead)})
            reason = f"quarantined: {_MAX_CRASHES} workers died while they ran it"
            parameters = {"dead": dead, "max_crashes": _MAX_CRASHES, "reason": reason}
            rescued, quarantined = self._execute(conn, RESCUE_JOBS, parameters).fetchone() or (0, 0)
            self._execute(conn, FORGET_WORKER, {"dead": dead})
        logger.warning("worker.rescued", dead=str(dead), jobs=rescued, quarantined=quarantined)
        return int(rescued)

    def _execute(
        self, conn: psycopg.Connection[Any], statement: Any, parameters: dict[str, Any]
    ) -> psycopg.Cursor[Any]:
        return conn.execute(self._schema.render(statement).encode(), parameters)
