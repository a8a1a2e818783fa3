"""The SQL of queues in people's hands: what is paused and limited, what waits, and which names anybody knows."""

from __future__ import annotations

from typing import LiteralString

# Pausing

# Workers look at their next heartbeat, which the notification brings forward to now.
PAUSE: LiteralString = """
    WITH paused AS (
        INSERT INTO {schema}.pause (kind, name)
        VALUES (%(kind)s, %(name)s)
        ON CONFLICT ON CONSTRAINT pause_once DO NOTHING
        RETURNING name
    )
    SELECT pg_notify(%(later)s, '') FROM paused"""

RESUME: LiteralString = """
    WITH resumed AS (
        DELETE FROM {schema}.pause
        WHERE kind = %(kind)s
          AND name = %(name)s
        RETURNING name
    )
    SELECT pg_notify(%(later)s, '') FROM resumed"""

# Limiting

# The same. The gate stays when the limit goes: deleting it would lock out the claims until the caller commits.
LIMIT_QUEUE: LiteralString = """
    WITH before AS MATERIALIZED (
        SELECT max_running, max_starts, starts_per
        FROM {schema}.queue_limit
        WHERE queue = %(queue)s
    ),
    made AS (
        INSERT INTO {schema}.queue_gate (queue)
        VALUES (%(queue)s)
        ON CONFLICT ON CONSTRAINT queue_gate_pkey DO NOTHING
    ),
    limited AS (
        INSERT INTO {schema}.queue_limit (queue, max_running, max_starts, starts_per)
        VALUES (%(queue)s, %(running)s, %(starts)s, %(per)s)
        ON CONFLICT ON CONSTRAINT queue_limit_pkey DO UPDATE
        SET max_running = excluded.max_running, max_starts = excluded.max_starts, starts_per = excluded.starts_per,
            limited_at = excluded.limited_at
        RETURNING queue
    ),
    told AS (
        SELECT pg_notify(%(later)s, '') FROM limited
    )
    SELECT before.max_running, before.max_starts, before.starts_per
    FROM told
    LEFT JOIN before ON true"""

# What has started counts no more, should there be a limit again.
UNLIMIT_QUEUE: LiteralString = """
    WITH lifted AS (
        DELETE FROM {schema}.queue_limit
        WHERE queue = %(queue)s
        RETURNING max_running, max_starts, starts_per
    ),
    forgotten AS (
        DELETE FROM {schema}.rate_start
        WHERE rate = 'queue:' || %(queue)s
    )
    SELECT max_running, max_starts, starts_per
    FROM lifted
    CROSS JOIN LATERAL (SELECT pg_notify(%(later)s, '')) AS told"""

# Looking

# The names that a job, a dead letter, a limit or a live worker uses; and whether a worker that does not say what it
# knows is among them, so that nobody can tell.
LIST_KNOWN: LiteralString = """
    WITH live AS (
        SELECT queues, actors
        FROM {schema}.worker
        WHERE heartbeat_at + lease * interval '1 second' > clock_timestamp()
    )
    SELECT
        ARRAY(
            SELECT unnest(queues) FROM live
            UNION SELECT queue FROM {schema}.queue_limit
            UNION SELECT queue FROM {schema}.job
            UNION SELECT queue FROM {schema}.job_dead
        ) AS queues,
        ARRAY(
            SELECT unnest(actors) FROM live
            UNION SELECT actor FROM {schema}.job
            UNION SELECT actor FROM {schema}.job_dead
        ) AS actors,
        EXISTS (SELECT FROM live WHERE actors IS NULL) AS some_are_silent"""

