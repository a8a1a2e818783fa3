-- serves: 1
-- What jobs return, and the counters of Dramatiq's rate limiters, barriers and groups.

CREATE TABLE {schema}.result (
    key        text        NOT NULL, -- Dramatiq's, of namespace, queue, actor and message
    value      bytea       NOT NULL, -- as the backend's encoder made it
    expires_at timestamptz NOT NULL,
    CONSTRAINT result_pkey PRIMARY KEY (key)
);
CREATE INDEX result_expires ON {schema}.result (expires_at);

CREATE TABLE {schema}.counter (
    key        text        NOT NULL,
    value      bigint      NOT NULL,
    expires_at timestamptz NOT NULL,
    CONSTRAINT counter_pkey PRIMARY KEY (key)
) WITH (fillfactor = 50);
CREATE INDEX counter_expires ON {schema}.counter (expires_at);

-- Which members of a group are done: one that runs again after a crash is not counted again, and the one that was last
-- is last again.
CREATE TABLE {schema}.group_member (
    key      text    NOT NULL,
    job_id   uuid    NOT NULL,
    was_last boolean NOT NULL,
    CONSTRAINT group_member_pkey PRIMARY KEY (key, job_id),
    CONSTRAINT group_member_is_counted FOREIGN KEY (key) REFERENCES {schema}.counter (key) ON DELETE CASCADE
);
