"""The SQL of cancelling: what waits is dead at once, what runs is marked for its worker."""

from __future__ import annotations

from typing import LiteralString

from worker.queue.job_statements import MATCHES

# job_pkey, by range and oldest first. A row that is locked, say by a claim, is waited for: what it has become by then
# decides. What runs and is marked already is passed over, so that nobody is told of a cancel that is another's.
CANCEL_JOBS: LiteralString = """
    WITH chosen AS (
        SELECT id, state
        FROM {schema}.job
        WHERE state = ANY(%(states)s)
          AND (state <> 'running' OR cancelled_at IS NULL)
          AND {matches}
        ORDER BY id
        LIMIT %(limit)s
        FOR UPDATE
    ),
    ended AS (
        DELETE FROM {schema}.job AS job
        USING chosen
        WHERE job.id = chosen.id
          AND chosen.state <> 'running'
        RETURNING job.*
    ),
    recorded AS (
        INSERT INTO {schema}.job_history (
            id, queue, actor, outcome, attempt, priority, due_at, enqueued_at, finished_at, args, error
        )
        SELECT id, queue, actor, 'dead', attempt, priority, due_at, enqueued_at, clock_timestamp(), args,
            concat_ws(E'\\n', error, 'cancelled')
        FROM ended
    ),
    buried AS (
        INSERT INTO {schema}.job_dead AS dead (
            id, queue, actor, priority, attempt, crashes, due_at, enqueued_at, died_at, args, options, message, error,
            sent_at
        )
        SELECT id, queue, actor, priority, attempt, crashes, due_at, enqueued_at, clock_timestamp(), args, options,
            message, concat_ws(E'\\n', error, 'cancelled'), sent_at
        FROM ended
        ON CONFLICT ON CONSTRAINT job_dead_pkey DO UPDATE
        SET attempt = excluded.attempt, crashes = excluded.crashes, died_at = excluded.died_at, worker = NULL,
            sent_at = excluded.sent_at, options = excluded.options, message = excluded.message, error = excluded.error
    ),
    marked AS (
        UPDATE {schema}.job AS job
        SET cancelled_at = clock_timestamp()
        FROM chosen
        WHERE job.id = chosen.id
          AND chosen.state = 'running'
        RETURNING job.id
    ),
    told AS MATERIALIZED (
        SELECT pg_notify(%(cancel)s, '')
        FROM marked
        LIMIT 1
    )
    SELECT id, (SELECT count(*) FROM told)
    FROM (SELECT id FROM ended UNION ALL SELECT id FROM marked) AS cancelled
    ORDER BY id""".replace("{matches}", MATCHES)
