-- serves: 1
-- What only some sends have: a unique key, tags; and defaults, so that a plain INSERT is enough to send a job.

-- Who holds a key. A job that is settled, dead or cancelled holds none, because its row is gone: nobody has to give a
-- key back, and jobs without one never come here.
CREATE TABLE {schema}.job_key (
    actor      text        NOT NULL,
    key        text        NOT NULL,
    job_id     uuid        NOT NULL,
    scope      text        NOT NULL, -- held while its job is 'queued'; while queued or 'running'; or for a 'window'
    expires_at timestamptz,          -- the window's end
    taken_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT job_key_once PRIMARY KEY (actor, key),
    CONSTRAINT job_key_scope_is_known CHECK (scope IN ('queued', 'running', 'window')),
    CONSTRAINT job_key_window_ends CHECK ((scope = 'window') = (expires_at IS NOT NULL)),
    CONSTRAINT job_key_is_short CHECK (length(key) BETWEEN 1 AND 500)
);
CREATE INDEX job_key_by_age ON {schema}.job_key (taken_at);

-- Beside the jobs rather than on them, so that a tag finds its jobs whatever became of them.
CREATE TABLE {schema}.job_tag (
    tag       text        NOT NULL,
    job_id    uuid        NOT NULL,
    tagged_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT job_tag_once PRIMARY KEY (tag, job_id),
    CONSTRAINT job_tag_is_short CHECK (length(tag) BETWEEN 1 AND 100)
);
CREATE INDEX job_tag_of_job ON {schema}.job_tag (job_id);
CREATE INDEX job_tag_by_age ON {schema}.job_tag (tagged_at);

-- Arguments without names, as only a hand can have written them: no run could be given them, and one will say so.
UPDATE {schema}.job
SET args = jsonb_build_object('without_names', args)
WHERE jsonb_typeof(args) <> 'object';

-- The id is a UUIDv7 (RFC 9562, section 5.7), as those made in Python: the time over a random one, its version set.
ALTER TABLE {schema}.job
    ALTER COLUMN id SET DEFAULT encode(
        set_bit(set_bit(overlay(
            uuid_send(gen_random_uuid())
            PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6
        ), 52, 1), 53, 1), 'hex')::uuid,
    ALTER COLUMN queue SET DEFAULT 'default',
    ALTER COLUMN state SET DEFAULT 'available',
    ALTER COLUMN due_at SET DEFAULT clock_timestamp(),
    ALTER COLUMN rank SET DEFAULT clock_timestamp(),
    ALTER COLUMN enqueued_at SET DEFAULT clock_timestamp(),
    ALTER COLUMN args SET DEFAULT '{{}}',
    -- Not of the rows that are there: looking at them would keep everybody out for as long as it takes.
    ADD CONSTRAINT job_args_are_named CHECK (jsonb_typeof(args) = 'object') NOT VALID;
