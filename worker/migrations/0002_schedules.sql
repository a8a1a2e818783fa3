-- serves: 1
-- Schedules as their newest deploy declared them, and the ledger: what became of every tick.

-- One row per schedule, locked while its ticks are decided: that lock is why no process has to lead the others.
CREATE TABLE {schema}.schedule (
    name         text             NOT NULL,
    spec         text             NOT NULL, -- as written: '0 3 * * *' or 'every 2 seconds'
    tz           text             NOT NULL, -- the zone whose wall clock the spec means
    actor        text             NOT NULL,
    missed       text             NOT NULL,
    overlap      text             NOT NULL,
    grace        double precision NOT NULL, -- seconds a missed tick stays worth firing
    last_tick    timestamptz      NOT NULL, -- every tick up to here is decided
    job_ids      uuid[]           NOT NULL DEFAULT '{{}}', -- jobs it sent that lived when it last looked, oldest first
    paused_at    timestamptz,               -- NULL while it fires
    declared_at  timestamptz      NOT NULL, -- when its terms last changed
    confirmed_at timestamptz      NOT NULL, -- when a process with these terms was last seen
    CONSTRAINT schedule_pkey PRIMARY KEY (name),
    CONSTRAINT schedule_missed_is_known CHECK (missed IN ('skip', 'last', 'all')),
    CONSTRAINT schedule_overlap_is_known CHECK (overlap IN ('allow', 'skip', 'queue_one')),
    CONSTRAINT schedule_grace_is_not_negative CHECK (grace >= 0)
);

-- Append-only; it outlives the schedules that it tells about, hence no foreign key.
CREATE TABLE {schema}.tick (
    schedule       text             NOT NULL,
    tick           timestamptz      NOT NULL,
    outcome        text             NOT NULL,
    lateness       double precision NOT NULL, -- seconds from the tick to its decision, database clock
    reason         text,
    coalesced_into timestamptz,               -- the later tick that made up for this one
    until          timestamptz,               -- when set, this row stands for all ticks from its own to before here
    job_id         uuid,
    decided_at     timestamptz      NOT NULL DEFAULT clock_timestamp(),
    -- A schedule fires once per tick across all processes because this says so; the row lock only keeps it polite.
    CONSTRAINT tick_once PRIMARY KEY (schedule, tick),
    CONSTRAINT tick_outcome_is_known CHECK (outcome IN ('fired', 'late', 'coalesced', 'skipped')),
    CONSTRAINT tick_reason_is_known CHECK (reason IN ('grace', 'missed', 'overlap', 'paused')),
    CONSTRAINT tick_skipped_says_why CHECK ((outcome = 'skipped') = (reason IS NOT NULL)),
    CONSTRAINT tick_fired_has_job CHECK ((outcome IN ('fired', 'late')) = (job_id IS NOT NULL)),
    CONSTRAINT tick_coalesced_says_where CHECK ((outcome = 'coalesced') = (coalesced_into IS NOT NULL)),
    CONSTRAINT tick_coalesced_into_later CHECK (coalesced_into > tick),
    CONSTRAINT tick_stands_for_later CHECK (until > tick),
    CONSTRAINT tick_never_early CHECK (lateness >= 0)
);
