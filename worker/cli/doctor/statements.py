"""The doctor's questions; each is asked once, and changes nothing."""

from __future__ import annotations

from typing import LiteralString

READ_VERSION: LiteralString = """
    SELECT current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery()"""

# What the runtime needs and an ordinary owner has: partitions are attached to a table, which only its owner may do.
READ_RIGHTS: LiteralString = """
    SELECT
        current_user,
        has_schema_privilege(%(schema)s, 'USAGE'),
        has_schema_privilege(%(schema)s, 'CREATE'),
        ARRAY(
            SELECT relname::text
            FROM pg_class
            WHERE relnamespace = %(schema)s::regnamespace
              AND relkind IN ('r', 'p')
              AND NOT pg_has_role(relowner, 'USAGE')
            ORDER BY relname
        )"""

READ_CLOCK: LiteralString = "SELECT clock_timestamp()"

READ_BACKEND: LiteralString = "SELECT pg_backend_pid()"

READ_BLOAT: LiteralString = """
    SELECT
        n_live_tup,
        n_dead_tup,
        pg_total_relation_size(relid),
        extract(epoch FROM now() - greatest(last_vacuum, last_autovacuum))::float8
    FROM pg_stat_all_tables
    WHERE relid = %(table)s::regclass"""

# job_running and the primary key of worker.
READ_ORPHANS: LiteralString = """
    SELECT
        count(*) FILTER (WHERE owner.id IS NULL),
        coalesce(max(extract(epoch FROM now() - job.claimed_at)) FILTER (WHERE owner.id IS NULL), 0)::float8
    FROM {schema}.job AS job
    LEFT JOIN {schema}.worker AS owner
        ON owner.id = job.claimed_by
        AND owner.heartbeat_at > now() - make_interval(secs => 3 * owner.lease)
    WHERE job.state = 'running'"""

# Reads every job that waits.
READ_UNKNOWN: LiteralString = """
    SELECT actor, count(*)::int
    FROM {schema}.job
    WHERE state IN ('available', 'scheduled')
      AND actor <> ALL(%(actors)s::text[])
    GROUP BY actor
    ORDER BY count(*) DESC"""

# Small: a row for each schedule.
READ_SCHEDULES: LiteralString = """
    SELECT name, paused_at IS NOT NULL, extract(epoch FROM now() - confirmed_at)::float8
    FROM {schema}.schedule
    WHERE paused_at IS NOT NULL
       OR confirmed_at < now() - make_interval(secs => %(seconds)s)
    ORDER BY name"""

READ_WORKERS: LiteralString = """
    SELECT count(*)::int
    FROM {schema}.worker
    WHERE lost_at IS NULL
      AND heartbeat_at > now() - make_interval(secs => lease)"""
