-- serves: 1
-- What each heartbeat says of its worker, for whoever finds it dead. An older worker says nothing.

ALTER TABLE {schema}.worker
    ADD COLUMN memory     bigint, -- bytes that it has in memory
    ADD COLUMN statements jsonb;  -- by the id of its running jobs, what each has last said to the database
