-- serves: 1
-- What a statement on jobs costs before its first row. The server reads every check and every condition of a trigger anew
-- from its text, which was half of the work of writing one job. So the rules of a row are one function, which a session
-- compiles once; and the conditions say no more than whom the triggers are for, whose function knows the rest.

CREATE FUNCTION {schema}.is_sound(job {schema}.job) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    broken CONSTANT text := CASE
        WHEN job.state NOT IN ('scheduled', 'held', 'throttled', 'available', 'running') THEN 'job_state_is_known'
        WHEN (job.state = 'running') <> (job.claimed_by IS NOT NULL) THEN 'job_running_is_claimed'
        WHEN (job.args IS NULL) = (job.message IS NULL) THEN 'job_has_one_body'
        WHEN jsonb_typeof(job.args) <> 'object' THEN 'job_args_are_named'
        WHEN job.priority NOT BETWEEN -1000000 AND 1000000 THEN 'job_priority_is_bounded'
        WHEN job.lane IS NULL AND (job.lane_size IS NOT NULL OR job.admitted) THEN 'job_lane_has_size'
        WHEN job.lane IS NOT NULL AND (job.lane_size >= 1) IS NOT TRUE THEN 'job_lane_has_size'
        WHEN job.rate IS NOT NULL AND (job.rate_size >= 1 AND job.rate_per > 0) IS NOT TRUE THEN 'job_rate_has_size'
    END;
BEGIN
    IF broken IS NULL THEN
        RETURN true;
    END IF;
    -- As the constraints were called that these rules were.
    RAISE EXCEPTION USING
        ERRCODE = 'check_violation', TABLE = 'job', CONSTRAINT = broken,
        MESSAGE = format('new row for relation "job" violates check constraint "%s"', broken),
        DETAIL = format('It is the job %s of %s.', job.id, job.actor);
END
$$;

-- Who writes a row must be allowed to call it, also where new functions are nobody's by default.
GRANT EXECUTE ON FUNCTION {schema}.is_sound({schema}.job) TO PUBLIC;

-- Not of the rows that are there: looking at them would keep everybody out for as long as it takes.
ALTER TABLE {schema}.job
    DROP CONSTRAINT job_state_is_known,
    DROP CONSTRAINT job_running_is_claimed,
    DROP CONSTRAINT job_has_one_body,
    DROP CONSTRAINT job_args_are_named,
    DROP CONSTRAINT job_priority_is_bounded,
    DROP CONSTRAINT job_lane_has_size,
    DROP CONSTRAINT job_rate_has_size,
    ADD CONSTRAINT job_is_sound CHECK ({schema}.is_sound(job)) NOT VALID;

CREATE OR REPLACE FUNCTION {schema}.knock_at_lane() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.state = 'held' THEN
            INSERT INTO {schema}.knock (lane) VALUES (NEW.lane);
        ELSIF NEW.state = 'throttled' THEN
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

DROP TRIGGER job_came_to_lane ON {schema}.job;
DROP TRIGGER job_came_back_to_lane ON {schema}.job;

CREATE TRIGGER job_came_to_lane AFTER INSERT ON {schema}.job
    FOR EACH ROW WHEN (NEW.lane IS NOT NULL OR NEW.rate IS NOT NULL)
    EXECUTE FUNCTION {schema}.knock_at_lane();
CREATE TRIGGER job_came_back_to_lane AFTER UPDATE OF state ON {schema}.job
    FOR EACH ROW WHEN (coalesce(NEW.lane, OLD.lane, NEW.rate, OLD.rate) IS NOT NULL)
    EXECUTE FUNCTION {schema}.knock_at_lane();
