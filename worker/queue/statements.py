"""The queue's SQL: every statement that claims, settles, enqueues or rescues, with the index it rests on."""

from __future__ import annotations

from typing import LiteralString

# Enqueue

# One statement for one job or thousands. Sending a job again under its own id replaces it, as Dramatiq's brokers do;
# the raised token makes a run of the old one void. NOTIFY once, whatever the number of rows; it is sent by the commit.
# Jobs for later have a channel of their own: they change when to wake, and there is nothing to claim now.
INSERT_JOBS: LiteralString = """
    WITH new AS (
        SELECT n.*, clock_timestamp() + greatest(n.delay, 0) * interval '1 second' AS due_at
        FROM unnest(
            %(ids)s::uuid[], %(queues)s::text[], %(actors)s::text[], %(priorities)s::int[], %(delays)s::float8[],
            %(enqueued)s::float8[], %(args)s::text[], %(options)s::text[], %(messages)s::bytea[]
        ) AS n(id, queue, actor, priority, delay, enqueued, args, options, message)
    ),
    sent AS (
        INSERT INTO {schema}.job AS job (
            id, queue, actor, state, priority, due_at, rank, enqueued_at, args, options, message
        )
        SELECT id, queue, actor,
            CASE WHEN delay > 0 THEN 'scheduled' ELSE 'available' END,
            priority, due_at, due_at + priority * interval '60 seconds', to_timestamp(enqueued),
            args::jsonb, options::jsonb, message
        FROM new
        ON CONFLICT ON CONSTRAINT job_pkey DO UPDATE
        SET queue = excluded.queue, actor = excluded.actor, state = excluded.state, priority = excluded.priority,
            due_at = excluded.due_at, rank = excluded.rank, args = excluded.args, options = excluded.options,
            message = excluded.message, enqueued_at = excluded.enqueued_at, token = job.token + 1, attempt = 0,
            crashes = 0, error = NULL, claimed_by = NULL, claimed_at = NULL
        RETURNING state
    )
    SELECT pg_notify(CASE WHEN state = 'scheduled' THEN %(later)s ELSE %(wake)s END, '')
    FROM sent
    GROUP BY state"""

# Claim

# job_available, once per queue: each queue's head is at hand however long the others are. SKIP LOCKED lets workers
# pass each other; the CTE keeps the planner from locking twice; RETURNING keeps no order, so the last SELECT sorts.
CLAIM_JOBS: LiteralString = """
    WITH due AS (
        SELECT head.id
        FROM unnest(%(queues)s::text[]) AS served(queue)
        CROSS JOIN LATERAL (
            SELECT job.id, job.rank
            FROM {schema}.job AS job
            WHERE job.queue = served.queue
              AND job.state = 'available'
              AND job.actor = ANY(%(actors)s::text[])
            ORDER BY job.rank, job.id
            LIMIT %(limit)s
            FOR UPDATE SKIP LOCKED
        ) AS head
        ORDER BY head.rank, head.id
        LIMIT %(limit)s
    ),
    claimed AS (
        UPDATE {schema}.job AS job
        SET state = 'running', token = job.token + 1, attempt = job.attempt + 1,
            claimed_by = %(worker)s, claimed_at = clock_timestamp()
        FROM due
        WHERE job.id = due.id
        RETURNING job.id, job.token, job.queue, job.actor, job.attempt, job.rank, job.enqueued_at,
            job.args::text AS args, job.options::text AS options, job.message,
            extract(epoch FROM job.claimed_at - job.due_at)::float8 AS waited
    )
    SELECT id, token, queue, actor, attempt, enqueued_at, args, options, message, waited
    FROM claimed
    ORDER BY rank, id"""

# job_scheduled. A thousand at a time, so that a wave of due jobs is not one long transaction. No clock_timestamp(): it
# is volatile, so the index could not stop at it and every job for later would be read.
PROMOTE_DUE: LiteralString = """
    WITH due AS (
        SELECT id
        FROM {schema}.job
        WHERE state = 'scheduled'
          AND due_at <= statement_timestamp()
        ORDER BY due_at
        LIMIT 1000
        FOR UPDATE SKIP LOCKED
    )
    UPDATE {schema}.job AS job
    SET state = 'available'
    FROM due
    WHERE job.id = due.id"""

# Settle