# One look at the whole hot table, which is as small as the work that waits; for people, not for passes. A job that is
# due counts as waiting, although a worker has yet to promote it: there may be none.
LIST_QUEUES: LiteralString = """
    WITH live AS (
        SELECT queues, actors
        FROM {schema}.worker
        WHERE heartbeat_at + lease * interval '1 second' > clock_timestamp()
    ),
    known AS (
        SELECT unnest(actors) AS actor FROM live
        UNION ALL
        SELECT NULL FROM live WHERE actors IS NULL -- an older worker, which may know any
    ),
    counted AS (
        SELECT job.queue, job.actor,
            CASE
                WHEN job.state IN ('held', 'throttled') THEN 'available'
                WHEN job.state = 'scheduled' AND job.due_at <= now() THEN 'available'
                ELSE job.state
            END AS state,
            count(*) AS jobs,
            min(job.due_at) AS oldest
        FROM {schema}.job AS job
        GROUP BY 1, 2, 3
    ),
    live_jobs AS (
        SELECT queue,
            coalesce(sum(jobs) FILTER (WHERE state = 'available'), 0)::bigint AS waiting,
            coalesce(sum(jobs) FILTER (WHERE state = 'running'), 0)::bigint AS running,
            coalesce(sum(jobs) FILTER (WHERE state = 'scheduled'), 0)::bigint AS scheduled,
            min(oldest) FILTER (WHERE state = 'available') AS oldest,
            jsonb_object_agg(actor, jobs) FILTER (
                WHERE state = 'available'
                  AND NOT EXISTS (SELECT FROM known WHERE known.actor IS NULL OR known.actor = counted.actor)
            ) AS unknown
        FROM counted
        GROUP BY queue
    ),
    dead AS (
        SELECT queue, count(*) AS dead
        FROM {schema}.job_dead
        GROUP BY queue
    ),
    served AS (
        SELECT queue, count(*) AS workers
        FROM (SELECT unnest(queues) AS queue FROM live) AS each
        GROUP BY queue
    ),
    paused AS (
        SELECT name AS queue, paused_at
        FROM {schema}.pause
        WHERE kind = 'queue'
    ),
    limited AS (
        SELECT queue, max_running, max_starts, starts_per,
            (
                SELECT sum(starts)
                FROM {schema}.rate_start
                WHERE rate = 'queue:' || told.queue
                  AND started_at > now() - told.starts_per * interval '1 second'
            ) AS starts
        FROM {schema}.queue_limit AS told
    )
    SELECT queue AS name,
        coalesce(waiting, 0) AS waiting,
        coalesce(running, 0) AS running,
        coalesce(scheduled, 0) AS scheduled,
        coalesce(dead, 0) AS dead,
        CASE WHEN oldest IS NOT NULL
            THEN greatest(extract(epoch FROM clock_timestamp() - oldest), 0)::float8
        END AS oldest,
        paused_at,
        coalesce(workers, 0) AS workers,
        coalesce(unknown, '{{}}'::jsonb) AS unknown,
        max_running, max_starts, starts_per,
        CASE WHEN max_starts IS NOT NULL THEN coalesce(starts, 0)::bigint END AS starts
    FROM live_jobs
    FULL JOIN dead USING (queue)
    FULL JOIN served USING (queue)
    FULL JOIN paused USING (queue)
    FULL JOIN limited USING (queue)
    ORDER BY queue"""

LIST_PAUSED_ACTORS: LiteralString = """
    SELECT name, paused_at
    FROM {schema}.pause
    WHERE kind = 'actor'
    ORDER BY name"""

# Why a job of this queue and actor does not start, as far as others than its time and its turn are the reason. Of the
# starts that count, latest first, the one that fills the limit must pass before the next may begin.
FIND_OBSTACLES: LiteralString = """
    WITH live AS (
        SELECT queues, actors
        FROM {schema}.worker
        WHERE heartbeat_at + lease * interval '1 second' > clock_timestamp()
    )
    SELECT
        (SELECT paused_at FROM {schema}.pause WHERE kind = 'queue' AND name = %(queue)s) AS queue_paused_at,
        (SELECT paused_at FROM {schema}.pause WHERE kind = 'actor' AND name = %(actor)s) AS actor_paused_at,
        EXISTS (SELECT FROM live) AS anybody,
        EXISTS (SELECT FROM live WHERE queues IS NULL OR %(queue)s = ANY(queues)) AS served,
        EXISTS (SELECT FROM live WHERE actors IS NULL OR %(actor)s = ANY(actors)) AS known,
        told.max_running, told.max_starts, told.starts_per,
        told.max_running <= (SELECT count(*) FROM {schema}.job WHERE queue = %(queue)s AND state = 'running') AS full,
        (
            SELECT started_at + told.starts_per * interval '1 second'
            FROM (
                SELECT started_at, sum(starts) OVER (ORDER BY started_at DESC, ctid) AS number
                FROM {schema}.rate_start
                WHERE rate = 'queue:' || %(queue)s
                  AND started_at > now() - told.starts_per * interval '1 second'
            ) AS lately
            WHERE number >= told.max_starts
            ORDER BY number
            LIMIT 1
        ) AS opens_at
    FROM (SELECT) AS one
    LEFT JOIN {schema}.queue_limit AS told ON told.queue = %(queue)s"""
