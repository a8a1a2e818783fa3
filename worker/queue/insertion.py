"""Insertion: the statements that write new jobs, the same for a connection of a thread and one of an event loop."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Generator, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row

from worker.pool import Connection
from worker.pool.cursor import AsyncCursor, Cursor
from worker.pool.view import AsyncView
from worker.queue.new_job import NewJob, alike_columns, are_alike, as_json, columns
from worker.queue.schema import Schema
from worker.queue.sending_statements import (
    FIND_HOLDERS,
    INSERT_TAGS,
    LOCK_HOLDERS,
    REPLACE_JOBS,
    TAKE_KEYS,
    TAKE_OVER_KEYS,
)
from worker.queue.statements import INSERT_ALIKE, INSERT_JOB, INSERT_JOBS

# Of one statement, which the server takes apart in memory: jobs, and bytes of what they carry.
_MOST_JOBS = 5000
_MOST_BYTES = 16_000_000
# Each round is lost only to somebody who took the same key meanwhile, or to a claim of its job.
_ROUNDS = 20

Standing = dict[UUID, UUID]
"""Of the jobs that were not enqueued, because one with their key was there: that one's id."""


class Step(NamedTuple):
    """One statement; whether its rows are *wanted*."""

    statement: bytes
    parameters: dict[str, Any]
    wanted: bool = True


Steps = Generator[Step, list[tuple[Any, ...]], Standing]


def insert(conn: psycopg.Connection[Any], schema: Schema, jobs: Sequence[NewJob]) -> Standing:
    """
    Insert *jobs* on *conn*, within its transaction if it is in one; workers wake when it commits.

    All or none: in autocommit several statements are one transaction.

    Raises:
        psycopg.OperationalError: Among others, when a key was contended for too long.
    """
    if not jobs:
        return {}
    if is_one_statement(jobs):
        _run(conn, _insertion(schema, jobs))
        return {}
    with conn.transaction() if _needs_transaction(conn) else nullcontext():
        steps = _steps(schema, jobs)
        try:
            step = next(steps)
            while True:
                step = steps.send(_run(conn, step))
        except StopIteration as over:
            standing: Standing = over.value
            return standing


async def insert_async(conn: psycopg.AsyncConnection[Any], schema: Schema, jobs: Sequence[NewJob]) -> Standing:
    """`insert` for coroutines."""
    if not isinstance(conn, psycopg.AsyncConnection):
        # A view that works in threads: what is behind it is a connection like any other.
        return await asyncio.to_thread(insert, getattr(conn, "pooled", conn), schema, jobs)
    if not jobs:
        return {}
    if is_one_statement(jobs):
        await _run_async(conn, _insertion(schema, jobs))
        return {}
    async with conn.transaction() if _needs_transaction(conn) else nullcontext():
        steps = _steps(schema, jobs)
        try:
            step = next(steps)
            while True:
                step = steps.send(await _run_async(conn, step))
        except StopIteration as over:
            standing: Standing = over.value
            return standing


def is_one_statement(jobs: Sequence[NewJob]) -> bool:
    """Whether one statement enqueues *jobs*."""
    return all(new.is_plain for new in jobs) and _are_few(jobs)


