-- serves: 1
-- What people have paused, which actors each worker knows, and lanes: jobs of which only so many run at once. An older
-- worker goes on beside newer ones: it does not know of pauses and does not say what it knows, and it claims a job with
-- a limit only when a newer one has let it in.

CREATE TABLE {schema}.pause (
    kind      text        NOT NULL,
    name      text        NOT NULL, -- of a queue, or of an actor
    paused_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT pause_once PRIMARY KEY (kind, name),
    CONSTRAINT pause_kind_is_known CHECK (kind IN ('queue', 'actor'))
);

ALTER TABLE {schema}.worker
    ADD COLUMN actors text[]; -- those it knows; NULL when it does not say

-- Without a default that must be written, none of these rewrites the table.
ALTER TABLE {schema}.job
    ADD COLUMN lane      text,    -- what its limit is counted in; NULL without one
    ADD COLUMN lane_size integer, -- how many of the lane may be inside at once
    ADD COLUMN in_order  boolean NOT NULL DEFAULT false, -- it keeps its place until it has settled for good
    ADD COLUMN admitted  boolean NOT NULL DEFAULT false, -- it has a place: it can be claimed, runs, or is to be retried
    DROP CONSTRAINT job_state_is_known,
    ADD CONSTRAINT job_state_is_known CHECK (state IN ('scheduled', 'held', 'available', 'running')) NOT VALID,
    ADD CONSTRAINT job_lane_has_size CHECK (
        CASE WHEN lane IS NULL THEN lane_size IS NULL AND NOT admitted ELSE lane_size >= 1 END
    ) NOT VALID;

CREATE INDEX job_held ON {schema}.job (lane, rank, id)
    WHERE state = 'held';
CREATE INDEX job_admitted ON {schema}.job (lane)
    WHERE admitted;

-- One for each lane in use; locked by who lets jobs in, so that two cannot give away the same place.
CREATE TABLE {schema}.gate (
    lane text   NOT NULL,
    turn bigint NOT NULL DEFAULT 0, -- raised each time it is opened
    CONSTRAINT gate_pkey PRIMARY KEY (lane)
) WITH (fillfactor = 50);

-- A job has come to a lane or left it: somebody must look. A mark that nobody waits for to write, however long another
-- transaction of the same lane stays open.
CREATE TABLE {schema}.knock (
    lane text NOT NULL
);
CREATE INDEX knock_by_lane ON {schema}.knock (lane);

-- Logic in the database, only for jobs with a lane, because a place must be kept and given up whoever writes the row: an
-- older worker that promotes it, a plain DELETE, a rescue. Jobs without a lane pay for looking at a column.
CREATE FUNCTION {schema}.keep_lane() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        NEW.lane := NEW.options #>> '{{lane,name}}';
        NEW.lane_size := NEW.options #>> '{{lane,size}}';
        NEW.in_order := coalesce((NEW.options #>> '{{lane,in_order}}')::boolean, false);
        NEW.admitted := false;
    END IF;
    IF NEW.state = 'held' OR (NEW.state = 'scheduled' AND NOT NEW.in_order) THEN
        NEW.admitted := false;
    ELSIF NEW.state = 'available' AND NOT NEW.admitted THEN
        NEW.state := 'held';
    END IF;
    RETURN NEW;
END
$$;

CREATE FUNCTION {schema}.knock_at_lane() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {schema}.knock (lane) VALUES (CASE WHEN TG_OP = 'INSERT' THEN NEW.lane ELSE OLD.lane END);
    RETURN NULL;
END
$$;

CREATE TRIGGER job_enters_lane BEFORE INSERT ON {schema}.job
    FOR EACH ROW WHEN (NEW.options ? 'lane') EXECUTE FUNCTION {schema}.keep_lane();
CREATE TRIGGER job_keeps_lane BEFORE UPDATE OF state ON {schema}.job
    FOR EACH ROW WHEN (NEW.lane IS NOT NULL) EXECUTE FUNCTION {schema}.keep_lane();
CREATE TRIGGER job_came_to_lane AFTER INSERT ON {schema}.job
    FOR EACH ROW WHEN (NEW.lane IS NOT NULL AND NEW.state = 'held') EXECUTE FUNCTION {schema}.knock_at_lane();
CREATE TRIGGER job_came_back_to_lane AFTER UPDATE OF state ON {schema}.job
    FOR EACH ROW WHEN (NEW.lane IS NOT NULL AND (NEW.state = 'held' OR OLD.admitted AND NOT NEW.admitted))
    EXECUTE FUNCTION {schema}.knock_at_lane();
CREATE TRIGGER job_left_lane AFTER DELETE ON {schema}.job
    FOR EACH ROW WHEN (OLD.lane IS NOT NULL) EXECUTE FUNCTION {schema}.knock_at_lane();