# job_pkey. A batch of outcomes in one statement, each fenced by its token; the jobs that follow from an outcome are
# inserted only beside a parent whose fence held, so repeating a batch whose confirmation was lost changes nothing.
SETTLE_JOBS: LiteralString = """
    WITH settled AS (
        SELECT s.*, clock_timestamp() + greatest(s.delay, 0) * interval '1 second' AS due_at
        FROM unnest(
            %(ids)s::uuid[], %(tokens)s::bigint[], %(outcomes)s::text[], %(delays)s::float8[], %(errors)s::text[],
            %(options)s::text[], %(messages)s::bytea[]
        ) AS s(id, token, outcome, delay, error, options, message)
    ),
    finished AS (
        DELETE FROM {schema}.job AS job
        USING settled
        WHERE job.id = settled.id
          AND job.token = settled.token
          AND settled.outcome IN ('done', 'dead')
        RETURNING job.id, job.queue, job.actor, job.priority, job.attempt, job.crashes, job.due_at, job.enqueued_at,
            job.claimed_at, job.claimed_by, job.args,
            coalesce(settled.options::jsonb, job.options) AS options,
            coalesce(settled.message, job.message) AS message,
            coalesce(settled.error, job.error) AS error, settled.outcome
    ),
    recorded AS (
        INSERT INTO {schema}.job_history (
            id, queue, actor, outcome, attempt, priority, due_at, enqueued_at, started_at, finished_at, worker, args,
            error
        )
        SELECT id, queue, actor, outcome, attempt, priority, due_at, enqueued_at, claimed_at, clock_timestamp(),
            claimed_by, args, error
        FROM finished
    ),
    buried AS (
        INSERT INTO {schema}.job_dead AS dead (
            id, queue, actor, priority, attempt, crashes, due_at, enqueued_at, started_at, died_at, worker, args,
            options, message, error
        )
        SELECT id, queue, actor, priority, attempt, crashes, due_at, enqueued_at, claimed_at, clock_timestamp(),
            claimed_by, args, options, message, error
        FROM finished
        WHERE outcome = 'dead'
        ON CONFLICT ON CONSTRAINT job_dead_pkey DO UPDATE
        SET attempt = excluded.attempt, crashes = excluded.crashes, died_at = excluded.died_at,
            worker = excluded.worker, options = excluded.options, message = excluded.message, error = excluded.error
    ),
    returned AS (
        UPDATE {schema}.job AS job
        SET state = CASE WHEN settled.delay > 0 THEN 'scheduled' ELSE 'available' END,
            token = job.token + 1,
            attempt = job.attempt - CASE WHEN settled.outcome = 'released' THEN 1 ELSE 0 END,
            due_at = settled.due_at,
            rank = settled.due_at + job.priority * interval '60 seconds',
            claimed_by = NULL,
            claimed_at = NULL,
            options = coalesce(settled.options::jsonb, job.options),
            message = coalesce(settled.message, job.message),
            error = coalesce(settled.error, job.error)
        FROM settled
        WHERE job.id = settled.id
          AND job.token = settled.token
          AND settled.outcome IN ('retry', 'released')
        RETURNING job.id
    ),
    owned AS (
        SELECT id FROM finished
        UNION ALL
        SELECT id FROM returned
    ),
    following AS (
        INSERT INTO {schema}.job (
            id, queue, actor, state, priority, due_at, rank, enqueued_at, args, options, message
        )
        SELECT n.id, n.queue, n.actor,
            CASE WHEN n.delay > 0 THEN 'scheduled' ELSE 'available' END,
            n.priority, n.due_at, n.due_at + n.priority * interval '60 seconds', to_timestamp(n.enqueued),
            n.args::jsonb, n.options::jsonb, n.message
        FROM (
            SELECT n.*, clock_timestamp() + greatest(n.delay, 0) * interval '1 second' AS due_at
            FROM unnest(
                %(new_parents)s::uuid[], %(new_ids)s::uuid[], %(new_queues)s::text[], %(new_actors)s::text[],
                %(new_priorities)s::int[], %(new_delays)s::float8[], %(new_enqueued)s::float8[],
                %(new_args)s::text[], %(new_options)s::text[], %(new_messages)s::bytea[]
            ) AS n(parent, id, queue, actor, priority, delay, enqueued, args, options, message)
        ) AS n
        JOIN owned ON owned.id = n.parent
        ON CONFLICT ON CONSTRAINT job_pkey DO NOTHING
        RETURNING state
    ),
    told AS MATERIALIZED (
        SELECT pg_notify(CASE WHEN state = 'scheduled' THEN %(later)s ELSE %(wake)s END, '')
        FROM following
        GROUP BY state
    )
    SELECT id, (SELECT count(*) FROM told)
    FROM owned"""

