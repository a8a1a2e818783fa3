"""The SQL of leases: the worker's row, its heartbeat, and the rescue of jobs whose worker is dead."""

from __future__ import annotations

from typing import LiteralString

from worker.queue.mark_statements import TOIL

# The worker's row

REGISTER_WORKER: LiteralString = """
    INSERT INTO {schema}.worker AS worker (id, name, pid, backend_start, queues, actors, slots, pool_size, lease)
    SELECT %(worker)s, %(name)s, pg_backend_pid(), backend_start, %(queues)s::text[], %(actors)s::text[], %(slots)s,
        %(pool_size)s, %(lease)s
    FROM pg_stat_activity
    WHERE pid = pg_backend_pid()
    ON CONFLICT ON CONSTRAINT worker_pkey DO UPDATE
    SET pid = excluded.pid, backend_start = excluded.backend_start, queues = excluded.queues, actors = excluded.actors,
        heartbeat_at = clock_timestamp(), lost_at = NULL
    RETURNING
        ARRAY(SELECT name FROM {schema}.pause WHERE kind = 'queue') AS paused_queues,
        ARRAY(SELECT name FROM {schema}.pause WHERE kind = 'actor') AS paused_actors,
        ARRAY(SELECT queue FROM {schema}.queue_limit) AS limited_queues"""

# job_running, between each two owners that have a row and beyond: what runs for an owner without one. The owners' own
# entries, and those of their jobs that are over, are not read.
ORPHANS: LiteralString = """(
            SELECT id AS low, lead(id, 1, 'ffffffff-ffff-ffff-ffff-ffffffffffff') OVER (ORDER BY id) AS high
            FROM (
                SELECT id FROM {schema}.worker
                UNION ALL
                SELECT '00000000-0000-0000-0000-000000000000'
            ) AS known
        ) AS gap
        CROSS JOIN LATERAL (
            SELECT job.claimed_by
            FROM {schema}.job AS job
            WHERE job.state = 'running'
              AND job.claimed_by > gap.low
              AND job.claimed_by < gap.high
            OFFSET 0 -- or else it is planned as a join with all that runs
        ) AS orphan"""

# The heartbeat, and in the same trip all that an idle worker must know. No row: this worker was declared dead.
# A session of another role shows its pid but not its start, which must not look like a session that is gone. What walks
# through running, held or throttled jobs, and past those that were, is in full looks only. The subqueries are
# evaluated in the order in which they stand, so that the toil is that of the two looks for jobs.
RENEW_LEASE: LiteralString = """
    UPDATE {schema}.worker AS me
    SET heartbeat_at = clock_timestamp(), lost_at = NULL, queues = %(known_queues)s::text[],
        actors = %(known_actors)s::text[], memory = %(memory)s, statements = %(statements)s
    WHERE me.id = %(worker)s
    RETURNING
        {toil} AS toil_before,
        (
            SELECT extract(epoch FROM min(due_at) - clock_timestamp())::float8
            FROM {schema}.job
            WHERE state = 'scheduled'
              AND due_at >= coalesce(to_timestamp(%(due_low)s), '-infinity')
        ) AS next_due,
        EXISTS (
            SELECT
            FROM unnest(%(queues)s::text[], %(lows)s::float8[], %(highs)s::float8[]) AS served(queue, low, high)
            CROSS JOIN LATERAL (
                SELECT
                FROM {schema}.job AS job
                WHERE job.queue = served.queue
                  AND job.state = 'available'
                  AND job.rank >= coalesce(to_timestamp(served.low), '-infinity')
                  AND job.rank <= coalesce(to_timestamp(served.high), 'infinity')
                  AND job.actor = ANY(%(actors)s::text[])
                LIMIT 1
            ) AS head
        ) AS has_available,
        {toil} AS toil_after,
        EXISTS (
            SELECT
            FROM {schema}.worker AS other
            WHERE other.id <> %(worker)s
              AND (
                other.lost_at IS NOT NULL
                OR other.heartbeat_at + other.lease * interval '1 second' < clock_timestamp()
                OR NOT EXISTS (
                    SELECT
                    FROM pg_stat_activity AS session
                    WHERE session.pid = other.pid
                      AND (session.backend_start IS NULL OR session.backend_start = other.backend_start)
                )
              )
        ) OR (
            %(full)s
            AND EXISTS (
                SELECT
                FROM {orphans}
            )
        ) AS needs_rescue,
        CASE
            -- Not <>, by which the index would be read through this worker's jobs as well.
            WHEN %(full)s THEN EXISTS (
                SELECT
                FROM {schema}.job AS job
                WHERE job.state = 'running'
                  AND job.claimed_by < %(worker)s
            ) OR EXISTS (
                SELECT
                FROM {schema}.job AS job
                WHERE job.state = 'running'
                  AND job.claimed_by > %(worker)s
            )
            ELSE EXISTS (SELECT FROM {schema}.worker AS other WHERE other.id <> %(worker)s)
        END AS others_run,
        CASE WHEN %(full)s THEN EXISTS (SELECT FROM {schema}.job WHERE state = 'held') END AS has_held,
        CASE WHEN %(full)s THEN EXISTS (SELECT FROM {schema}.job WHERE state = 'throttled') END AS has_throttled,
        ARRAY(SELECT name FROM {schema}.pause WHERE kind = 'queue') AS paused_queues,
        ARRAY(SELECT name FROM {schema}.pause WHERE kind = 'actor') AS paused_actors,
        ARRAY(SELECT queue FROM {schema}.queue_limit) AS limited_queues,
        CASE
            WHEN %(full)s THEN (
                SELECT jsonb_object_agg(job.id, job.token)
                FROM {schema}.job AS job
                WHERE job.state = 'running'
                  AND job.claimed_by = %(worker)s
                  AND job.cancelled_at IS NOT NULL
            )
            ELSE (
                -- By job_pkey: in these words no other index can be used.
                SELECT jsonb_object_agg(job.id, job.token)
                FROM {schema}.job AS job
                WHERE job.id = ANY(%(mine)s::uuid[])
                  AND job.claimed_by IS NOT DISTINCT FROM %(worker)s
                  AND job.cancelled_at IS NOT NULL
            )
        END AS cancelled,
        (SELECT count(*) FROM {schema}.worker) AS workers,
        -- By digits that are random: workers of one machine, which die together, should not stand beside each other.
        (SELECT count(*) FROM {schema}.worker AS other WHERE right(other.id::text, 12) < right(me.id::text, 12)) AS nth,
        extract(epoch FROM clock_timestamp())::float8 AS at,
        extract(epoch FROM clock_timestamp() - statement_timestamp())::float8 AS took""".replace(
    "{toil}", TOIL
).replace("{orphans}", ORPHANS)

