-- serves: 1
-- Schedules that people make in the database, arguments and jitter, runs by hand, and what became of removed ones.

ALTER TABLE {schema}.schedule
    ADD COLUMN jitter      double precision NOT NULL DEFAULT 0, -- the job is due up to so many seconds after the tick
    ADD COLUMN args        jsonb            DEFAULT '[]', -- by name or in order; NULL when code computes them
    ADD COLUMN source      text             NOT NULL DEFAULT 'code', -- who owns its terms
    ADD COLUMN module      text,            -- the Python module that declares it
    ADD COLUMN disabled_at timestamptz,     -- when its module was loaded and did not declare it any more
    ADD COLUMN revision    bigint           NOT NULL DEFAULT 0, -- of those in the database: raised by every change
    ADD CONSTRAINT schedule_source_is_known CHECK (source IN ('code', 'database')),
    ADD CONSTRAINT schedule_jitter_is_not_negative CHECK (jitter >= 0),
    ADD CONSTRAINT schedule_only_code_computes_args CHECK (args IS NOT NULL OR source = 'code');

-- One for all schedules: so the sum of the revisions only ever grows while their number stays the same, and the two
-- together tell whether anything has changed.
CREATE SEQUENCE {schema}.schedule_revision;

-- Workers ask for the revisions each second.
CREATE INDEX schedule_in_database ON {schema}.schedule (revision)
    WHERE source = 'database';

ALTER TABLE {schema}.tick
    ADD COLUMN manual boolean NOT NULL DEFAULT false, -- somebody asked for it: `tick` is when
    DROP CONSTRAINT tick_reason_is_known,
    ADD CONSTRAINT tick_reason_is_known
        CHECK (reason IN ('grace', 'missed', 'overlap', 'paused', 'changed', 'removed'));

-- For the ledger's own retention.
CREATE INDEX tick_decided_at ON {schema}.tick (decided_at);
