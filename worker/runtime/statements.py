"""The statements of the runtime."""

from __future__ import annotations

from typing import LiteralString

# What the server gives to ordinary roles, what may be less than that, and what other live workers have asked for.
# Read once at boot; the worker table has a row per worker.
READ_BUDGET: LiteralString = """
    SELECT
        current_setting('max_connections')::int
            - current_setting('superuser_reserved_connections')::int
            - coalesce(current_setting('reserved_connections', true), '0')::int AS server,
        (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user) AS role,
        (SELECT nullif(datconnlimit, -1) FROM pg_database WHERE datname = current_database()) AS database,
        count(*) AS workers,
        coalesce(sum(pool_size), 0)::int AS pools
    FROM {schema}.worker
    WHERE lost_at IS NULL AND heartbeat_at > now() - make_interval(secs => lease)"""

# By primary key.
WRITE_CHECKOUTS: LiteralString = """
    UPDATE {schema}.worker
    SET checkouts = %(checkouts)s, answered_at = clock_timestamp()
    WHERE id = %(worker)s"""

# Everything else of this worker waits meanwhile; and reading a whole table is what the dispatcher's session avoids.
COUNT_TIMEOUT: LiteralString = """
    SELECT set_config('statement_timeout', '1s', true), set_config('enable_seqscan', 'on', true)"""

# The whole hot table, which is as small as the work that waits. No row but for the oldest live worker: what all would
# tell, Prometheus would add up.
COUNT_QUEUES: LiteralString = """
    SELECT queue, coalesce(available, 0)::int, coalesce(held, 0)::int, coalesce(throttled, 0)::int,
        coalesce(scheduled, 0)::int, coalesce(running, 0)::int, coalesce(oldest_seconds, 0), max_running,
        max_starts / starts_per
    FROM {schema}.queue_depth
    LEFT JOIN (
        -- job_held and job_throttled
        SELECT queue, count(*) FILTER (WHERE state = 'held') AS held,
            count(*) FILTER (WHERE state = 'throttled') AS throttled
        FROM {schema}.job
        WHERE state = 'held' OR state = 'throttled'
        GROUP BY queue
    ) AS waiting USING (queue)
    FULL JOIN {schema}.queue_limit USING (queue)
    WHERE %(worker)s = (
        SELECT id
        FROM {schema}.worker
        WHERE lost_at IS NULL
          AND heartbeat_at > now() - make_interval(secs => lease)
        ORDER BY started_at, id
        LIMIT 1
    )
    ORDER BY queue"""
