"""The queue's SQL: every statement that enqueues, claims or settles jobs, with the index it rests on."""

from __future__ import annotations

from typing import LiteralString

# Enqueue

# Sending a job again under its own id replaces it, as Dramatiq's brokers do; the raised token makes a run of the old
# one void. NOTIFY once, whatever the number of rows; it is sent by the commit. Jobs for later have a channel of their
# own: they change when to wake, and there is nothing to claim now.
_OR_REPLACE: LiteralString = """
        ON CONFLICT ON CONSTRAINT job_pkey DO UPDATE
        SET queue = excluded.queue, actor = excluded.actor, state = excluded.state, priority = excluded.priority,
            due_at = excluded.due_at, rank = excluded.rank, args = excluded.args, options = excluded.options,
            message = excluded.message, enqueued_at = excluded.enqueued_at, token = job.token + 1, attempt = 0,
            crashes = 0, error = NULL, claimed_by = NULL, claimed_at = NULL, ahead = false, suspect_since = NULL,
            cancelled_at = NULL, sent_at = clock_timestamp()"""

# The statement that most sends are, without what only many jobs need.
INSERT_JOB: LiteralString = """
    INSERT INTO {schema}.job AS job (
        id, queue, actor, state, priority, due_at, rank, enqueued_at, args, options, message
    )
    SELECT %(id)s::uuid, %(queue)s::text, %(actor)s::text, CASE WHEN waits THEN 'scheduled' ELSE 'available' END,
        %(priority)s::int, due_at, due_at + %(priority)s::int * interval '60 seconds',
        to_timestamp(%(enqueued)s::float8), %(args)s::text::jsonb, %(options)s::text::jsonb, %(message)s::bytea
    FROM (
        SELECT CASE WHEN %(at)s::timestamptz IS NULL
                THEN statement_timestamp() + greatest(%(delay)s::float8, 0) * interval '1 second'
                ELSE greatest(%(at)s::timestamptz, statement_timestamp()) -- being late is no priority
            END AS due_at,
            coalesce(%(at)s::timestamptz > statement_timestamp(), %(delay)s::float8 > 0) AS waits
    ) AS new{or_replace}
    RETURNING pg_notify(CASE WHEN job.state = 'scheduled' THEN %(later)s ELSE %(wake)s END, '')""".replace(
    "{or_replace}", _OR_REPLACE
)

# The end of the two statements for many.
_MANY_SENT: LiteralString = """{or_replace}
        RETURNING state
    )
    SELECT pg_notify(CASE WHEN state = 'scheduled' THEN %(later)s ELSE %(wake)s END, '')
    FROM sent
    GROUP BY state""".replace("{or_replace}", _OR_REPLACE)

# Any number that differ in their arguments only, as those of a bulk do: what is the same for all is neither sent nor
# read again for each, a fifth of the server's time or more.
INSERT_ALIKE: LiteralString = """
    WITH new AS (
        SELECT n.*, CASE WHEN %(at)s::timestamptz IS NULL
                THEN clock_timestamp() + greatest(%(delay)s::float8, 0) * interval '1 second'
                ELSE greatest(%(at)s::timestamptz, clock_timestamp()) -- being late is no priority
            END AS due_at
        FROM ROWS FROM (
            unnest(%(ids)s::text::uuid[]),
            json_array_elements(%(args)s::text::json),
            unnest(%(enqueued)s::text::float8[])
        ) AS n(id, args, enqueued)
    ),
    sent AS (
        INSERT INTO {schema}.job AS job (
            id, queue, actor, state, priority, due_at, rank, enqueued_at, args, options
        )
        SELECT id, %(queue)s::text, %(actor)s::text,
            CASE WHEN coalesce(%(at)s::timestamptz > clock_timestamp(), %(delay)s::float8 > 0)
                THEN 'scheduled'
                ELSE 'available'
            END,
            %(priority)s::int, due_at, due_at + %(priority)s::int * interval '60 seconds', to_timestamp(enqueued),
            args::jsonb, %(options)s::text::jsonb
        FROM new{many_sent}""".replace("{many_sent}", _MANY_SENT)

