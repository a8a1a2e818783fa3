"""The SQL of people's looking at jobs and of redriving them."""

from __future__ import annotations

from typing import LiteralString

# Which jobs a `JobFilter` means, in any of the tables that hold jobs.
MATCHES: LiteralString = """id BETWEEN %(first_id)s AND %(last_id)s
          AND (%(queues)s::text[] IS NULL OR queue = ANY(%(queues)s))
          AND (%(actors)s::text[] IS NULL OR actor = ANY(%(actors)s))
          AND (%(since)s::timestamptz IS NULL OR enqueued_at >= %(since)s)
          AND (%(tags)s::text[] IS NULL OR id IN (
            SELECT job_id FROM {schema}.job_tag WHERE tag = ANY(%(tags)s) GROUP BY job_id HAVING count(*) = %(num_tags)s
          ))"""

# Newest first: ids sort by time. Each branch stops at the limit by its primary key or, in the history, by the index on
# id of each partition, and those of states that nobody asked for are not looked at. What a run says of its progress
# counts while it runs, and after it until the next one begins.
FIND_JOBS: LiteralString = """
    SELECT found.id, state, queue, actor, found.attempt, crashes, priority, due_at, enqueued_at, started_at,
        finished_at, worker, args, error, cancelled_at, errors,
        ARRAY(SELECT tag FROM {schema}.job_tag WHERE job_id = found.id ORDER BY tag) AS tags,
        said.fraction AS progress, said.note AS progress_note, said.attempt AS progress_attempt,
        said.reported_at AS progress_at
    FROM (
    (
        SELECT id, state, queue, actor, attempt, crashes, priority, due_at, enqueued_at, claimed_at AS started_at,
            NULL::timestamptz AS finished_at, claimed_by AS worker, args, error, cancelled_at,
            options -> 'errors' AS errors, CASE state WHEN 'running' THEN token END AS token
        FROM {schema}.job
        WHERE state = ANY(%(states)s)
          AND {matches}
        ORDER BY id DESC
        LIMIT %(limit)s
    )
    UNION ALL (
        SELECT id, outcome, queue, actor, attempt, 0, priority, due_at, enqueued_at, started_at, finished_at, worker,
            args, error, NULL::timestamptz, NULL, NULL
        FROM {schema}.job_history
        WHERE 'done' = ANY(%(states)s)
          AND outcome = 'done'
          AND {matches}
        ORDER BY id DESC
        LIMIT %(limit)s
    )
    UNION ALL (
        SELECT id, 'dead', queue, actor, attempt, crashes, priority, due_at, enqueued_at, started_at, died_at, worker,
            args, error, NULL::timestamptz, options -> 'errors', NULL
        FROM {schema}.job_dead
        WHERE 'dead' = ANY(%(states)s)
          AND {matches}
        ORDER BY id DESC
        LIMIT %(limit)s
    )
    ORDER BY id DESC
    LIMIT %(limit)s
    ) AS found
    LEFT JOIN {schema}.job_progress AS said
        ON said.job_id = found.id
       AND (found.token IS NULL OR said.token = found.token)
    ORDER BY found.id DESC""".replace("{matches}", MATCHES)

# job_dead_pkey. A dead letter whose id lives again, because it was sent anew, stays where it is.
TAKE_DEAD: LiteralString = """
    SELECT id, message
    FROM {schema}.job_dead AS dead
    WHERE {matches}
      AND NOT EXISTS (SELECT FROM {schema}.job WHERE job.id = dead.id)
    ORDER BY id
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED""".replace("{matches}", MATCHES)

# One statement for a batch: the dead letters become jobs as they were when they were sent first, due now. What
# Dramatiq and we had noted about earlier runs goes, or the first failure would be the last one again. Tokens go on from
# the time, in microseconds, which no claim of the earlier life can have counted up to: a run of that life, stopped and
# come back, must not find its own token again.
REDRIVE_JOBS: LiteralString = """
    WITH chosen AS (
        SELECT * FROM unnest(%(ids)s::uuid[], %(messages)s::bytea[]) AS chosen(id, message)
    ),
    dead AS (
        DELETE FROM {schema}.job_dead AS dead
        USING chosen
        WHERE dead.id = chosen.id
        RETURNING dead.id, queue, actor, priority, enqueued_at, sent_at, args, options, chosen.message
    ),
    redriven AS (
        INSERT INTO {schema}.job (
            id, queue, actor, state, priority, due_at, rank, token, enqueued_at, sent_at, args, options, message
        )
        SELECT id, queue, actor, 'available', priority, now(), now() + priority * interval '60 seconds',
            (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, enqueued_at, sent_at, args,
            options - %(notes)s::text[], message
        FROM dead
        RETURNING id
    )
    SELECT id, pg_notify(%(wake)s, '') IS NULL FROM redriven ORDER BY id"""

# job_step_once.
LIST_STEPS: LiteralString = """
    SELECT name, value, attempt, recorded_at
    FROM {schema}.job_step
    WHERE job_id = %(id)s
    ORDER BY recorded_at, name"""

# job_pkey, rate_gate_pkey.
FIND_RATE: LiteralString = """
    SELECT job.rate, job.rate_size, job.rate_per, gate.opens_at
    FROM {schema}.job AS job
    LEFT JOIN {schema}.rate_gate AS gate ON gate.rate = job.rate
    WHERE job.id = %(id)s
      AND job.state = 'throttled'"""
