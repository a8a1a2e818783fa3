"""The jobs of the chaos of limits: they write down when they were claimed, begin and end, by the database's clock."""

from __future__ import annotations

import time

from worker import Context, Pool, job

TABLE = """
    CREATE TABLE stay (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        queue text NOT NULL,
        worker text NOT NULL,
        claimed_at timestamptz NOT NULL,
        begun_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        ended_at timestamptz
    )"""

_BEGIN = """
    INSERT INTO stay (queue, worker, claimed_at)
    SELECT queue, claimed_by, claimed_at FROM worker.job WHERE id = %s
    RETURNING id"""


@job(queue="limited")
def stay(pool: Pool, ctx: Context, seconds: float) -> None:
    """Be inside for so many seconds."""
    _stay(pool, ctx, seconds)


@job(queue="open")
def stay_open(pool: Pool, ctx: Context, seconds: float) -> None:
    """The same in a queue that nobody limits."""
    _stay(pool, ctx, seconds)


def _stay(pool: Pool, ctx: Context, seconds: float) -> None:
    with pool.connection() as conn:
        [(row,)] = conn.execute(_BEGIN, [ctx.job_id]).fetchall()
    time.sleep(seconds)
    with pool.connection() as conn:
        conn.execute("UPDATE stay SET ended_at = clock_timestamp() WHERE id = %s", [row])
