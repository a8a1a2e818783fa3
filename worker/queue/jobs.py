"""Jobs as people look for them: waiting, running, done or dead; and what people do with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import class_row

from worker.errors import ArgumentError
from worker.queue.cancel_statements import CANCEL_JOBS
from worker.queue.history import History, has_no_partition
from worker.queue.job_statements import FIND_JOBS, FIND_RATE, LIST_STEPS, REDRIVE_JOBS, TAKE_DEAD
from worker.queue.queues import Queues
from worker.queue.schema import Schema

LIVE = ("scheduled", "held", "throttled", "available", "running")
STATES = (*LIVE, "done", "dead")
_WAITING = ("scheduled", "held", "throttled", "available")

# What earlier runs have left among a message's options.
_NOTES = ("retries", "traceback", "requeue_timestamp", "cuts")
_BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """
    Which jobs; each part narrows, None means any.

    Args:
        states: Some of `STATES`.
        id: A whole id, or the beginning of one.
        since: Enqueued at or after this instant.
        tags: With all of these tags.

    Raises:
        ArgumentError: A state is unknown, or *id* is not the beginning of one.
    """

    states: Sequence[str] = STATES
    id: str | UUID | None = None
    queues: Sequence[str] | None = None
    actors: Sequence[str] | None = None
    since: datetime | None = None
    tags: Sequence[str] | None = None
    limit: int = 100
    _parameters: dict[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if unknown := [state for state in self.states if state not in STATES]:
            raise ArgumentError(f"job state {unknown[0]!r}: expected one of {', '.join(STATES)}")
        first_id, last_id = _range(self.id)
        object.__setattr__(self, "_parameters", {
            "states": list(self.states), "first_id": first_id, "last_id": last_id, "since": self.since,
            "queues": None if self.queues is None else list(self.queues),
            "actors": None if self.actors is None else list(self.actors),
            "tags": list(self.tags) if self.tags else None, "num_tags": len(set(self.tags or ())),
        })  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FoundJob:
    """A job as it was when it was looked for; instants are aware."""

    id: UUID
    state: str
    queue: str
    actor: str
    attempt: int
    crashes: int
    priority: int
    due_at: datetime
    enqueued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    worker: UUID | None
    args: dict[str, Any] | None
    error: str | None
    cancelled_at: datetime | None
    """When somebody cancelled a job that still runs."""
    errors: list[dict[str, Any]] | None
    tags: list[str]
    progress: float | None
    """From 0 to 1, as its run has last said; of one that runs, only what this run has said."""
    progress_note: str | None
    progress_attempt: int | None
    progress_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class FoundStep:
    """A step that a job has recorded: its next attempts do not do it again."""

    name: str
    value: Any
    attempt: int
    recorded_at: datetime


class Jobs:
    """The jobs of *schema*, by a connection of the caller's and within its transaction if it is in one."""

    def __init__(self, conn: psycopg.Connection[Any], schema: Schema | None = None) -> None:
        self._conn = conn
        self._schema = schema or Schema()

    def find(self, which: JobFilter) -> list[FoundJob]:
        """Those that match, newest first, at most `which.limit`."""
        with self._conn.cursor(row_factory=class_row(FoundJob)) as cur:
            parameters = {**which._parameters, "limit": which.limit}
            return cur.execute(self._schema.render(FIND_JOBS).encode(), parameters).fetchall()

    def steps(self, job_id: UUID) -> list[FoundStep]:
        """What the job has recorded by `ctx.step`, oldest first; also of one that is over, as long as its history."""
        with self._conn.cursor(row_factory=class_row(FoundStep)) as cur:
            return cur.execute(self._schema.render(LIST_STEPS).encode(), {"id": job_id}).fetchall()

    def obstacle(self, job: FoundJob) -> str | None:
        """Why *job*, which waits, cannot start: its queue is paused, nobody knows its actor; None without a reason."""
        if job.state not in _WAITING:
            return None
        in_the_way = Queues(self._conn, self._schema).obstacle(job.queue, job.actor)
        if job.state == "held":
            return in_the_way or "its lane is full: as many jobs as may run at once are before it"
        if job.state == "throttled":
            return in_the_way or self._rate(job.id)
        return in_the_way

    def _rate(self, job_id: UUID) -> str | None:
        row = self._conn.execute(self._schema.render(FIND_RATE).encode(), {"id": job_id}).fetchone()
        if row is None:
            return None
        rate, size, per, opens_at = row
        until = "" if opens_at is None else f": the next may start at {_instant(opens_at)}"
        return f"its rate {rate!r} is used up, {size} starts in {per:.15g} s{until}"

    def redrive(self, which: JobFilter) -> list[UUID]:
        """
        Make dead jobs available again, as if they had been sent now: no attempt and no crash is counted.

        But what they have recorded by `ctx.step` stays recorded: they go on where they failed.

        Oldest first, at most `which.limit`; one whose id was sent anew meanwhile stays dead. Each thousand is a
        transaction of its own, unless the connection is in one.

        Returns:
            The ids of those that were redriven.
        """
        redriven: list[UUID] = []
        while len(redriven) < which.limit:
            batch = self._redrive_some(which, min(_BATCH, which.limit - len(redriven)))
            redriven += batch
            if not batch:
                break
        return redriven

    def cancel(self, which: JobFilter) -> list[UUID]:
        """
        Cancel jobs: those that wait are dead at once, those that run are interrupted by their workers within a second.

        Oldest first, at most `which.limit`; what is over already, or being cancelled, is passed over. A run that ends
        well just before its interrupt is done. Each thousand is a transaction of its own, unless the connection is in
        one; then workers hear of it when that commits.

        Returns:
            The ids of those that were cancelled now.
        """
        cancelled: list[UUID] = []
        while len(cancelled) < which.limit:
            batch = self._cancel_some_today(which, min(_BATCH, which.limit - len(cancelled)))
            cancelled += batch
            if not batch:
                break
        return cancelled

    def _cancel_some_today(self, which: JobFilter, limit: int) -> list[UUID]:
        try:
            return self._cancel_some(which, limit)
        except psycopg.errors.CheckViolation as exc:
            # No worker has kept house for a week; within somebody's transaction, so can nobody.
            if not has_no_partition(exc) or self._conn.info.transaction_status != TransactionStatus.IDLE:
                raise
            History(self._schema, keep=None).maintain(self._conn)
            return self._cancel_some(which, limit)

    def _cancel_some(self, which: JobFilter, limit: int) -> list[UUID]:
        parameters = {**which._parameters, "limit": limit, "cancel": self._schema.channels["cancel"]}
        with self._conn.transaction(), self._conn.cursor() as cur:
            return [row[0] for row in cur.execute(self._schema.render(CANCEL_JOBS).encode(), parameters)]

    def _redrive_some(self, which: JobFilter, limit: int) -> list[UUID]:
        with self._conn.transaction(), self._conn.cursor() as cur:
            parameters = {**which._parameters, "limit": limit}
            dead = cur.execute(self._schema.render(TAKE_DEAD).encode(), parameters).fetchall()
            parameters = {
                "ids": [row[0] for row in dead],
                "messages": [without_notes(row[1]) for row in dead],
                "notes": list(_NOTES),
                "wake": self._schema.channels["wake"],
            }
            return [row[0] for row in cur.execute(self._schema.render(REDRIVE_JOBS).encode(), parameters)]


def without_notes(message: bytes | None) -> bytes | None:
    """*message* of a plain actor without what earlier runs have noted; as it is when it is not JSON."""
    if message is None:
        return None
    try:
        decoded = json.loads(message)
        options = decoded["options"]
    except (ValueError, KeyError, TypeError):
        return message
    if not any(note in options for note in _NOTES):
        return message
    decoded["options"] = {name: value for name, value in options.items() if name not in _NOTES}
    return json.dumps(decoded, separators=(",", ":")).encode()


def _instant(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _range(id_or_prefix: str | UUID | None) -> tuple[UUID, UUID]:
    """The first and the last id that begin like this."""
    digits = str(id_or_prefix or "").replace("-", "").lower()
    try:
        if len(digits) > 32:
            raise ValueError(digits)
        return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
    except ValueError:
        raise ArgumentError(f"job id {str(id_or_prefix)!r}: expected a UUID or the beginning of one") from None