# job_running. What this worker owns by the database's books, to compare with what it has in memory.
LIST_CLAIMED: LiteralString = """
    SELECT id, token
    FROM {schema}.job
    WHERE claimed_by = %(worker)s
      AND state = 'running'"""

# The last statement of an orderly stop; what it left claimed (it should be nothing) is found through the missing row.
UNREGISTER_WORKER: LiteralString = "DELETE FROM {schema}.worker WHERE id = %(worker)s"

# By primary key. Only who has seen it end knows; a worker that was rescued meanwhile has no row any more.
RECORD_DEATH: LiteralString = "UPDATE {schema}.worker SET ended = %(how)s WHERE id = %(dead)s"

# Rescue

# Starts the countdown of those whose session is gone. A lost session is not a dead worker: re-registering ends it.
MARK_LOST: LiteralString = """
    UPDATE {schema}.worker AS other
    SET lost_at = clock_timestamp()
    WHERE other.id <> %(worker)s
      AND other.lost_at IS NULL
      AND NOT EXISTS (
        SELECT
        FROM pg_stat_activity AS session
        WHERE session.pid = other.pid
          AND (session.backend_start IS NULL OR session.backend_start = other.backend_start)
      )"""

# By session after the countdown; by lease only for a rescuer whose own heartbeat was unbroken for as long (a shared
# outage would expire everybody at once); and the owners that have no row at all.
FIND_DEAD: LiteralString = """
    SELECT other.id
    FROM {schema}.worker AS other
    WHERE other.id <> %(worker)s
      AND (
        other.lost_at < clock_timestamp() - %(countdown)s * interval '1 second'
        OR (%(unbroken)s AND other.heartbeat_at + other.lease * interval '1 second' < clock_timestamp())
      )
    UNION
    SELECT orphan.claimed_by
    FROM {orphans}""".replace("{orphans}", ORPHANS)

# A second rescuer leaves this one to the first.
LOCK_DEAD: LiteralString = """
    SELECT pg_try_advisory_xact_lock(hashtextextended(%(dead)s::text, 0))"""

# A dead worker's sessions may live on in their queries and hold the locks of the jobs' rows. In a job's transaction
# their name goes on behind the worker's.
TERMINATE_SESSIONS: LiteralString = """
    SELECT count(pg_terminate_backend(pid))
    FROM pg_stat_activity
    WHERE left(application_name, length(%(application_name)s)) = %(application_name)s
      AND datname = current_database()
      AND usename = current_user"""

