"""Every statement that schedules run; the schema's name is filled in by `Schema.render`."""

from __future__ import annotations

from typing import LiteralString

# New schedules only. Their past is not theirs to fire: last_tick starts now. Waits for another process that inserts the
# same name and then does nothing; the conflict is on schedule_pkey.
ADD_SCHEDULE: LiteralString = """
    INSERT INTO {schema}.schedule (
        name, spec, tz, actor, missed, overlap, grace, last_tick, declared_at, confirmed_at
    )
    SELECT
        %(name)s, %(spec)s, %(tz)s, %(actor)s, %(missed)s, %(overlap)s, %(grace)s, at, at, at
    FROM coalesce(%(now)s::timestamptz, clock_timestamp()) AS at
    ON CONFLICT ON CONSTRAINT schedule_pkey DO NOTHING"""

# A statement of its own, before anything else is read: what follows then sees all that the holder before us committed.
# One statement that also looked at the jobs would use the snapshot from before the wait, and two ticks behind one held
# row would both find the schedule idle. The database's clock decides what is due; now() would be the transaction's
# start. Uses schedule_pkey.
LOCK_SCHEDULE: LiteralString = """
    SELECT
        name, spec, tz, actor, missed, overlap, grace, last_tick, job_ids, paused_at, confirmed_at,
        coalesce(%(now)s::timestamptz, clock_timestamp()) AS now
    FROM {schema}.schedule
    WHERE name = %(name)s
    FOR UPDATE"""

# Without locks, since most looks find nothing to do. Uses schedule_pkey.
LOOK_AT_SCHEDULES: LiteralString = """
    SELECT
        name, spec, tz, actor, missed, overlap, grace, last_tick, job_ids, paused_at, confirmed_at,
        coalesce(%(now)s::timestamptz, clock_timestamp()) AS now
    FROM {schema}.schedule
    WHERE name = ANY(%(names)s::text[])"""

# The newest declaration wins. Uses schedule_pkey; the row is locked.
REDECLARE_SCHEDULE: LiteralString = """
    UPDATE {schema}.schedule
    SET spec = %(spec)s,
        tz = %(tz)s,
        actor = %(actor)s,
        missed = %(missed)s,
        overlap = %(overlap)s,
        grace = %(grace)s,
        last_tick = greatest(last_tick, %(last_tick)s),
        declared_at = %(now)s,
        confirmed_at = %(now)s
    WHERE name = %(name)s"""

# Says "these terms are alive". SKIP LOCKED: whoever holds the row is busy with it and says so as well; it also keeps
# two processes that confirm many rows from waiting for each other in a circle. Uses schedule_pkey.
CONFIRM_SCHEDULES: LiteralString = """
    WITH mine AS (
        SELECT name
        FROM {schema}.schedule
        WHERE name = ANY(%(names)s::text[])
          AND confirmed_at < %(now)s::timestamptz - %(age)s * interval '1 second'
        FOR UPDATE SKIP LOCKED
    )
    UPDATE {schema}.schedule
    SET confirmed_at = %(now)s
    FROM mine
    WHERE schedule.name = mine.name"""

# After LOCK_SCHEDULE: which of its jobs live (a finished or dead one has no row in job), and which ticks somebody
# decided although last_tick does not say so. Uses job_pkey and tick_once.
FIND_DECIDED: LiteralString = """
    SELECT
        ARRAY(
            SELECT id
            FROM {schema}.job
            WHERE id = ANY(%(job_ids)s::uuid[])
        ) AS live,
        ARRAY(
            SELECT tick
            FROM {schema}.tick
            WHERE schedule = %(name)s
              AND tick = ANY(%(ticks)s::timestamptz[])
        ) AS decided"""

# No ON CONFLICT: what FIND_DECIDED saw is left out already, so a conflict on tick_once is a writer without the lock,
# and then this transaction, the job it enqueued included, must not commit.
RECORD_TICK: LiteralString = """
    INSERT INTO {schema}.tick (schedule, tick, outcome, lateness, reason, coalesced_into, until, job_id)
    VALUES (
        %(schedule)s, %(tick)s, %(outcome)s, %(lateness)s, %(reason)s, %(coalesced_into)s, %(until)s, %(job_id)s
    )"""

# Uses schedule_pkey; the row is locked.
ADVANCE_SCHEDULE: LiteralString = """
    UPDATE {schema}.schedule
    SET last_tick = %(last_tick)s,
        job_ids = %(job_ids)s::uuid[],
        confirmed_at = greatest(confirmed_at, %(now)s)
    WHERE name = %(name)s"""

# A second pause keeps the time of the first. Uses schedule_pkey.
PAUSE_SCHEDULE: LiteralString = """
    UPDATE {schema}.schedule
    SET paused_at = coalesce(paused_at, %(now)s::timestamptz, clock_timestamp())
    WHERE name = %(name)s"""

# Ticks of the pause stay skipped, also those that no process was there to record. Uses schedule_pkey.
RESUME_SCHEDULE: LiteralString = """
    UPDATE {schema}.schedule
    SET last_tick = greatest(last_tick, coalesce(%(now)s::timestamptz, clock_timestamp())),
        paused_at = NULL
    WHERE name = %(name)s
      AND paused_at IS NOT NULL"""
