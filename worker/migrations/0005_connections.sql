-- serves: 1
-- What a worker's connections are used for, written by itself when somebody asks.

ALTER TABLE {schema}.worker
    ADD COLUMN checkouts jsonb,         -- one object for each connection that was out
    ADD COLUMN answered_at timestamptz; -- when it wrote them