# Any number. They travel as one JSON text: an array for each column costs the sender a multiple.
INSERT_JOBS: LiteralString = """
    WITH new AS (
        SELECT n.*, CASE WHEN n.at IS NULL
                THEN clock_timestamp() + greatest(n.delay, 0) * interval '1 second'
                ELSE greatest(n.at, clock_timestamp()) -- being late is no priority
            END AS due_at
        FROM json_to_recordset(%(jobs)s::json) AS n(
            id uuid, queue text, actor text, priority int, delay float8, enqueued float8, args jsonb, options jsonb,
            message text, at timestamptz
        )
    ),
    sent AS (
        INSERT INTO {schema}.job AS job (
            id, queue, actor, state, priority, due_at, rank, enqueued_at, args, options, message
        )
        SELECT id, queue, actor,
            CASE WHEN coalesce(at > clock_timestamp(), delay > 0) THEN 'scheduled' ELSE 'available' END,
            priority, due_at, due_at + priority * interval '60 seconds', to_timestamp(enqueued),
            args, options, decode(message, 'base64')
        FROM new{many_sent}""".replace("{many_sent}", _MANY_SENT)

# Claim

# job_available, once per queue: each queue's head is at hand however long the others are. SKIP LOCKED lets workers
# pass each other; the CTEs keep the planner from locking twice; RETURNING keeps no order, so the last SELECT sorts.
# Jobs that hold a connection have a limit of their own. A suspect is taken only alone, by a worker that is idle; for
# ten seconds of each minute the others wait behind it, so that one becomes idle. What is not to be claimed ahead again
# is not passed by either. A LIMIT of 0 costs nothing. A queue may be there more than once, each time with the stretch
# of its ranks that is looked at (see marks.py); without bounds all of it is. The parts are shared with
# CLAIM_WITHIN_LIMITS.
OF_SERVED: LiteralString = """
        CROSS JOIN (VALUES (true, %(checkouts)s::int), (false, %(limit)s::int)) AS room(holds, size)
        CROSS JOIN LATERAL (
            SELECT job.id, job.rank, job.ahead AS wary, job.suspect_since IS NOT NULL AS suspect
            FROM {schema}.job AS job
            WHERE job.queue = served.queue
              AND job.state = 'available'
              AND job.rank >= coalesce(to_timestamp(served.low), '-infinity')
              AND job.rank <= coalesce(to_timestamp(served.high), 'infinity')
              AND job.actor = ANY(CASE WHEN room.holds THEN %(holding)s::text[] ELSE %(actors)s::text[] END)
              AND (
                job.suspect_since IS NULL
                OR %(idle)s
                OR extract(epoch FROM statement_timestamp() - job.suspect_since)::int %% 60 < 10
              )
            ORDER BY job.rank, job.id
            LIMIT {size}
            FOR UPDATE SKIP LOCKED
        ) AS job"""

OF_HEAD: LiteralString = """
    line AS (
        SELECT id, wary, suspect, row_number() OVER (ORDER BY rank, id) AS place
        FROM head
        WHERE nth <= size
    ),
    due AS (
        SELECT id, place > %(free)s AS ahead
        FROM line
        WHERE place <= %(limit)s
          AND (
            place < (
                SELECT coalesce(min(place), 2147483647)
                FROM line
                WHERE suspect OR (wary AND place > %(free)s)
            )
            OR (place = 1 AND suspect AND %(idle)s)
          )
    ),
    claimed AS (
        UPDATE {schema}.job AS job
        SET state = 'running', token = job.token + 1, attempt = job.attempt + 1, ahead = due.ahead,
            claimed_by = %(worker)s, claimed_at = clock_timestamp()
        FROM due
        WHERE job.id = ANY(ARRAY[due.id])
        RETURNING job.id, job.token, job.queue, job.actor, job.attempt, job.rank, job.enqueued_at,
            job.args::text AS args, job.options::text AS options, job.message, job.ahead,
            job.suspect_since IS NOT NULL AS suspect,
            extract(epoch FROM job.claimed_at - job.due_at)::float8 AS waited
    )"""

