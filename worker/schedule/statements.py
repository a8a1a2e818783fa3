"""Every statement that schedules run; the schema's name is filled in by `Schema.render`."""

from __future__ import annotations

from typing import LiteralString

# New schedules only. Their past is not theirs to fire: last_tick starts now. Waits for another process that inserts the
# same name and then does nothing; the conflict is on schedule_pkey.
ADD_SCHEDULE: LiteralString = """
    INSERT INTO {schema}.schedule (
        name, spec, tz, actor, missed, overlap, grace, jitter, args, source, module, revision,
        last_tick, declared_at, confirmed_at
    )
    SELECT
        %(name)s, %(spec)s, %(tz)s, %(actor)s, %(missed)s, %(overlap)s, %(grace)s, %(jitter)s, %(args)s, %(source)s,
        %(module)s, CASE WHEN %(source)s = 'database' THEN nextval('{schema}.schedule_revision') ELSE 0 END,
        at, at, at
    FROM coalesce(%(now)s::timestamptz, clock_timestamp()) AS at
    ON CONFLICT ON CONSTRAINT schedule_pkey DO NOTHING"""

# A statement of its own, before anything else is read: what follows then sees all that the holders before us committed.
# One statement that also looked at the jobs would use the snapshot from before a wait, and two ticks behind one held
# row would both find the schedule idle. SKIP LOCKED: who holds a row decides the same ticks, and our connection has
# heartbeats to send meanwhile. The database's clock decides what is due; now() would be the transaction's start. Uses
# schedule_pkey.
LOCK_SCHEDULES: LiteralString = """
    SELECT
        name, spec, tz, actor, missed, overlap, grace, jitter, args, source, module, last_tick, job_ids, paused_at,
        disabled_at, declared_at, confirmed_at, coalesce(%(now)s::timestamptz, clock_timestamp()) AS now
    FROM {schema}.schedule
    WHERE name = ANY(%(names)s::text[])
    FOR UPDATE SKIP LOCKED"""

# For people, who would rather wait a moment. Uses schedule_pkey.
WAIT_FOR_SCHEDULE: LiteralString = """
    SELECT
        name, spec, tz, actor, missed, overlap, grace, jitter, args, source, module, last_tick, job_ids, paused_at,
        disabled_at, declared_at, confirmed_at, coalesce(%(now)s::timestamptz, clock_timestamp()) AS now
    FROM {schema}.schedule
    WHERE name = %(name)s
    FOR UPDATE"""

# Those that some modules declared and do not declare any more: by the module's name or a package's above it.
LOCK_VANISHED: LiteralString = """
    SELECT
        name, spec, tz, actor, missed, overlap, grace, jitter, args, source, module, last_tick, job_ids, paused_at,
        disabled_at, declared_at, confirmed_at, coalesce(%(now)s::timestamptz, clock_timestamp()) AS now
    FROM {schema}.schedule
    WHERE source = 'code'
      AND disabled_at IS NULL
      AND name <> ALL(%(names)s::text[])
      AND EXISTS (
          SELECT FROM unnest(%(modules)s::text[]) AS loaded(name)
          WHERE schedule.module = loaded.name OR starts_with(schedule.module, loaded.name || '.')
      )
    ORDER BY name
    FOR UPDATE SKIP LOCKED"""

# For people, who ask about one. Uses schedule_pkey.
LOOK_AT_SCHEDULES: LiteralString = """
    SELECT
        name, spec, tz, actor, missed, overlap, grace, jitter, args, source, module, last_tick, job_ids, paused_at,
        disabled_at, declared_at, confirmed_at, coalesce(%(now)s::timestamptz, clock_timestamp()) AS now
    FROM {schema}.schedule
    WHERE name = ANY(%(names)s::text[])"""

