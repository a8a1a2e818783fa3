"""The jobs under faults: each leaves one effect, with the name of the process that left it."""

from __future__ import annotations

import asyncio
import os
import time

from psycopg import AsyncConnection, Connection

from worker import Context, Pool, every, job

SCHEMA = """
    -- No key: a second effect must show, not fail.
    CREATE TABLE effect (number int NOT NULL, worker text NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
    CREATE INDEX ON effect (at);
    CREATE TABLE ticked (tick timestamptz NOT NULL);
    -- What was sent, in the transaction of its jobs.
    CREATE TABLE sent (number int PRIMARY KEY, kind text NOT NULL);"""

NAME = "CHAOS_WORKER"
_TAKES = 0.03
"""Seconds of each job: so that faults meet some in the middle, and no worker takes them all."""

_INSERT = "INSERT INTO effect (number, worker) VALUES (%s, %s)"


@job(queue="effects", max_retries=1000, min_backoff=10, max_backoff=100)
def in_thread(conn: Connection, number: int) -> None:
    """Counts once, however often it runs; every third has a follower."""
    conn.execute(_INSERT, [number, os.environ.get(NAME, "")])
    if number % 3 == 0:
        followed.send(number)
    time.sleep(_TAKES)


@job(queue="effects", max_retries=1000, min_backoff=10, max_backoff=100)
async def in_loop(conn: AsyncConnection, number: int) -> None:
    """Counts once too."""
    await conn.execute(_INSERT, [number, os.environ.get(NAME, "")])
    await asyncio.sleep(_TAKES)


@job(queue="effects", max_retries=1000, min_backoff=10, max_backoff=100)
def at_end(ctx: Context, number: int) -> None:
    """Counts once too, in a transaction at its end."""
    time.sleep(_TAKES)
    with ctx.finish() as conn:
        conn.execute(_INSERT, [number, os.environ.get(NAME, "")])


@job(queue="effects", max_retries=1000, min_backoff=10, max_backoff=100)
def at_least_once(pool: Pool, number: int) -> None:
    """Its effect is not part of its completion: it may come twice, but not never."""
    with pool.connection() as conn:
        conn.execute(_INSERT, [number, os.environ.get(NAME, "")])
    time.sleep(_TAKES)


@job(queue="effects", max_retries=1000, min_backoff=10, max_backoff=100)
def followed(conn: Connection, number: int) -> None:
    """Exists once for each third of `in_thread`, because it is sent in its transaction."""
    conn.execute(_INSERT, [-number, os.environ.get(NAME, "")])


@every(seconds=1, missed="all", overlap="allow")
@job(queue="effects", max_retries=1000, min_backoff=10, max_backoff=100)
def ticking(conn: Connection, ctx: Context) -> None:
    """Once for each tick, whatever happens meanwhile."""
    conn.execute("INSERT INTO ticked VALUES (%s)", [ctx.scheduled_for])


KINDS = {each.actor_name: each for each in (in_thread, in_loop, at_end, at_least_once)}
