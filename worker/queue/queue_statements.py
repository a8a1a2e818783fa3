"""The SQL of queues in people's hands: what is paused, what waits, and which names anybody knows."""

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

# Looking

# The names that a job, a dead letter or a live worker uses; and whether a worker that does not say what it knows is
# among them, so that nobody can tell.
LIST_KNOWN: LiteralString = """
    WITH live AS (
        SELECT queues, actors
        FROM {schema}.worker
        WHERE heartbeat_at + lease * interval '1 second' > clock_timestamp()
    )
    SELECT
        ARRAY(
            SELECT unnest(queues) FROM live
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
        coalesce(unknown, '{{}}'::jsonb) AS unknown
    FROM live_jobs
    FULL JOIN dead USING (queue)
    FULL JOIN served USING (queue)
    FULL JOIN paused USING (queue)
    ORDER BY queue"""

LIST_PAUSED_ACTORS: LiteralString = """
    SELECT name, paused_at
    FROM {schema}.pause
    WHERE kind = 'actor'
    ORDER BY name"""

# Why a job of this queue and actor does not start, as far as others than its time and its turn are the reason.
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
        EXISTS (SELECT FROM live WHERE actors IS NULL OR %(actor)s = ANY(actors)) AS known"""
