-- serves: 1
-- Which send a job is from. A message that is sent again under its own id is another job, although the id is the same:
-- it does all its steps; a retry and a redrive are the same job and go on behind them. An older worker writes none, and
-- what has none counts for every send, as before.

-- Without a default at first, so that none of these rewrites a table.
ALTER TABLE {schema}.job
    ADD COLUMN sent_at timestamptz;
ALTER TABLE {schema}.job
    ALTER COLUMN sent_at SET DEFAULT clock_timestamp();
ALTER TABLE {schema}.job_dead
    ADD COLUMN sent_at timestamptz;
ALTER TABLE {schema}.job_step
    ADD COLUMN sent_at timestamptz; -- of the job as it was when the step was recorded
