"""The SQL of the history's partitions."""

from __future__ import annotations

from typing import LiteralString

GET_TODAY: LiteralString = "SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date"

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
