"""The SQL of rates: jobs with one wait, throttled, until so few have started lately that they may."""

from __future__ import annotations

from typing import LiteralString

# Whether somebody would claim the job if it were cleared: its queue and its actor are not paused, and some worker, this
# one or another, serves and knows them (one that says nothing may). The names are looked up once for all rows.
CLAIMABLE: LiteralString = """job.queue <> ALL(ARRAY(SELECT name FROM {schema}.pause WHERE kind = 'queue'))
              AND job.actor <> ALL(ARRAY(SELECT name FROM {schema}.pause WHERE kind = 'actor'))
              AND (
                job.queue = ANY(%(queues)s::text[] || ARRAY(SELECT unnest(queues) FROM {schema}.worker))
                OR EXISTS (SELECT FROM {schema}.worker WHERE queues IS NULL)
              )
              AND (
                job.actor = ANY(%(actors)s::text[] || ARRAY(SELECT unnest(actors) FROM {schema}.worker))
                OR EXISTS (SELECT FROM {schema}.worker WHERE actors IS NULL)
              )"""

# rate_knock_by_rate, rate_gate_opens, rate_gate_pkey, job_throttled, job_cleared and rate_start_by_rate: of each rate
# that was knocked at, or whose time has come, as many of its line as may start. A cleared job counts until it starts,
# and its start for the rate's seconds; so in no such span can more have started, however late a worker claims. Those
# that nobody would claim are passed by. The turns are those of ADMIT_JOBS. A gate that is only just made learns at the
# next look when it opens again.
CLEAR_JOBS: LiteralString = """
    WITH knocks AS MATERIALIZED (
        SELECT rate
        FROM (SELECT rate FROM {schema}.rate_knock ORDER BY rate LIMIT 1000) AS marks
        UNION
        SELECT rate
        FROM (
            SELECT rate
            FROM {schema}.rate_gate
            WHERE opens_at <= statement_timestamp()
            ORDER BY opens_at
            LIMIT 1000
        ) AS due
    ),
    seen AS MATERIALIZED (
        SELECT gate.rate, gate.turn
        FROM knocks
        JOIN {schema}.rate_gate AS gate ON gate.rate = knocks.rate
    ),
    locked AS MATERIALIZED (
        SELECT gate.rate, gate.turn
        FROM {schema}.rate_gate AS gate
        WHERE gate.rate = ANY(ARRAY(SELECT rate FROM knocks))
        FOR UPDATE SKIP LOCKED
    ),
    made AS (
        INSERT INTO {schema}.rate_gate (rate, opens_at)
        SELECT rate, statement_timestamp() FROM knocks
        WHERE rate NOT IN (SELECT rate FROM seen)
        ORDER BY rate
        ON CONFLICT ON CONSTRAINT rate_gate_pkey DO NOTHING
        RETURNING rate
    ),
    opened AS MATERIALIZED (
        SELECT rate FROM locked JOIN seen USING (rate, turn)
        UNION ALL
        SELECT rate FROM made
    ),
    heard AS (
        DELETE FROM {schema}.rate_knock AS knock
        USING opened
        WHERE knock.rate = opened.rate
    ),
    room AS MATERIALIZED (
        SELECT opened.rate, first.rate_per, lately.first_at,
            greatest(first.rate_size - lately.starts - waiting.jobs, 0) AS size
        FROM opened
        CROSS JOIN LATERAL (
            SELECT job.rate_size, job.rate_per
            FROM {schema}.job AS job
            WHERE job.rate = opened.rate
              AND job.state = 'throttled'
            ORDER BY job.rank, job.id
            LIMIT 1
        ) AS first
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(start.starts), 0) AS starts, min(start.started_at) AS first_at
            FROM {schema}.rate_start AS start
            WHERE start.rate = opened.rate
              AND start.started_at > statement_timestamp() - first.rate_per * interval '1 second'
        ) AS lately
        CROSS JOIN LATERAL (
            SELECT count(*) AS jobs
            FROM {schema}.job AS job
            WHERE job.rate = opened.rate
              AND job.cleared
        ) AS waiting
    ),
    turned AS (
        UPDATE {schema}.rate_gate AS gate
        SET turn = gate.turn + 1, opens_at = next.opens_at
        FROM opened
        LEFT JOIN LATERAL (
            SELECT room.first_at + room.rate_per * interval '1 second' AS opens_at
            FROM room
            WHERE room.rate = opened.rate
              AND EXISTS (
                SELECT
                FROM {schema}.job AS job
                WHERE job.rate = opened.rate
                  AND job.state = 'throttled'
                ORDER BY job.rank, job.id
                OFFSET room.size
                LIMIT 1
              )
        ) AS next ON true
        WHERE gate.rate = opened.rate
        RETURNING gate.opens_at
    ),
    chosen AS MATERIALIZED (
        SELECT head.id
        FROM room
        CROSS JOIN LATERAL (
            SELECT job.id
            FROM {schema}.job AS job
            WHERE job.rate = room.rate
              AND job.state = 'throttled'
              AND {claimable}
            ORDER BY job.rank, job.id
            LIMIT room.size
            FOR UPDATE SKIP LOCKED
        ) AS head
    ),
    cleared AS (
        UPDATE {schema}.job AS job
        SET state = 'available', cleared = true
        WHERE job.id = ANY(ARRAY(SELECT id FROM chosen)) -- a join would be planned for more, over the whole table
        RETURNING job.queue, job.rank
    ),
    told AS MATERIALIZED (
        SELECT pg_notify(%(wake)s, '')
        FROM (SELECT FROM cleared LIMIT 1) AS one
    )
    SELECT
        (SELECT count(*) FROM knocks) - (SELECT count(*) FROM opened) AS left_over,
        (
            SELECT extract(epoch FROM min(opens_at) - clock_timestamp())::float8
            FROM (
                SELECT opens_at FROM turned
                UNION ALL
                SELECT statement_timestamp() FROM made
                UNION ALL
                SELECT min(gate.opens_at)
                FROM {schema}.rate_gate AS gate
                WHERE gate.opens_at > statement_timestamp()
                  AND gate.rate <> ALL(ARRAY(SELECT rate FROM opened))
            ) AS later
        ) AS opens_in,
        (SELECT jsonb_agg(jsonb_build_array(queue, extract(epoch FROM rank)::float8)) FROM cleared) AS strays,
        (SELECT count(*) FROM told)""".replace("{claimable}", CLAIMABLE)

