-- serves: 1
-- A waiting job may be given other arguments, by a send with its unique key or under its own id, and with them another
-- lane or rate: it leaves the old one and waits in the new one. What it is counted in follows its options, whoever
-- writes them; and these must be whole, or it would wait for ever, and others of the same name behind it.

ALTER TABLE {schema}.job
    DROP CONSTRAINT job_lane_has_size,
    ADD CONSTRAINT job_lane_has_size CHECK (
        CASE WHEN lane IS NULL THEN lane_size IS NULL AND NOT admitted ELSE (lane_size >= 1) IS TRUE END
    ) NOT VALID,
    DROP CONSTRAINT job_rate_has_size,
    ADD CONSTRAINT job_rate_has_size CHECK (rate IS NULL OR (rate_size >= 1 AND rate_per > 0) IS TRUE) NOT VALID;

CREATE OR REPLACE FUNCTION {schema}.keep_lane() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' OR NEW.options -> 'lane' IS DISTINCT FROM OLD.options -> 'lane' THEN
        NEW.lane := NEW.options #>> '{{lane,name}}';
        NEW.lane_size := NEW.options #>> '{{lane,size}}';
        NEW.in_order := coalesce((NEW.options #>> '{{lane,in_order}}')::boolean, false);
        NEW.rate := NEW.options #>> '{{lane,rate,name}}';
        NEW.rate_size := NEW.options #>> '{{lane,rate,size}}';
        NEW.rate_per := NEW.options #>> '{{lane,rate,per}}';
        NEW.rate_first := coalesce((NEW.options #>> '{{lane,rate,first}}')::boolean, false);
        IF TG_OP = 'INSERT' THEN
            NEW.admitted := false;
            NEW.cleared := false;
        ELSE
            NEW.admitted := NEW.admitted AND NEW.lane IS NOT DISTINCT FROM OLD.lane;
            NEW.cleared := NEW.cleared AND NEW.rate IS NOT DISTINCT FROM OLD.rate;
        END IF;
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
        IF OLD.lane IS NOT NULL AND OLD.lane IS DISTINCT FROM NEW.lane THEN
            INSERT INTO {schema}.knock (lane) VALUES (OLD.lane);
        END IF;
        IF NEW.lane IS NOT NULL AND (NEW.state = 'held' OR OLD.admitted AND NOT NEW.admitted) THEN
            INSERT INTO {schema}.knock (lane) VALUES (NEW.lane);
        END IF;
        IF OLD.cleared AND OLD.rate IS DISTINCT FROM NEW.rate THEN
            INSERT INTO {schema}.rate_knock (rate) VALUES (OLD.rate);
        END IF;
        IF NEW.rate IS NOT NULL AND (NEW.state = 'throttled' OR OLD.cleared AND NOT NEW.cleared) THEN
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
DROP TRIGGER job_came_back_to_lane ON {schema}.job;

CREATE TRIGGER job_keeps_lane BEFORE UPDATE OF state ON {schema}.job
    FOR EACH ROW WHEN (NEW.lane IS NOT NULL OR NEW.rate IS NOT NULL OR NEW.options ? 'lane')
    EXECUTE FUNCTION {schema}.keep_lane();
CREATE TRIGGER job_came_back_to_lane AFTER UPDATE OF state ON {schema}.job
    FOR EACH ROW WHEN (
        NEW.lane IS NOT NULL AND (NEW.state = 'held' OR OLD.admitted AND NOT NEW.admitted)
        OR NEW.rate IS NOT NULL AND (NEW.state = 'throttled' OR OLD.cleared AND NOT NEW.cleared)
        OR OLD.lane IS NOT NULL AND OLD.lane IS DISTINCT FROM NEW.lane
        OR OLD.cleared AND OLD.rate IS DISTINCT FROM NEW.rate
    )
    EXECUTE FUNCTION {schema}.knock_at_lane();