CLAIM_JOBS: LiteralString = """
    WITH head AS (
        SELECT job.id, job.rank, job.wary, job.suspect, room.size,
            row_number() OVER (PARTITION BY room.holds ORDER BY job.rank, job.id) AS nth
        FROM unnest(%(queues)s::text[], %(lows)s::float8[], %(highs)s::float8[]) AS served(queue, low, high){of_served}
    ),{of_head}
    SELECT id, token, queue, actor, attempt, enqueued_at, args, options, message, ahead, suspect, waited
    FROM claimed
    ORDER BY rank, id""".replace("{of_served}", OF_SERVED.replace("{size}", "room.size")).replace("{of_head}", OF_HEAD)

# job_pkey. What was claimed ahead and runs by now counts if this worker dies. A row that is locked, by the record of a
# step or by whoever sends that job again, is passed by: to wait would hold up the pass.
MARK_BEGUN: LiteralString = """
    WITH begun AS MATERIALIZED (
        SELECT job.id
        FROM unnest(%(ids)s::uuid[], %(tokens)s::bigint[]) AS begun(id, token)
        JOIN {schema}.job AS job ON job.id = ANY(ARRAY[begun.id]) AND job.token = begun.token
        ORDER BY begun.id
        FOR NO KEY UPDATE OF job SKIP LOCKED
    )
    UPDATE {schema}.job AS job
    SET ahead = false
    FROM begun
    WHERE job.id = ANY(ARRAY[begun.id])
    RETURNING job.id"""

# job_scheduled. A thousand at a time, so that a wave of due jobs is not one long transaction. No clock_timestamp(): it
# is volatile, so the index could not stop at it and every job for later would be read. Told are their places: what is
# promoted late comes to be below the marks.
PROMOTE_DUE: LiteralString = """
    WITH due AS (
        SELECT id
        FROM {schema}.job
        WHERE state = 'scheduled'
          AND due_at <= statement_timestamp()
          AND due_at >= coalesce(to_timestamp(%(due_low)s), '-infinity')
        ORDER BY due_at
        LIMIT 1000
        FOR UPDATE SKIP LOCKED
    ),
    promoted AS (
        UPDATE {schema}.job AS job
        SET state = 'available'
        FROM due
        WHERE job.id = ANY(ARRAY[due.id])
        RETURNING job.queue, job.rank
    )
    SELECT queue, extract(epoch FROM rank)::float8
    FROM promoted"""

# Settle