# job_cleared. Those that have come to be paused or unknown since they were cleared give their start to others of the
# rate; their row's trigger knocks. One that is just being claimed is locked.
TAKE_BACK_STARTS: LiteralString = """
    UPDATE {schema}.job AS job
    SET state = 'throttled'
    WHERE job.id = ANY(ARRAY(
        SELECT job.id
        FROM {schema}.job AS job
        WHERE job.cleared
          AND job.state = 'available'
          AND NOT ({claimable})
        ORDER BY job.id
        LIMIT 1000
        FOR UPDATE SKIP LOCKED
    ))""".replace("{claimable}", CLAIMABLE)

# job_throttled, from one rate to the next: a knock at each gate with a line.
KNOCK_AT_RATES: LiteralString = """
    WITH RECURSIVE line AS (
        (SELECT rate FROM {schema}.job WHERE state = 'throttled' ORDER BY rate LIMIT 1)
        UNION ALL
        SELECT (
            SELECT job.rate
            FROM {schema}.job AS job
            WHERE job.state = 'throttled'
              AND job.rate > line.rate
            ORDER BY job.rate
            LIMIT 1
        )
        FROM line
        WHERE line.rate IS NOT NULL
    )
    INSERT INTO {schema}.rate_knock (rate)
    SELECT rate
    FROM line
    WHERE rate IS NOT NULL
      AND NOT EXISTS (SELECT FROM {schema}.rate_knock AS knock WHERE knock.rate = line.rate)"""

# Gates that nobody waits at, unless somebody is just opening one or has since this began; starts are counted without.
FORGET_RATES: LiteralString = """
    WITH seen AS MATERIALIZED (
        SELECT gate.rate, gate.turn
        FROM {schema}.rate_gate AS gate
        WHERE NOT EXISTS (SELECT FROM {schema}.job AS job WHERE job.rate = gate.rate AND job.state = 'throttled')
        LIMIT 1000
    ),
    locked AS MATERIALIZED (
        SELECT gate.rate, gate.turn
        FROM {schema}.rate_gate AS gate
        WHERE gate.rate = ANY(ARRAY(SELECT rate FROM seen))
        FOR UPDATE SKIP LOCKED
    )
    DELETE FROM {schema}.rate_gate AS gate
    USING seen, locked
    WHERE gate.rate = seen.rate
      AND gate.rate = locked.rate
      AND locked.turn = seen.turn"""

# rate_start_over. Starts that count no more.
FORGET_STARTS: LiteralString = """
    DELETE FROM {schema}.rate_start
    WHERE ctid = ANY(ARRAY(
        SELECT ctid
        FROM {schema}.rate_start
        WHERE counts_until < statement_timestamp()
        ORDER BY counts_until
        LIMIT 20000
        FOR UPDATE SKIP LOCKED
    ))"""

# rate_start_by_rate. Of a rate of thousands, starts that lie close together become one, at the latest of them: for a
# two hundredth of the rate's seconds fewer may start than could, never more.
MERGE_STARTS: LiteralString = """
    WITH busy AS MATERIALIZED (
        SELECT rate
        FROM {schema}.rate_start
        GROUP BY rate
        HAVING count(*) > 1000
    ),
    taken AS MATERIALIZED (
        SELECT start.ctid AS place, start.rate, start.started_at, start.starts, start.counts_until,
            extract(epoch FROM start.counts_until - start.started_at)::float8 AS per
        FROM {schema}.rate_start AS start
        JOIN busy USING (rate)
        FOR UPDATE OF start SKIP LOCKED
    ),
    gone AS (
        DELETE FROM {schema}.rate_start
        WHERE ctid = ANY(ARRAY(SELECT place FROM taken))
    )
    INSERT INTO {schema}.rate_start (rate, started_at, starts, counts_until)
    SELECT rate, max(started_at), sum(starts), max(counts_until)
    FROM taken
    GROUP BY rate, per, floor(extract(epoch FROM started_at)::float8 * 200 / per)"""
