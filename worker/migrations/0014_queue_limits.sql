-- serves: 1
-- How many jobs of a queue run at once, and start within some seconds, over the whole fleet, as people have set it. An
-- older worker goes on beside newer ones: it does not know of these limits, but what it runs is counted.

CREATE TABLE {schema}.queue_limit (
    queue       text             NOT NULL,
    max_running integer,          -- NULL: any number
    max_starts  integer,          -- NULL: any number ...
    starts_per  double precision, -- ... within any so many seconds
    limited_at  timestamptz      NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT queue_limit_pkey PRIMARY KEY (queue),
    CONSTRAINT queue_limit_is_one CHECK (num_nonnulls(max_running, max_starts) > 0),
    CONSTRAINT queue_limit_running_is_positive CHECK (max_running >= 1),
    CONSTRAINT queue_limit_starts_are_positive CHECK (max_starts >= 1 AND starts_per > 0),
    CONSTRAINT queue_limit_starts_are_within CHECK ((max_starts IS NULL) = (starts_per IS NULL))
);

-- One for each queue that ever had a limit; locked by who claims of it, so that two cannot take the same place. Apart from
-- the limit, so that an open transaction which changes that stops no queue.
CREATE TABLE {schema}.queue_gate (
    queue text   NOT NULL,
    turn  bigint NOT NULL DEFAULT 0, -- raised by each claim of it
    CONSTRAINT queue_gate_pkey PRIMARY KEY (queue)
) WITH (fillfactor = 50);

-- As before, and by queue: what runs is counted without reading the rows of other queues.
DROP INDEX {schema}.job_running;
CREATE INDEX job_running ON {schema}.job (claimed_by, queue)
    WHERE state = 'running';
