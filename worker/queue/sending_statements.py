"""The SQL of what only some sends need: unique keys and tags."""

from __future__ import annotations

from typing import LiteralString

# Unique keys. Several statements rather than one: after waiting for another sender's transaction, a look must be taken
# anew, and within one statement everything is seen as it was when that began.

# job_key_once. Waits for a sender that is just taking the same key; in the order of the keys, so that no two wait for
# each other.
TAKE_KEYS: LiteralString = """
    INSERT INTO {schema}.job_key (actor, key, job_id, scope, expires_at)
    SELECT actor, key, id, scope, clock_timestamp() + seconds * interval '1 second'
    FROM unnest(
        %(actors)s::text[], %(keys)s::text[], %(ids)s::uuid[], %(scopes)s::text[], %(windows)s::float8[]
    ) AS k(actor, key, id, scope, seconds)
    ORDER BY actor, key
    ON CONFLICT ON CONSTRAINT job_key_once DO NOTHING
    RETURNING job_id"""

# job_key_once, job_pkey. Whether a key is held is a question about its job.
FIND_HOLDERS: LiteralString = """
    SELECT held.actor, held.key, held.job_id,
        CASE held.scope
            WHEN 'window' THEN held.expires_at > clock_timestamp()
            WHEN 'running' THEN job.id IS NOT NULL
            ELSE coalesce(job.state <> 'running', false)
        END AS holds,
        coalesce(job.state <> 'running', false) AS waits
    FROM unnest(%(actors)s::text[], %(keys)s::text[]) AS k(actor, key)
    JOIN {schema}.job_key AS held ON held.actor = k.actor AND held.key = k.key
    LEFT JOIN {schema}.job AS job ON job.id = held.job_id"""

# job_key_once. From a holder that holds it no more, and only if it is still that one.
TAKE_OVER_KEYS: LiteralString = """
    UPDATE {schema}.job_key AS held
    SET job_id = k.id, scope = k.scope, expires_at = clock_timestamp() + k.seconds * interval '1 second',
        taken_at = clock_timestamp()
    FROM unnest(
        %(actors)s::text[], %(keys)s::text[], %(ids)s::uuid[], %(scopes)s::text[], %(windows)s::float8[],
        %(holders)s::uuid[]
    ) AS k(actor, key, id, scope, seconds, holder)
    WHERE held.actor = k.actor
      AND held.key = k.key
      AND held.job_id = k.holder
    RETURNING held.job_id"""

# job_pkey. A send that leaves its work to a waiting job must not see that begin before its own transaction is over:
# claims pass a locked row by, and the notification makes them look again.
LOCK_HOLDERS: LiteralString = """
    WITH waiting AS MATERIALIZED (
        SELECT id
        FROM {schema}.job
        WHERE id = ANY(%(ids)s::uuid[])
          AND state <> 'running'
        ORDER BY id
        FOR SHARE
    ),
    told AS MATERIALIZED (
        SELECT pg_notify(%(wake)s, '')
        FROM waiting
        LIMIT 1
    )
    SELECT id, (SELECT count(*) FROM told)
    FROM waiting"""

# job_pkey. As if the waiting job had been sent now with what the new one holds, at its old place unless it is to be
# postponed.
REPLACE_JOBS: LiteralString = """
    WITH replaced AS (
        UPDATE {schema}.job AS job
        SET args = new.args::jsonb, options = new.options::jsonb, message = new.message, priority = new.priority,
            attempt = 0, crashes = 0, error = NULL,
            due_at = CASE WHEN postpones THEN new.due ELSE job.due_at END,
            rank = CASE WHEN postpones THEN new.due ELSE job.due_at END + new.priority * interval '60 seconds',
            state = CASE WHEN NOT postpones THEN job.state WHEN new.waits THEN 'scheduled' ELSE 'available' END
        FROM (
            SELECT n.*, CASE WHEN at IS NULL
                    THEN clock_timestamp() + greatest(delay, 0) * interval '1 second'
                    ELSE greatest(at, clock_timestamp())
                END AS due,
                coalesce(at > clock_timestamp(), delay > 0) AS waits
            FROM unnest(
                %(holders)s::uuid[], %(postpones)s::bool[], %(priorities)s::int[], %(delays)s::float8[],
                %(instants)s::timestamptz[], %(args)s::text[], %(options)s::text[], %(messages)s::bytea[]
            ) AS n(holder, postpones, priority, delay, at, args, options, message)
        ) AS new
        WHERE job.id = ANY(ARRAY[new.holder])
          AND job.state <> 'running'
        RETURNING job.id, job.state
    ),
    told AS MATERIALIZED (
        SELECT pg_notify(CASE WHEN state = 'scheduled' THEN %(later)s ELSE %(wake)s END, '')
        FROM replaced
        GROUP BY state
    )
    SELECT id, (SELECT count(*) FROM told)
    FROM replaced"""

