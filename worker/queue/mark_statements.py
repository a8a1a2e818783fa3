"""The SQL of marks: where the first jobs are that a claim can find."""

from __future__ import annotations

from typing import LiteralString

# What looking for jobs has cost in this transaction, by the server's own counters: the entries of the two indexes that
# led to no row, and their pages as twenty each. Of dead rows that nobody sees any more only the pages count: their
# entries are known as dead to the index, which keeps them until it is vacuumed.
TOIL: LiteralString = """(
            pg_stat_get_xact_tuples_returned('{schema}.job_available'::regclass)
            - pg_stat_get_xact_tuples_fetched('{schema}.job_available'::regclass)
            + 20 * pg_stat_get_xact_blocks_fetched('{schema}.job_available'::regclass)
            + pg_stat_get_xact_tuples_returned('{schema}.job_scheduled'::regclass)
            - pg_stat_get_xact_tuples_fetched('{schema}.job_scheduled'::regclass)
            + 20 * pg_stat_get_xact_blocks_fetched('{schema}.job_scheduled'::regclass)
        )"""

# job_available and job_scheduled. Of each stretch of a queue's ranks its first jobs of these actors; when the first of
# the scheduled ones is due; and what that cost, in toil and seconds. The subqueries are evaluated in the order in which
# they stand.
FIND_HEADS: LiteralString = """
    SELECT
        begun.toil,
        (
            SELECT jsonb_agg(head.ranks ORDER BY looked.nth)
            FROM unnest(%(queues)s::text[], %(lows)s::float8[], %(highs)s::float8[], %(sizes)s::int[])
                WITH ORDINALITY AS looked(queue, low, high, size, nth)
            CROSS JOIN LATERAL (
                SELECT coalesce(jsonb_agg(extract(epoch FROM first.rank)::float8 ORDER BY first.rank), '[]') AS ranks
                FROM (
                    SELECT job.rank
                    FROM {schema}.job AS job
                    WHERE job.queue = looked.queue
                      AND job.state = 'available'
                      AND job.rank >= coalesce(to_timestamp(looked.low), '-infinity')
                      AND job.rank <= coalesce(to_timestamp(looked.high), 'infinity')
                      AND job.actor = ANY(%(actors)s::text[])
                    ORDER BY job.rank, job.id
                    LIMIT looked.size
                ) AS first
            ) AS head
        ) AS heads,
        (
            SELECT extract(epoch FROM min(due_at))::float8
            FROM {schema}.job
            WHERE state = 'scheduled'
              AND due_at >= coalesce(to_timestamp(%(due_low)s), '-infinity')
        ) AS due,
        {toil} AS toil,
        extract(epoch FROM statement_timestamp())::float8 AS at,
        extract(epoch FROM clock_timestamp() - statement_timestamp())::float8 AS took
    FROM (
        SELECT {toil} AS toil
        OFFSET 0
    ) AS begun""".replace("{toil}", TOIL)
