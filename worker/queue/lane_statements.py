"""The SQL of lanes: jobs with a limit wait, held, until their lane has room, and only then can be claimed."""

from __future__ import annotations

from typing import LiteralString

# knock_by_lane, gate_pkey, job_held and job_admitted: of each lane that was knocked at, its jobs inside and as many of
# its line as it has room for, however long that is. Who opens a gate raises its turn; one whose turn is not as it was
# when this statement began was opened by somebody whose admissions it does not see, and is left for the next look.
# Nothing here waits for a lock.
ADMIT_JOBS: LiteralString = """
    WITH knocks AS MATERIALIZED (
        SELECT DISTINCT lane
        FROM (SELECT lane FROM {schema}.knock ORDER BY lane LIMIT 1000) AS marks
    ),
    seen AS MATERIALIZED (
        SELECT gate.lane, gate.turn
        FROM knocks
        JOIN {schema}.gate AS gate ON gate.lane = knocks.lane
    ),
    locked AS MATERIALIZED (
        SELECT gate.lane, gate.turn
        FROM {schema}.gate AS gate
        WHERE gate.lane = ANY(ARRAY(SELECT lane FROM knocks))
        FOR UPDATE SKIP LOCKED
    ),
    made AS (
        INSERT INTO {schema}.gate (lane)
        SELECT lane FROM knocks
        WHERE lane NOT IN (SELECT lane FROM seen)
        ORDER BY lane
        ON CONFLICT ON CONSTRAINT gate_pkey DO NOTHING
        RETURNING lane
    ),
    opened AS MATERIALIZED (
        SELECT lane FROM locked JOIN seen USING (lane, turn)
        UNION ALL
        SELECT lane FROM made
    ),
    turned AS (
        UPDATE {schema}.gate AS gate
        SET turn = gate.turn + 1
        FROM opened
        WHERE gate.lane = opened.lane
    ),
    heard AS (
        DELETE FROM {schema}.knock AS knock
        USING opened
        WHERE knock.lane = opened.lane
    ),
    chosen AS MATERIALIZED (
        SELECT head.id
        FROM opened
        CROSS JOIN LATERAL (
            SELECT job.id, job.lane_size, job.in_order
            FROM {schema}.job AS job
            WHERE job.lane = opened.lane
              AND job.state = 'held'
            ORDER BY job.rank, job.id
            LIMIT 1
        ) AS first
        CROSS JOIN LATERAL (
            SELECT count(*) AS taken
            FROM {schema}.job AS job
            WHERE job.lane = opened.lane
              AND job.admitted
        ) AS places
        CROSS JOIN LATERAL (
            SELECT job.id
            FROM {schema}.job AS job
            WHERE job.lane = opened.lane
              AND job.state = 'held'
            ORDER BY job.rank, job.id
            LIMIT greatest(first.lane_size - places.taken, 0)
            FOR UPDATE SKIP LOCKED
        ) AS head
        WHERE head.id = first.id
           OR NOT first.in_order
    ),
    admitted AS (
        UPDATE {schema}.job AS job
        SET state = 'available', admitted = true
        WHERE job.id = ANY(ARRAY(SELECT id FROM chosen)) -- a join would be planned for more, over the whole table
        RETURNING job.queue, job.rank
    ),
    told AS MATERIALIZED (
        SELECT pg_notify(%(wake)s, '')
        FROM (SELECT FROM admitted LIMIT 1) AS one
    )
    SELECT
        (SELECT count(*) FROM knocks) - (SELECT count(*) FROM opened) AS left_over,
        (SELECT jsonb_agg(jsonb_build_array(queue, extract(epoch FROM rank)::float8)) FROM admitted) AS strays,
        (SELECT count(*) FROM told)"""

# job_held, from one lane to the next: a knock at each gate with a line.
KNOCK_AT_LINES: LiteralString = """
    WITH RECURSIVE line AS (
        (SELECT lane FROM {schema}.job WHERE state = 'held' ORDER BY lane LIMIT 1)
        UNION ALL
        SELECT (
            SELECT job.lane
            FROM {schema}.job AS job
            WHERE job.state = 'held'
              AND job.lane > line.lane
            ORDER BY job.lane
            LIMIT 1
        )
        FROM line
        WHERE line.lane IS NOT NULL
    )
    INSERT INTO {schema}.knock (lane)
    SELECT lane
    FROM line
    WHERE lane IS NOT NULL
      AND NOT EXISTS (SELECT FROM {schema}.knock AS knock WHERE knock.lane = line.lane)"""

# Gates that nobody waits at or has passed, unless somebody is just opening one or has since this began.
FORGET_GATES: LiteralString = """
    WITH seen AS MATERIALIZED (
        SELECT gate.lane, gate.turn
        FROM {schema}.gate AS gate
        WHERE NOT EXISTS (SELECT FROM {schema}.job AS job WHERE job.lane = gate.lane AND job.state = 'held')
          AND NOT EXISTS (SELECT FROM {schema}.job AS job WHERE job.lane = gate.lane AND job.admitted)
        LIMIT 1000
    ),
    locked AS MATERIALIZED (
        SELECT gate.lane, gate.turn
        FROM {schema}.gate AS gate
        WHERE gate.lane = ANY(ARRAY(SELECT lane FROM seen))
        FOR UPDATE SKIP LOCKED
    )
    DELETE FROM {schema}.gate AS gate
    USING seen, locked
    WHERE gate.lane = seen.lane
      AND gate.lane = locked.lane
      AND locked.turn = seen.turn"""