# The heartbeat, in one statement because it is nearly all that schedules cost while nothing ticks. It says "these terms
# are alive" of those that were ours the last time and are still the same, and "they are gone indeed" of disabled ones
# of our modules, so that who still declares them cannot revive them; and it reads all of ours, and whether one of those
# in the database was added, changed or removed. SKIP LOCKED: whoever holds a row is busy with it and says so as well;
# it also keeps two processes that confirm many rows from waiting for each other in a circle. Uses schedule_in_database;
# the others are few enough to be read through.
SURVEY_SCHEDULES: LiteralString = """
    WITH mine AS (
        SELECT name
        FROM {schema}.schedule
        WHERE confirmed_at < coalesce(%(now)s::timestamptz, clock_timestamp()) - %(age)s * interval '1 second'
          AND (
            EXISTS (
                SELECT
                FROM unnest(%(known)s::text[], %(declared)s::timestamptz[]) AS known(name, declared_at)
                WHERE known.name = schedule.name AND known.declared_at = schedule.declared_at
            )
            OR disabled_at IS NOT NULL
              AND name <> ALL(%(names)s::text[])
              AND EXISTS (
                SELECT
                FROM unnest(%(modules)s::text[]) AS loaded(name)
                WHERE schedule.module = loaded.name OR starts_with(schedule.module, loaded.name || '.')
              )
          )
        FOR UPDATE SKIP LOCKED
    ),
    confirmed AS (
        UPDATE {schema}.schedule
        SET confirmed_at = coalesce(%(now)s::timestamptz, clock_timestamp())
        FROM mine
        WHERE schedule.name = mine.name
    )
    SELECT
        in_database.count, in_database.revisions,
        name, spec, tz, actor, missed, overlap, grace, jitter, args, source, module, last_tick, job_ids, paused_at,
        disabled_at, declared_at, confirmed_at, coalesce(%(now)s::timestamptz, clock_timestamp()) AS now
    FROM (
        SELECT count(*) AS count, coalesce(sum(revision), 0)::bigint AS revisions
        FROM {schema}.schedule
        WHERE source = 'database'
    ) AS in_database
    LEFT JOIN {schema}.schedule ON name = ANY(%(names)s::text[])"""

# Those that people made. Uses schedule_in_database.
LOOK_AT_DATABASE: LiteralString = """
    SELECT
        name, spec, tz, actor, missed, overlap, grace, jitter, args, source, module, last_tick, job_ids, paused_at,
        disabled_at, declared_at, confirmed_at, clock_timestamp() AS now
    FROM {schema}.schedule
    WHERE source = 'database'
    ORDER BY name"""

# Whether one of those was added, changed or removed since the last time: both numbers together tell. Uses
# schedule_in_database.
GET_REVISION: LiteralString = """
    SELECT count(*), coalesce(sum(revision), 0)::bigint
    FROM {schema}.schedule
    WHERE source = 'database'"""

# The newest declaration wins. Uses schedule_pkey; the row is locked.
REDECLARE_SCHEDULE: LiteralString = """
    UPDATE {schema}.schedule
    SET spec = %(spec)s,
        tz = %(tz)s,
        actor = %(actor)s,
        missed = %(missed)s,
        overlap = %(overlap)s,
        grace = %(grace)s,
        jitter = %(jitter)s,
        args = %(args)s,
        source = %(source)s,
        module = %(module)s,
        revision = CASE WHEN %(source)s = 'database' THEN nextval('{schema}.schedule_revision') ELSE 0 END,
        last_tick = greatest(last_tick, %(last_tick)s),
        disabled_at = NULL,
        declared_at = %(now)s,
        confirmed_at = %(now)s
    WHERE name = %(name)s"""

# "These terms are alive", of one that was just declared. Uses schedule_pkey; the row is locked.
CONFIRM_SCHEDULE: LiteralString = """
    UPDATE {schema}.schedule
    SET confirmed_at = greatest(confirmed_at, %(now)s)
    WHERE name = %(name)s"""

# Uses schedule_pkey; the row is locked.
DISABLE_SCHEDULE: LiteralString = """
    UPDATE {schema}.schedule
    SET disabled_at = %(now)s,
        confirmed_at = %(now)s,
        last_tick = greatest(last_tick, %(now)s)
    WHERE name = %(name)s"""

# Uses schedule_pkey; the row is locked. Its ticks stay.
REMOVE_SCHEDULE: LiteralString = "DELETE FROM {schema}.schedule WHERE name = %(name)s"

# After LOCK_SCHEDULES: which of their jobs live (a finished or dead one has no row in job), and which ticks, by their
# places from 1 on, somebody decided although last_tick does not say so. Uses job_pkey and tick_once.
FIND_DECIDED: LiteralString = """
    SELECT
        ARRAY(
            SELECT id
            FROM {schema}.job
            WHERE id = ANY(%(job_ids)s::uuid[])
        ) AS live,
        ARRAY(
            SELECT due.place
            FROM unnest(%(schedules)s::text[], %(ticks)s::timestamptz[]) WITH ORDINALITY AS due(schedule, tick, place)
            JOIN {schema}.tick ON tick.schedule = due.schedule AND tick.tick = due.tick
        ) AS decided"""