def commits_by_itself(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    """Whether each statement on *conn* would be a transaction of its own now."""
    return conn.autocommit and conn.pgconn.transaction_status == TransactionStatus.IDLE


def _needs_transaction(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    """A pipeline is a transaction already, with whatever else is in it, until it is synced; answers come before."""
    return commits_by_itself(conn) and conn.pgconn.pipeline_status == PipelineStatus.OFF


def _run(conn: psycopg.Connection[Any], step: Step) -> list[tuple[Any, ...]]:
    # Whatever cursors and rows the caller's connection makes for the caller. Ours begins a transaction on the way.
    kind = Cursor if isinstance(conn, Connection) else psycopg.Cursor
    cur = kind(conn, row_factory=tuple_row)
    cur.execute(step.statement, step.parameters)
    # In a pipeline, asking for the answer is a trip of its own, and until then nobody knows whether it has rows.
    return cur.fetchall() if step.wanted else []


async def _run_async(conn: psycopg.AsyncConnection[Any], step: Step) -> list[tuple[Any, ...]]:
    kind = AsyncCursor if isinstance(conn, AsyncView) else psycopg.AsyncCursor
    cur = kind(conn, row_factory=tuple_row)
    await cur.execute(step.statement, step.parameters)
    return await cur.fetchall() if step.wanted else []


def _steps(schema: Schema, jobs: Sequence[NewJob]) -> Steps:
    keyless = [new for new in jobs if new.key is None]
    if keyless:
        yield from _write(schema, keyless)
    if len(keyless) == len(jobs):
        return {}
    return (yield from _write_keyed(schema, [new for new in jobs if new.key is not None]))


def _step(schema: Schema, statement: LiteralString, **parameters: Any) -> Step:
    return Step(schema.render(statement).encode(), parameters)


# Rows


def _write(schema: Schema, jobs: Sequence[NewJob]) -> Generator[Step, list[tuple[Any, ...]], None]:
    for portion in _portions(jobs):
        yield _insertion(schema, portion)
    yield from _tag(schema, [(tag, new.id) for new in jobs for tag in new.tags])


def _insertion(schema: Schema, jobs: Sequence[NewJob]) -> Step:
    if len(jobs) == 1:
        return _step(schema, INSERT_JOB, **schema.channels, **jobs[0]._asdict())._replace(wanted=False)
    if are_alike(jobs):
        return _step(schema, INSERT_ALIKE, **schema.channels, **alike_columns(jobs))._replace(wanted=False)
    return _step(schema, INSERT_JOBS, **schema.channels, jobs=as_json(jobs))._replace(wanted=False)


def _portions(jobs: Sequence[NewJob]) -> list[Sequence[NewJob]]:
    """*jobs* in as few statements as may be."""
    if _are_few(jobs):
        return [jobs]
    ends, size = [0], 0
    for place, new in enumerate(jobs):
        size += new.size
        if place > ends[-1] and (size > _MOST_BYTES or place - ends[-1] >= _MOST_JOBS):
            ends.append(place)
            size = new.size
    return [jobs[first:end] for first, end in itertools.pairwise([*ends, len(jobs)])]


def _are_few(jobs: Sequence[NewJob]) -> bool:
    if len(jobs) == 1:
        return True
    return len(jobs) <= _MOST_JOBS and sum(new.size for new in jobs) <= _MOST_BYTES


def _tag(schema: Schema, tagged: Sequence[tuple[str, UUID]]) -> Generator[Step, list[tuple[Any, ...]], None]:
    if tagged:
        step = _step(schema, INSERT_TAGS, tags=[tag for tag, _ in tagged], tagged=[job_id for _, job_id in tagged])
        yield step._replace(wanted=False)


# Keys


def _write_keyed(schema: Schema, jobs: Sequence[NewJob]) -> Steps:
    """Round by round: enqueue those whose key is free, leave to its holder what the others were sent for."""
    standing: Standing = {}
    written: set[UUID] = set()
    by_key: dict[tuple[str, str], list[NewJob]] = defaultdict(list)
    for new in jobs:
        by_key[_key(new)].append(new)
    for _ in range(_ROUNDS):
        if not by_key:
            return standing
        taken = yield from _take(schema, by_key)
        written |= taken
        standing.update((yield from _leave(schema, by_key, written)))
    raise psycopg.OperationalError(f"unique key {next(iter(by_key))}: too many others were taking it")


def _take(
    schema: Schema, by_key: dict[tuple[str, str], list[NewJob]]
) -> Generator[Step, list[tuple[Any, ...]], set[UUID]]:
    first = [group[0] for group in by_key.values()]
    taken = {job_id for (job_id,) in (yield _step(schema, TAKE_KEYS, **_keys(first)))}
    yield from _write_taken(schema, by_key, taken)
    return taken


def _leave(
    schema: Schema, by_key: dict[tuple[str, str], list[NewJob]], written: set[UUID]
) -> Generator[Step, list[tuple[Any, ...]], Standing]:
    """What becomes of those whose key somebody has; the groups that are done with leave *by_key*."""
    if not by_key:
        return {}
    found = yield _step(schema, FIND_HOLDERS, actors=[actor for actor, _ in by_key], keys=[key for _, key in by_key])
    free: list[tuple[NewJob, UUID]] = []
    locked: dict[UUID, tuple[str, str]] = {}
    replaced: dict[UUID, tuple[str, str]] = {}
    left: dict[tuple[str, str], UUID] = {}
    for actor, key, holder, holds, waits in found:
        name, group = (actor, key), by_key[actor, key]
        if not holds or (holder == group[0].id and holder not in written):
            free.append((group[0], holder))  # its own, when a message is sent again
        elif not waits:
            left[name] = holder
        elif _policy(group) == "skip":
            locked[holder] = name
        else:
            replaced[holder] = name
    yield from _take_over(schema, by_key, free, written)
    if locked:
        rows = yield _step(schema, LOCK_HOLDERS, ids=sorted(locked), wake=schema.channels["wake"])
        left.update((locked[holder], holder) for holder, _ in rows)
    if replaced:
        # Of several with one key the last is what counts.
        rows = yield _replace(schema, {holder: by_key[name][-1] for holder, name in replaced.items()})
        left.update((replaced[holder], holder) for holder, _ in rows)
        tags = [(tag, holder) for holder, _ in rows for tag in by_key[replaced[holder]][-1].tags]
        yield from _tag(schema, tags)
    return {new.id: holder for name, holder in left.items() for new in by_key.pop(name)}


def _take_over(
    schema: Schema, by_key: dict[tuple[str, str], list[NewJob]], free: list[tuple[NewJob, UUID]], written: set[UUID]
) -> Generator[Step, list[tuple[Any, ...]], None]:
    if not free:
        return
    parameters = {**_keys([new for new, _ in free]), "holders": [holder for _, holder in free]}
    taken = {job_id for (job_id,) in (yield _step(schema, TAKE_OVER_KEYS, **parameters))}
    yield from _write_taken(schema, by_key, taken)
    written |= taken


def _write_taken(
    schema: Schema, by_key: dict[tuple[str, str], list[NewJob]], taken: set[UUID]
) -> Generator[Step, list[tuple[Any, ...]], None]:
    won = [name for name, group in by_key.items() if group[0].id in taken]
    if won:
        yield from _write(schema, [by_key[name].pop(0) for name in won])
    for name in won:
        if not by_key[name]:
            del by_key[name]


def _replace(schema: Schema, by_holder: dict[UUID, NewJob]) -> Step:
    jobs = [by_holder[holder] for holder in sorted(by_holder)]
    values = columns(jobs)
    wanted = ("priorities", "delays", "instants", "args", "options", "messages")
    return _step(
        schema,
        REPLACE_JOBS,
        **schema.channels,
        **{name: values[name] for name in wanted},
        holders=sorted(by_holder),
        postpones=[_policy([new]) == "debounce" for new in jobs],
    )


def _keys(jobs: Iterable[NewJob]) -> dict[str, list[Any]]:
    keyed = [(new, new.key) for new in jobs if new.key is not None]
    return {
        "actors": [new.actor for new, _ in keyed],
        "keys": [key.key for _, key in keyed],
        "ids": [new.id for new, _ in keyed],
        "scopes": [key.scope for _, key in keyed],
        "windows": [key.window for _, key in keyed],
    }


def _key(new: NewJob) -> tuple[str, str]:
    assert new.key is not None  # noqa: S101  # only those come here
    return new.actor, new.key.key


def _policy(group: Sequence[NewJob]) -> str:
    key = group[-1].key
    return "skip" if key is None else key.on_conflict