# Tags

INSERT_TAGS: LiteralString = """
    INSERT INTO {schema}.job_tag (tag, job_id)
    SELECT tag, id
    FROM unnest(%(tags)s::text[], %(tagged)s::uuid[]) AS t(tag, id)
    ON CONFLICT ON CONSTRAINT job_tag_once DO NOTHING"""

# Housekeeping: what jobs have left behind, in the order of its age from *after* on, a portion at a time, because the
# dispatcher has other things to do. A portion is of rows looked at: behind millions that are still needed there may be
# one that is not. Told are where it ended and of how many rows it was, fewer than asked for at the end. With ties,
# because the next one begins behind that instant. OFFSET 0, or else jobs are planned as a join with all that there are.

# job_key_by_age, job_pkey. Only keys that nobody has taken for an hour: one that is just being taken over is younger,
# and so is left alone although its new job is not seen yet.
FORGET_KEYS: LiteralString = """
    WITH looked AS MATERIALIZED (
        SELECT old.ctid AS place, old.job_id, old.expires_at, old.taken_at
        FROM {schema}.job_key AS old
        WHERE old.taken_at > coalesce(%(after)s::timestamptz, '-infinity')
          AND old.taken_at < now() - interval '1 hour'
        ORDER BY old.taken_at
        FETCH FIRST (%(portion)s::bigint) ROWS WITH TIES
    ),
    forgotten AS (
        DELETE FROM {schema}.job_key AS held
        WHERE held.taken_at < now() - interval '1 hour'
          AND held.ctid = ANY(ARRAY(
            SELECT looked.place
            FROM looked
            WHERE (looked.expires_at IS NULL OR looked.expires_at < now())
              AND NOT EXISTS (SELECT FROM {schema}.job WHERE job.id = looked.job_id OFFSET 0)
          ))
    )
    SELECT max(taken_at), count(*)
    FROM looked"""

# The index on the age, job_pkey and job_dead_pkey. What is kept for as long as the history.
_FORGET_BY_AGE: LiteralString = """
    WITH looked AS MATERIALIZED (
        SELECT old.ctid AS place, old.job_id, old.{age}
        FROM {schema}.{leftover} AS old
        WHERE old.{age} > coalesce(%(after)s::timestamptz, '-infinity')
          AND old.{age} < now() - %(keep)s * interval '1 day'
        ORDER BY old.{age}
        FETCH FIRST (%(portion)s::bigint) ROWS WITH TIES
    ),
    forgotten AS (
        DELETE FROM {schema}.{leftover} AS gone
        WHERE gone.ctid = ANY(ARRAY(
            SELECT looked.place
            FROM looked
            WHERE NOT EXISTS (SELECT FROM {schema}.job WHERE job.id = looked.job_id OFFSET 0)
              AND NOT EXISTS (SELECT FROM {schema}.job_dead WHERE job_dead.id = looked.job_id OFFSET 0)
        ))
    )
    SELECT max({age}), count(*)
    FROM looked"""
FORGET_TAGS = _FORGET_BY_AGE.replace("{leftover}", "job_tag").replace("{age}", "tagged_at")
FORGET_PROGRESS = _FORGET_BY_AGE.replace("{leftover}", "job_progress").replace("{age}", "begun_at")
FORGET_STEPS = _FORGET_BY_AGE.replace("{leftover}", "job_step").replace("{age}", "recorded_at")