# job_running. Rows that a session still locks are left for the next look. A job that ran is suspected of having taken
# its worker along when that is the second, and one that took several is quarantined instead of taking the next one as
# well. One that was only claimed ahead has nothing to do with it; in case it had just begun, neither it nor any that
# ran is claimed ahead again, so that the next time it counts. One that somebody cancelled while it ran is dead. What is
# known of the death, each job is told.
RESCUE_JOBS: LiteralString = """
    WITH last_words AS MATERIALIZED (
        SELECT ended, statements,
            pg_size_pretty(memory) || ' in memory at its heartbeat of '
                || to_char(heartbeat_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS memory
        FROM (SELECT %(dead)s::uuid AS id) AS dead
        LEFT JOIN {schema}.worker USING (id)
    ),
    lost AS (
        SELECT id
        FROM {schema}.job
        WHERE id = ANY(ARRAY(SELECT id FROM {schema}.job WHERE claimed_by = %(dead)s AND state = 'running'))
          AND claimed_by = %(dead)s
          AND state = 'running'
        ORDER BY id
        FOR UPDATE SKIP LOCKED
    ),
    ended AS (
        DELETE FROM {schema}.job AS job
        USING lost, last_words
        WHERE job.id = ANY(ARRAY[lost.id])
          AND (job.cancelled_at IS NOT NULL OR NOT job.ahead AND job.crashes + 1 >= %(max_crashes)s)
        RETURNING job.*, CASE WHEN job.cancelled_at IS NULL
            THEN concat_ws('; ', %(reason)s::text, 'the last one: ' || last_words.ended, last_words.memory,
                'the job''s last statement by then: ' || (last_words.statements ->> job.id::text))
            ELSE 'cancelled' END AS reason
    ),
    recorded AS (
        INSERT INTO {schema}.job_history (
            id, queue, actor, outcome, attempt, priority, due_at, enqueued_at, started_at, finished_at, worker, args,
            error
        )
        SELECT id, queue, actor, 'dead', attempt, priority, due_at, enqueued_at, claimed_at, clock_timestamp(),
            claimed_by, args, reason
        FROM ended
    ),
    buried AS (
        INSERT INTO {schema}.job_dead AS dead (
            id, queue, actor, priority, attempt, crashes, due_at, enqueued_at, started_at, died_at, worker, args,
            options, message, error, sent_at
        )
        SELECT id, queue, actor, priority, attempt, crashes + CASE WHEN ahead THEN 0 ELSE 1 END, due_at, enqueued_at,
            claimed_at, clock_timestamp(), claimed_by, args, options, message, reason, sent_at
        FROM ended
        ON CONFLICT ON CONSTRAINT job_dead_pkey DO UPDATE
        SET attempt = excluded.attempt, crashes = excluded.crashes, died_at = excluded.died_at,
            sent_at = excluded.sent_at, worker = excluded.worker, error = excluded.error
    ),
    rescued AS (
        UPDATE {schema}.job AS job
        SET state = 'available', token = job.token + 1, claimed_by = NULL, claimed_at = NULL,
            attempt = job.attempt - CASE WHEN job.ahead THEN 1 ELSE 0 END,
            crashes = job.crashes + CASE WHEN job.ahead THEN 0 ELSE 1 END,
            suspect_since = CASE
                WHEN job.ahead OR job.crashes = 0 THEN job.suspect_since
                ELSE clock_timestamp()
            END,
            ahead = true,
            options = CASE WHEN job.ahead OR jsonb_typeof(job.options) <> 'object' THEN job.options
                ELSE jsonb_set(job.options, '{{errors}}', CASE jsonb_typeof(job.options -> 'errors')
                    WHEN 'array' THEN job.options -> 'errors' ELSE '[]' END || jsonb_build_object(
                    'attempt', job.attempt,
                    'at', to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
                    'error', concat_ws('; ', 'its worker died' || coalesce(': ' || last_words.ended, ''),
                        last_words.memory,
                        'the job''s last statement by then: ' || (last_words.statements ->> job.id::text))
                )) END
        FROM lost, last_words
        WHERE job.id = ANY(ARRAY[lost.id])
          AND job.cancelled_at IS NULL
          AND (job.ahead OR job.crashes + 1 < %(max_crashes)s)
        RETURNING job.id
    )
    SELECT (SELECT count(*) FROM rescued), (SELECT count(*) FROM ended WHERE cancelled_at IS NULL)"""

# Only when nothing of it is left: its row is what makes the next look come back.
FORGET_WORKER: LiteralString = """
    DELETE FROM {schema}.worker AS dead
    WHERE dead.id = %(dead)s
      AND NOT EXISTS (SELECT FROM {schema}.job AS job WHERE job.claimed_by = dead.id AND job.state = 'running')"""
