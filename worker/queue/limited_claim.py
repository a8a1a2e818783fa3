"""Claiming of queues with a limit: as many as may still run, or start, over the whole fleet."""

from __future__ import annotations

from typing import Any, LiteralString

import psycopg

from worker.queue.claim import Claim
from worker.queue.feed import Room
from worker.queue.rates import Left
from worker.queue.statements import OF_HEAD, OF_SERVED

# CLAIM_JOBS for a room that serves limited queues, in one order with the others. Places are counted from the rows:
# what runs (job_running), and the starts that still count (rate_start_by_rate). Only queues that have a place and a job
# for it are locked (queue_gate_pkey). Who claims of one raises its turn; one whose turn is not as it was when this
# statement began was claimed of by somebody whose claims it has not counted, and is left for the next look. Nothing
# here waits for a lock. What has a place is not claimed ahead of a slot: it would keep the place from others.
CLAIM_WITHIN_LIMITS: LiteralString = """
    WITH looked AS (
        SELECT queue, low, high
        FROM unnest(%(limited_queues)s::text[], %(limited_lows)s::float8[], %(limited_highs)s::float8[])
            AS given(queue, low, high)
    ),
    seen AS MATERIALIZED (
        SELECT gate.queue, gate.turn, told.max_starts, told.starts_per, lately.starts, lately.first_at,
            greatest(least(told.max_running - inside.jobs, told.max_starts - lately.starts), 0)::int AS places
        FROM {schema}.queue_limit AS told
        JOIN {schema}.queue_gate AS gate ON gate.queue = told.queue
        CROSS JOIN LATERAL (
            SELECT count(*) AS jobs
            FROM (
                SELECT
                FROM {schema}.job AS job
                WHERE job.queue = told.queue
                  AND job.state = 'running'
                LIMIT coalesce(told.max_running, 0)
            ) AS running
        ) AS inside
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(start.starts), 0) AS starts, min(start.started_at) AS first_at
            FROM {schema}.rate_start AS start
            WHERE start.rate = 'queue:' || told.queue
              AND start.started_at > statement_timestamp() - told.starts_per * interval '1 second'
        ) AS lately
        WHERE EXISTS (
            SELECT
            FROM looked
            CROSS JOIN LATERAL (
                SELECT
                FROM {schema}.job AS job
                WHERE job.queue = looked.queue
                  AND job.state = 'available'
                  AND job.rank >= coalesce(to_timestamp(looked.low), '-infinity')
                  AND job.rank <= coalesce(to_timestamp(looked.high), 'infinity')
                  AND job.actor = ANY(%(actors)s::text[] || %(holding)s::text[])
                LIMIT 1
            ) AS waiting
            WHERE looked.queue = told.queue
          )
    ),
    locked AS MATERIALIZED (
        SELECT gate.queue, gate.turn
        FROM {schema}.queue_gate AS gate
        WHERE gate.queue = ANY(ARRAY(SELECT queue FROM seen WHERE places > 0))
        FOR UPDATE SKIP LOCKED
    ),
    opened AS MATERIALIZED (
        SELECT queue, places FROM seen JOIN locked USING (queue, turn)
    ),
    served AS (
        SELECT queue, low, high, NULL::int AS places
        FROM unnest(%(queues)s::text[], %(lows)s::float8[], %(highs)s::float8[]) AS unlimited(queue, low, high)
        UNION ALL
        SELECT queue, low, high, places FROM opened JOIN looked USING (queue)
    ),
    found AS (
        SELECT job.id, job.rank, job.wary OR served.places IS NOT NULL AS wary, job.suspect, room.holds, room.size,
            served.places, row_number() OVER (PARTITION BY served.queue ORDER BY job.rank, job.id) AS nth
        FROM served{of_served}
    ),
    head AS (
        SELECT id, rank, wary, suspect, size, row_number() OVER (PARTITION BY holds ORDER BY rank, id) AS nth
        FROM found
        WHERE nth <= coalesce(places, nth)
    ),{of_head},
    taken AS MATERIALIZED (
        SELECT queue, count(*) AS jobs
        FROM claimed
        JOIN opened USING (queue)
        GROUP BY queue
    ),
    turned AS (
        UPDATE {schema}.queue_gate AS gate
        SET turn = gate.turn + 1
        FROM taken
        WHERE gate.queue = taken.queue
    ),
    started AS (
        INSERT INTO {schema}.rate_start (rate, started_at, starts, counts_until)
        SELECT 'queue:' || queue, now.at, jobs, now.at + starts_per * interval '1 second'
        FROM taken
        JOIN seen USING (queue)
        CROSS JOIN LATERAL (SELECT clock_timestamp() AS at OFFSET 0) AS now
        WHERE max_starts IS NOT NULL
    ),
    rest AS (
        SELECT
            (SELECT count(*) FROM seen WHERE places > 0) > (SELECT count(*) FROM opened) AS left_some,
            (
                SELECT extract(epoch FROM min(
                    coalesce(first_at, statement_timestamp()) + starts_per * interval '1 second'
                ) - clock_timestamp())::float8
                FROM seen
                LEFT JOIN taken USING (queue)
                WHERE starts + coalesce(jobs, 0) >= max_starts
            ) AS opens_in
    )
    SELECT id, token, queue, actor, attempt, enqueued_at, args, options, message, ahead, suspect, waited,
        left_some, opens_in
    FROM rest
    LEFT JOIN claimed ON true
    ORDER BY rank, id""".replace("{of_served}", OF_SERVED.replace("{size}", "least(room.size, served.places)")).replace(
    "{of_head}", OF_HEAD
)


def read_claim(rows: psycopg.Cursor[Any], room: Room) -> tuple[list[Claim], Left]:
    """What was claimed for *room*, and what limits have left."""
    if not room.limited:
        return [Claim(*row) for row in rows], Left()
    claims, left = [], Left()
    for *claimed, some, opens_in in rows:
        left = Left(some, opens_in)
        # One row has no job when none was claimed.
        if claimed[0] is not None:
            claims.append(Claim(*claimed))
    return claims, left
