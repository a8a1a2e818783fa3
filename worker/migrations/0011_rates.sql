-- serves: 1
-- Rates: jobs of which only so many start within some seconds. An older worker goes on beside newer ones: it starts a job
-- with a rate only when a newer one has cleared it.

-- Starts that still count.
CREATE TABLE {schema}.rate_start (
    rate         text        NOT NULL,
    started_at   timestamptz NOT NULL,
    starts       integer     NOT NULL DEFAULT 1,
    counts_until timestamptz NOT NULL
);
CREATE INDEX rate_start_by_rate ON {schema}.rate_start (rate, started_at);
CREATE INDEX rate_start_over ON {schema}.rate_start (counts_until);

-- Without a default that must be written, none of these rewrites the table.
ALTER TABLE {schema}.job
    ADD COLUMN rate       text,             -- what its starts are counted in; NULL without one
    ADD COLUMN rate_size  integer,          -- how many of the rate may start ...
    ADD COLUMN rate_per   double precision, -- ... within so many seconds
    ADD COLUMN rate_first boolean NOT NULL DEFAULT false, -- it is cleared before it gets a place in its lane, not after
    ADD COLUMN cleared    boolean NOT NULL DEFAULT false, -- it may start, and counts as if it had
    DROP CONSTRAINT job_state_is_known,
    ADD CONSTRAINT job_state_is_known CHECK (
        state IN ('scheduled', 'held', 'throttled', 'available', 'running')
    ) NOT VALID,
    ADD CONSTRAINT job_rate_has_size CHECK (rate IS NULL OR rate_size >= 1 AND rate_per > 0) NOT VALID;

CREATE INDEX job_throttled ON {schema}.job (rate, rank, id)
    WHERE state = 'throttled';
CREATE INDEX job_cleared ON {schema}.job (rate)
    WHERE cleared;

-- What gates and knocks are to lanes; apart from those, so that an older worker does not hear the knocks.
CREATE TABLE {schema}.rate_gate (
    rate     text   NOT NULL,
    turn     bigint NOT NULL DEFAULT 0, -- raised each time it is opened
    opens_at timestamptz,               -- when the next of its line may start; NULL when nobody waits for the time
    CONSTRAINT rate_gate_pkey PRIMARY KEY (rate)
) WITH (fillfactor = 50);
CREATE INDEX rate_gate_opens ON {schema}.rate_gate (opens_at)
    WHERE opens_at IS NOT NULL;

CREATE TABLE {schema}.rate_knock (
    rate text NOT NULL
);
CREATE INDEX rate_knock_by_rate ON {schema}.rate_knock (rate);

-- As before, and for rates. Being cleared is good for one start: who comes back waits for the next.
CREATE OR REPLACE FUNCTION {schema}.keep_lane() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        NEW.lane := NEW.options #>> '{{lane,name}}';
        NEW.lane_size := NEW.options #>> '{{lane,size}}';
        NEW.in_order := coalesce((NEW.options #>> '{{lane,in_order}}')::boolean, false);
        NEW.admitted := false;
        NEW.rate := NEW.options #>> '{{lane,rate,name}}';
        NEW.rate_size := NEW.options #>> '{{lane,rate,size}}';
        NEW.rate_per := NEW.options #>> '{{lane,rate,per}}';
        NEW.rate_first := coalesce((NEW.options #>> '{{lane,rate,first}}')::boolean, false);
        NEW.cleared := false;
    END IF;
    IF NEW.state IN ('held', 'throttled') THEN
        NEW.admitted := false;
        NEW.cleared := false;
        NEW.state := 'available';
    ELSIF NEW.state = 'scheduled' AND NOT NEW.in_order THEN
        NEW.admitted := false;
    END IF;
    IF NEW.state <> 'available' THEN
        NEW.cleared := false;
    ELSIF NEW.rate_first AND NOT NEW.cleared AND NEW.rate IS NOT NULL THEN
        NEW.admitted := false;
        NEW.state := 'throttled';
    ELSIF NEW.lane IS NOT NULL AND NOT NEW.admitted THEN
        NEW.cleared := NEW.cleared AND NEW.rate_first;
        NEW.state := 'held';
    ELSIF NEW.rate IS NOT NULL THEN
        IF NOT NEW.cleared THEN
            NEW.state := 'throttled';
        END IF;
        NEW.ahead := true; -- claimed ahead and given back it would have been counted
    END IF;
    RETURN NEW;
END
$$;

CREATE OR REPLACE FUNCTION {schema}.knock_at_lane() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.state = 'held' THEN
            INSERT INTO {schema}.knock (lane) VALUES (NEW.lane);
        ELSE
            INSERT INTO {schema}.rate_knock (rate) VALUES (NEW.rate);
        END IF;
    ELSIF TG_OP = 'DELETE' THEN
        IF OLD.lane IS NOT NULL THEN
            INSERT INTO {schema}.knock (lane) VALUES (OLD.lane);
        END IF;
        IF OLD.cleared THEN
            INSERT INTO {schema}.rate_knock (rate) VALUES (OLD.rate);
        END IF;
    ELSE
        IF NEW.lane IS NOT NULL AND (NEW.state = 'held' OR OLD.admitted AND NOT NEW.admitted) THEN
            INSERT INTO {schema}.knock (lane) VALUES (OLD.lane);
        END IF;
        IF NEW.state = 'throttled' OR OLD.cleared AND NOT NEW.cleared THEN
            INSERT INTO {schema}.rate_knock (rate) VALUES (NEW.rate);
        END IF;
        IF NEW.state = 'running' AND OLD.cleared THEN
            INSERT INTO {schema}.rate_start (rate, started_at, counts_until)
            VALUES (NEW.rate, NEW.claimed_at, NEW.claimed_at + NEW.rate_per * interval '1 second');
        END IF;
    END IF;
    RETURN NULL;
END
$$;

DROP TRIGGER job_keeps_lane ON {schema}.job;
DROP TRIGGER job_came_to_lane ON {schema}.job;
DROP TRIGGER job_came_back_to_lane ON {schema}.job;
DROP TRIGGER job_left_lane ON {schema}.job;

CREATE TRIGGER job_keeps_lane BEFORE UPDATE OF state ON {schema}.job
    FOR EACH ROW WHEN (NEW.lane IS NOT NULL OR NEW.rate IS NOT NULL) EXECUTE FUNCTION {schema}.keep_lane();
CREATE TRIGGER job_came_to_lane AFTER INSERT ON {schema}.job
    FOR EACH ROW WHEN (
        NEW.lane IS NOT NULL AND NEW.state = 'held' OR NEW.rate IS NOT NULL AND NEW.state = 'throttled'
    )
    EXECUTE FUNCTION {schema}.knock_at_lane();
CREATE TRIGGER job_came_back_to_lane AFTER UPDATE OF state ON {schema}.job
    FOR EACH ROW WHEN (
        NEW.lane IS NOT NULL AND (NEW.state = 'held' OR OLD.admitted AND NOT NEW.admitted)
        OR NEW.rate IS NOT NULL AND (NEW.state = 'throttled' OR OLD.cleared AND NOT NEW.cleared)
    )
    EXECUTE FUNCTION {schema}.knock_at_lane();
CREATE TRIGGER job_left_lane AFTER DELETE ON {schema}.job
    FOR EACH ROW WHEN (OLD.lane IS NOT NULL OR OLD.cleared) EXECUTE FUNCTION {schema}.knock_at_lane();
