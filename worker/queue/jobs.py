"""Jobs as people look for them: waiting, running, done or dead; and what people do with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, LiteralString
from uuid import UUID

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import class_row

from worker.errors import ArgumentError
from worker.queue.cancel_statements import CANCEL_JOBS
from worker.queue.history import History, has_no_partition
from worker.queue.queues import Queues
from worker.queue.schema import Schema

LIVE = ("scheduled", "held", "throttled", "available", "running")
STATES = (*LIVE, "done", "dead")
_WAITING = ("scheduled", "held", "throttled", "available")

# Newest first: ids sort by time. Each branch stops at the limit by its primary key or, in the history, by the index on
# id of each partition, and those of states that nobody asked for are not looked at.
FIND_JOBS: LiteralString = """
    SELECT found.*, ARRAY(SELECT tag FROM {schema}.job_tag WHERE job_id = found.id ORDER BY tag) AS tags
    FROM (
    (
        SELECT id, state, queue, actor, attempt, crashes, priority, due_at, enqueued_at, claimed_at AS started_at,
            NULL::timestamptz AS finished_at, claimed_by AS worker, args, error, cancelled_at,
            options -> 'errors' AS errors
        FROM {schema}.job
        WHERE state = ANY(%(states)s)
          AND id BETWEEN %(first_id)s AND %(last_id)s
          AND (%(queues)s::text[] IS NULL OR queue = ANY(%(queues)s))
          AND (%(actors)s::text[] IS NULL OR actor = ANY(%(actors)s))
          AND (%(since)s::timestamptz IS NULL OR enqueued_at >= %(since)s)
          AND (%(tags)s::text[] IS NULL OR id IN (
            SELECT job_id FROM {schema}.job_tag WHERE tag = ANY(%(tags)s) GROUP BY job_id HAVING count(*) = %(num_tags)s
          ))
        ORDER BY id DESC
        LIMIT %(limit)s
    )
    UNION ALL (
        SELECT id, outcome, queue, actor, attempt, 0, priority, due_at, enqueued_at, started_at, finished_at, worker,
            args, error, NULL::timestamptz, NULL
        FROM {schema}.job_history
        WHERE 'done' = ANY(%(states)s)
          AND outcome = 'done'
          AND id BETWEEN %(first_id)s AND %(last_id)s
          AND (%(queues)s::text[] IS NULL OR queue = ANY(%(queues)s))
          AND (%(actors)s::text[] IS NULL OR actor = ANY(%(actors)s))
          AND (%(since)s::timestamptz IS NULL OR enqueued_at >= %(since)s)
          AND (%(tags)s::text[] IS NULL OR id IN (
            SELECT job_id FROM {schema}.job_tag WHERE tag = ANY(%(tags)s) GROUP BY job_id HAVING count(*) = %(num_tags)s
          ))
        ORDER BY id DESC
        LIMIT %(limit)s
    )
    UNION ALL (
        SELECT id, 'dead', queue, actor, attempt, crashes, priority, due_at, enqueued_at, started_at, died_at, worker,
            args, error, NULL::timestamptz, options -> 'errors'
        FROM {schema}.job_dead
        WHERE 'dead' = ANY(%(states)s)
          AND id BETWEEN %(first_id)s AND %(last_id)s
          AND (%(queues)s::text[] IS NULL OR queue = ANY(%(queues)s))
          AND (%(actors)s::text[] IS NULL OR actor = ANY(%(actors)s))
          AND (%(since)s::timestamptz IS NULL OR enqueued_at >= %(since)s)
          AND (%(tags)s::text[] IS NULL OR id IN (
            SELECT job_id FROM {schema}.job_tag WHERE tag = ANY(%(tags)s) GROUP BY job_id HAVING count(*) = %(num_tags)s
          ))
        ORDER BY id DESC
        LIMIT %(limit)s
    )
    ORDER BY id DESC
    LIMIT %(limit)s
    ) AS found
    ORDER BY id DESC"""

# job_pkey, rate_gate_pkey.
FIND_RATE: LiteralString = """
    SELECT job.rate, job.rate_size, job.rate_per, gate.opens_at
    FROM {schema}.job AS job
    LEFT JOIN {schema}.rate_gate AS gate ON gate.rate = job.rate
    WHERE job.id = %(id)s
      AND job.state = 'throttled'"""

# job_dead_pkey. A dead letter whose id lives again, because it was sent anew, stays where it is.
TAKE_DEAD: LiteralString = """
    SELECT id, message
    FROM {schema}.job_dead AS dead
    WHERE id BETWEEN %(first_id)s AND %(last_id)s
      AND (%(queues)s::text[] IS NULL OR queue = ANY(%(queues)s))
      AND (%(actors)s::text[] IS NULL OR actor = ANY(%(actors)s))
      AND (%(since)s::timestamptz IS NULL OR enqueued_at >= %(since)s)
      AND (%(tags)s::text[] IS NULL OR id IN (
        SELECT job_id FROM {schema}.job_tag WHERE tag = ANY(%(tags)s) GROUP BY job_id HAVING count(*) = %(num_tags)s
      ))
      AND NOT EXISTS (SELECT FROM {schema}.job WHERE job.id = dead.id)
    ORDER BY id
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED"""

# One statement for a batch: the dead letters become jobs as they were when they were sent first, due now. What
# Dramatiq and we had noted about earlier runs goes, or the first failure would be the last one again.
REDRIVE_JOBS: LiteralString = """
    WITH chosen AS (
        SELECT * FROM unnest(%(ids)s::uuid[], %(messages)s::bytea[]) AS chosen(id, message)
    ),
    dead AS (
        DELETE FROM {schema}.job_dead AS dead
        USING chosen
        WHERE dead.id = chosen.id
        RETURNING dead.id, queue, actor, priority, enqueued_at, args, options, chosen.message
    ),
    redriven AS (
        INSERT INTO {schema}.job (id, queue, actor, state, priority, due_at, rank, enqueued_at, args, options, message)
        SELECT id, queue, actor, 'available', priority, now(), now() + priority * interval '60 seconds', enqueued_at,
            args, options - %(notes)s::text[], message
        FROM dead
        RETURNING id
    )
    SELECT id, pg_notify(%(wake)s, '') IS NULL FROM redriven ORDER BY id"""

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
        return f"its rate {rate!r} is used up, {size} starts in {per:g} s{until}"

    def redrive(self, which: JobFilter) -> list[UUID]:
        """
        Make dead jobs available again, as if they had been sent now: no attempt and no crash is counted.

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
            History(self._schema).maintain(self._conn)
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