# No ON CONFLICT: what FIND_DECIDED saw is left out already, so a conflict on tick_once is a writer without the lock,
# and then this transaction, the jobs it enqueued included, must not commit. decided_at is the look's own time.
RECORD_TICKS: LiteralString = """
    INSERT INTO {schema}.tick (
        schedule, tick, outcome, lateness, reason, coalesced_into, until, job_id, manual, decided_at
    )
    SELECT t.schedule, t.tick, t.outcome, t.lateness, t.reason, t.coalesced_into, t.until, t.job_id, t.manual, t.now
    FROM unnest(
        %(schedule)s::text[], %(tick)s::timestamptz[], %(outcome)s::text[], %(lateness)s::float8[], %(reason)s::text[],
        %(coalesced_into)s::timestamptz[], %(until)s::timestamptz[], %(job_id)s::uuid[], %(manual)s::bool[],
        %(now)s::timestamptz[]
    ) AS t(schedule, tick, outcome, lateness, reason, coalesced_into, until, job_id, manual, now)"""

# Lists of jobs as text, because lists of different lengths make no array. Uses schedule_pkey; the rows are locked.
ADVANCE_SCHEDULES: LiteralString = """
    UPDATE {schema}.schedule
    SET last_tick = greatest(schedule.last_tick, m.last_tick),
        job_ids = m.job_ids::uuid[],
        confirmed_at = greatest(confirmed_at, m.now)
    FROM unnest(
        %(names)s::text[], %(last_ticks)s::timestamptz[], %(job_ids)s::text[], %(nows)s::timestamptz[]
    ) AS m(name, last_tick, job_ids, now)
    WHERE schedule.name = m.name"""

# A second pause keeps the time of the first. Uses schedule_pkey.
PAUSE_SCHEDULE: LiteralString = """
    UPDATE {schema}.schedule
    SET paused_at = coalesce(paused_at, %(now)s::timestamptz, clock_timestamp())
    WHERE name = %(name)s"""

# Ticks of the pause stay skipped; the row is locked. Uses schedule_pkey.
RESUME_SCHEDULE: LiteralString = """
    UPDATE {schema}.schedule
    SET last_tick = greatest(last_tick, %(now)s),
        paused_at = NULL
    WHERE name = %(name)s"""

# Old rows of the ledger, a few at a time so that nobody waits for it. Uses tick_decided_at.
FORGET_TICKS: LiteralString = """
    DELETE FROM {schema}.tick
    WHERE (schedule, tick) IN (
        SELECT schedule, tick
        FROM {schema}.tick
        WHERE decided_at < coalesce(%(now)s::timestamptz, now()) - %(keep)s * interval '1 second'
        ORDER BY decided_at
        LIMIT %(limit)s
        FOR UPDATE SKIP LOCKED
    )"""

# For people: each with the newest row of its ledger. Uses tick_once.
LIST_SCHEDULES: LiteralString = """
    SELECT
        schedule.name, spec, tz, actor, missed, overlap, grace, jitter, args, source, module, last_tick, job_ids,
        paused_at, disabled_at, declared_at, confirmed_at, clock_timestamp() AS now,
        newest.tick AS newest_tick, newest.outcome AS newest_outcome, newest.reason AS newest_reason
    FROM {schema}.schedule
    LEFT JOIN LATERAL (
        SELECT tick.tick, tick.outcome, tick.reason
        FROM {schema}.tick
        WHERE tick.schedule = schedule.name
        ORDER BY tick.tick DESC
        LIMIT 1
    ) AS newest ON true
    ORDER BY schedule.name"""

# What the ledger says of a moment, or last said before it. Uses tick_once.
FIND_TICK: LiteralString = """
    SELECT tick, outcome, lateness, reason, coalesced_into, until, job_id, manual
    FROM {schema}.tick
    WHERE schedule = %(name)s
      AND tick <= %(at)s
    ORDER BY tick DESC
    LIMIT 1"""


# After every change of a schedule in the database, as those who look at them only now and then must hear of it.
NOTIFY_SCHEDULES: LiteralString = "SELECT pg_notify(%(channel)s, '')"
