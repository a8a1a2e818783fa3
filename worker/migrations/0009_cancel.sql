-- serves: 1
-- Which jobs somebody wants ended; a job that waits ends at once, one that runs when its worker has heard of it.

ALTER TABLE {schema}.job
    ADD COLUMN cancelled_at timestamptz;