# job_pkey. The same for the commonest case, one job that is done and that nothing follows from: the statement above
# costs its caller more than the job itself. No timeout of the job's reaches it any more, so it brings its own for the
# row's lock, for this transaction only.
FINISH_JOB: LiteralString = """
    WITH finished AS (
        DELETE FROM {schema}.job AS job
        WHERE job.id = %(id)s
          AND job.token = %(token)s
          AND (SELECT set_config('lock_timeout', '5s', true)) IS NOT NULL
        RETURNING job.id, job.queue, job.actor, job.priority, job.attempt, job.due_at, job.enqueued_at, job.claimed_at,
            job.claimed_by, job.args, job.error
    )
    INSERT INTO {schema}.job_history (
        id, queue, actor, outcome, attempt, priority, due_at, enqueued_at, started_at, finished_at, worker, args, error
    )
    SELECT id, queue, actor, 'done', attempt, priority, due_at, enqueued_at, claimed_at, clock_timestamp(), claimed_by,
        args, error
    FROM finished"""

# The worker's row

REGISTER_WORKER: LiteralString = """
    INSERT INTO {schema}.worker AS worker (id, name, pid, backend_start, queues, slots, pool_size, lease)
    SELECT %(worker)s, %(name)s, pg_backend_pid(), backend_start, %(queues)s, %(slots)s, %(pool_size)s, %(lease)s
    FROM pg_stat_activity
    WHERE pid = pg_backend_pid()
    ON CONFLICT ON CONSTRAINT worker_pkey DO UPDATE
    SET pid = excluded.pid, backend_start = excluded.backend_start, queues = excluded.queues,
        heartbeat_at = clock_timestamp(), lost_at = NULL"""

# The heartbeat, and in the same trip all that an idle worker must know. No row: this worker was declared dead.
# A session of another role shows its pid but not its start, which must not look like a session that is gone.
RENEW_LEASE: LiteralString = """
    UPDATE {schema}.worker AS me
    SET heartbeat_at = clock_timestamp(), lost_at = NULL
    WHERE me.id = %(worker)s
    RETURNING
        (
            SELECT extract(epoch FROM min(due_at) - clock_timestamp())::float8
            FROM {schema}.job
            WHERE state = 'scheduled'
        ) AS next_due,
        EXISTS (
            SELECT
            FROM unnest(%(queues)s::text[]) AS served(queue)
            CROSS JOIN LATERAL (
                SELECT
                FROM {schema}.job AS job
                WHERE job.queue = served.queue
                  AND job.state = 'available'
                  AND job.actor = ANY(%(actors)s::text[])
                LIMIT 1
            ) AS head
        ) AS has_available,
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
        ) OR EXISTS (
            SELECT
            FROM {schema}.job AS job
            WHERE job.state = 'running'
              AND NOT EXISTS (SELECT FROM {schema}.worker AS owner WHERE owner.id = job.claimed_by)
        ) AS needs_rescue,
        EXISTS (
            SELECT
            FROM {schema}.job AS job
            WHERE job.state = 'running'
              AND job.claimed_by <> %(worker)s
        ) AS others_run"""

# job_running. What this worker owns by the database's books, to compare with what it has in memory.
LIST_CLAIMED: LiteralString = """
    SELECT id, token
    FROM {schema}.job
    WHERE claimed_by = %(worker)s
      AND state = 'running'"""