# job_pkey. A batch of outcomes in one statement, each fenced by its token; the jobs that follow from an outcome are
# inserted only beside a parent whose fence held, so repeating a batch whose confirmation was lost changes nothing. What
# somebody cancelled does not come back, whatever its run made of that. Told are those whose fence did not hold.
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
        WHERE job.id = ANY(ARRAY[settled.id])
          AND job.token = settled.token
          AND (settled.outcome IN ('done', 'dead') OR job.cancelled_at IS NOT NULL)
        RETURNING job.id, job.queue, job.actor, job.priority, job.attempt, job.crashes, job.due_at, job.enqueued_at,
            job.claimed_at, job.claimed_by, job.sent_at, job.args,
            coalesce(settled.options::jsonb, job.options) AS options,
            coalesce(settled.message, job.message) AS message,
            CASE
                WHEN settled.outcome IN ('done', 'dead') THEN coalesce(settled.error, job.error)
                ELSE concat_ws(E'\\n', settled.error, 'cancelled')
            END AS error,
            CASE settled.outcome WHEN 'done' THEN 'done' ELSE 'dead' END AS outcome
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
            options, message, error, sent_at
        )
        SELECT id, queue, actor, priority, attempt, crashes, due_at, enqueued_at, claimed_at, clock_timestamp(),
            claimed_by, args, options, message, error, sent_at
        FROM finished
        WHERE outcome = 'dead'
        ON CONFLICT ON CONSTRAINT job_dead_pkey DO UPDATE
        SET attempt = excluded.attempt, crashes = excluded.crashes, died_at = excluded.died_at,
            worker = excluded.worker, options = excluded.options, message = excluded.message, error = excluded.error,
            sent_at = excluded.sent_at
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
            ahead = false,
            suspect_since = CASE WHEN settled.outcome = 'retry' THEN NULL ELSE job.suspect_since END,
            options = coalesce(settled.options::jsonb, job.options),
            message = coalesce(settled.message, job.message),
            error = coalesce(settled.error, job.error)
        FROM settled
        WHERE job.id = ANY(ARRAY[settled.id])
          AND job.token = settled.token
          AND settled.outcome IN ('retry', 'released')
          AND job.cancelled_at IS NULL
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
    SELECT id
    FROM settled
    WHERE (SELECT count(*) FROM told) >= 0
    EXCEPT
    SELECT id
    FROM owned"""

# job_pkey. The same for the commonest batch: jobs that are done, and that nothing follows from.
FINISH_JOBS: LiteralString = """
    WITH settled AS (
        SELECT s.*
        FROM unnest(%(ids)s::uuid[], %(tokens)s::bigint[]) AS s(id, token)
    ),
    finished AS (
        DELETE FROM {schema}.job AS job
        USING settled
        WHERE job.id = ANY(ARRAY[settled.id])
          AND job.token = settled.token
        RETURNING job.id, job.queue, job.actor, job.priority, job.attempt, job.due_at, job.enqueued_at, job.claimed_at,
            job.claimed_by, job.args, job.error
    ),
    recorded AS (
        INSERT INTO {schema}.job_history (
            id, queue, actor, outcome, attempt, priority, due_at, enqueued_at, started_at, finished_at, worker, args,
            error
        )
        SELECT id, queue, actor, 'done', attempt, priority, due_at, enqueued_at, claimed_at, clock_timestamp(),
            claimed_by, args, error
        FROM finished
    )
    SELECT id
    FROM settled
    EXCEPT
    SELECT id
    FROM finished"""

# job_pkey. The same for one such job, in its own transaction. It is sent in one message with the COMMIT, which must not
# be reached when the fence has not held: then there is one row all the same, and it fails by a cast that the message of
# the error shows. As the outermost statement the INSERT needs no RETURNING and nobody to count what that returns.
FINISH_JOB: LiteralString = """
    WITH finished AS (
        DELETE FROM {schema}.job AS job
        WHERE job.id = %(id)s
          AND job.token = %(token)s
        RETURNING job.id, job.queue, job.actor, job.priority, job.attempt, job.due_at, job.enqueued_at, job.claimed_at,
            job.claimed_by, job.args, job.error
    )
    INSERT INTO {schema}.job_history (
        id, queue, actor, outcome, attempt, priority, due_at, enqueued_at, started_at, finished_at, worker, args,
        error
    )
    SELECT coalesce(id, concat('carpool lost the lease of ', %(id)s)::uuid), queue, actor, 'done', attempt, priority,
        due_at, enqueued_at, claimed_at, clock_timestamp(), claimed_by, args, error
    FROM (VALUES (1)) AS one
    LEFT JOIN finished ON true"""

# Looking, for join, flush and --until-empty

# job_available, job_scheduled and job_running, by their first entries.
HAS_JOBS: LiteralString = """
    SELECT EXISTS (
        SELECT
        FROM {schema}.job
        WHERE queue = ANY(%(queues)s::text[])
          AND state = ANY(%(states)s::text[])
    )"""

# The same for what can run now: a job that waits for its time or for the end of a pause, or whose actor nobody here
# knows, does not count.
HAS_WORK: LiteralString = """
    SELECT EXISTS (
        SELECT
        FROM {schema}.job
        WHERE queue = ANY(%(queues)s::text[])
          AND (
            state = 'running'
            OR (state IN ('available', 'held', 'throttled') OR due_at <= statement_timestamp())
            AND actor = ANY(%(actors)s::text[])
            AND NOT EXISTS (
                SELECT
                FROM {schema}.pause
                WHERE (kind, name) IN (('queue', job.queue), ('actor', job.actor))
            )
          )
    )"""

FLUSH_QUEUES: LiteralString = "DELETE FROM {schema}.job WHERE queue = ANY(%(queues)s::text[])"