# The last statement of an orderly stop; what it left claimed (it should be nothing) is found through the missing row.
UNREGISTER_WORKER: LiteralString = "DELETE FROM {schema}.worker WHERE id = %(worker)s"

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
    SELECT job.claimed_by
    FROM {schema}.job AS job
    WHERE job.state = 'running'
      AND NOT EXISTS (SELECT FROM {schema}.worker AS owner WHERE owner.id = job.claimed_by)"""

# A second rescuer leaves this one to the first.
LOCK_DEAD: LiteralString = """
    SELECT pg_try_advisory_xact_lock(hashtextextended(%(dead)s::text, 0))"""

# A dead worker's sessions may live on in their queries and hold the locks of the jobs' rows.
TERMINATE_SESSIONS: LiteralString = """
    SELECT count(pg_terminate_backend(pid))
    FROM pg_stat_activity
    WHERE application_name = %(application_name)s
      AND datname = current_database()
      AND usename = current_user"""

# job_running. Rows that a session still locks are left for the next look. A job that took several workers with it is
# quarantined instead of taking the next one as well.
RESCUE_JOBS: LiteralString = """
    WITH lost AS (
        SELECT id
        FROM {schema}.job
        WHERE claimed_by = %(dead)s
          AND state = 'running'
        ORDER BY id
        FOR UPDATE SKIP LOCKED
    ),
    quarantined AS (
        DELETE FROM {schema}.job AS job
        USING lost
        WHERE job.id = lost.id
          AND job.crashes + 1 >= %(max_crashes)s
        RETURNING job.*
    ),
    recorded AS (
        INSERT INTO {schema}.job_history (
            id, queue, actor, outcome, attempt, priority, due_at, enqueued_at, started_at, finished_at, worker, args,
            error
        )
        SELECT id, queue, actor, 'dead', attempt, priority, due_at, enqueued_at, claimed_at, clock_timestamp(),
            claimed_by, args, %(reason)s
        FROM quarantined
    ),
    buried AS (
        INSERT INTO {schema}.job_dead AS dead (
            id, queue, actor, priority, attempt, crashes, due_at, enqueued_at, started_at, died_at, worker, args,
            options, message, error
        )
        SELECT id, queue, actor, priority, attempt, crashes + 1, due_at, enqueued_at, claimed_at, clock_timestamp(),
            claimed_by, args, options, message, %(reason)s
        FROM quarantined
        ON CONFLICT ON CONSTRAINT job_dead_pkey DO UPDATE
        SET attempt = excluded.attempt, crashes = excluded.crashes, died_at = excluded.died_at,
            worker = excluded.worker, error = excluded.error
    ),
    rescued AS (
        UPDATE {schema}.job AS job
        SET state = 'available', token = job.token + 1, crashes = job.crashes + 1,
            claimed_by = NULL, claimed_at = NULL
        FROM lost
        WHERE job.id = lost.id
          AND job.crashes + 1 < %(max_crashes)s
        RETURNING job.id
    )
    SELECT (SELECT count(*) FROM rescued), (SELECT count(*) FROM quarantined)"""

# Only when nothing of it is left: its row is what makes the next look come back.
FORGET_WORKER: LiteralString = """
    DELETE FROM {schema}.worker AS dead
    WHERE dead.id = %(dead)s
      AND NOT EXISTS (SELECT FROM {schema}.job AS job WHERE job.claimed_by = dead.id AND job.state = 'running')"""

# Looking, for join, flush and --until-empty

# job_available, job_scheduled and job_running, by their first entries.
HAS_JOBS: LiteralString = """
    SELECT EXISTS (
        SELECT
        FROM {schema}.job
        WHERE queue = ANY(%(queues)s::text[])
          AND state = ANY(%(states)s::text[])
    )"""

# The same for what can run now: a job that waits for its time, or whose actor nobody here knows, does not count.
HAS_WORK: LiteralString = """
    SELECT EXISTS (
        SELECT
        FROM {schema}.job
        WHERE queue = ANY(%(queues)s::text[])
          AND (
            state = 'running'
            OR (state = 'available' OR due_at <= statement_timestamp()) AND actor = ANY(%(actors)s::text[])
          )
    )"""

FLUSH_QUEUES: LiteralString = "DELETE FROM {schema}.job WHERE queue = ANY(%(queues)s::text[])"

# History

# Of the session, because a partition cannot be detached concurrently within a transaction.
LOCK_HISTORY: LiteralString = "SELECT pg_advisory_lock(hashtextextended(%(name)s, 0))"

UNLOCK_HISTORY: LiteralString = "SELECT pg_advisory_unlock(hashtextextended(%(name)s, 0))"

# By name rather than by parent, or one that was detached and then could not be dropped would stay for ever.
LIST_PARTITIONS: LiteralString = """
    SELECT child.relname,
        CASE
            WHEN link.inhrelid IS NULL THEN 'detached'
            WHEN link.inhdetachpending THEN 'half detached'
            ELSE 'attached'
        END
    FROM pg_class AS child
    LEFT JOIN pg_inherits AS link ON link.inhrelid = child.oid
    WHERE child.relnamespace = %(schema)s::regnamespace
      AND child.relkind = 'r'
      AND child.relname ~ '^job_history_[0-9]{8}$'
    ORDER BY child.relname"""

# Made beside the table and then attached, because creating it in place waits behind any open insert.
CREATE_PARTITION: LiteralString = (
    "CREATE TABLE IF NOT EXISTS {schema}.{partition} (LIKE {schema}.job_history INCLUDING ALL)"
)

ATTACH_PARTITION: LiteralString = """
    ALTER TABLE {schema}.job_history
    ATTACH PARTITION {schema}.{partition} FOR VALUES FROM ({start}) TO ({stop})"""

DETACH_PARTITION: LiteralString = "ALTER TABLE {schema}.job_history DETACH PARTITION {schema}.{partition} CONCURRENTLY"

# A detach that gave up waiting for a reader cannot begin again, and until it is finished no other can begin.
FINISH_DETACHING: LiteralString = "ALTER TABLE {schema}.job_history DETACH PARTITION {schema}.{partition} FINALIZE"

DROP_PARTITION: LiteralString = "DROP TABLE IF EXISTS {schema}.{partition}"
