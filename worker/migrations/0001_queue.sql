-- serves: 1
-- The queue: live jobs, what became of finished ones, and the workers that hold leases.

-- Live jobs only. The table stays as small as the work that waits, because a settled job leaves it at once.
CREATE TABLE {schema}.job (
    id          uuid        NOT NULL,
    queue       text        NOT NULL,
    actor       text        NOT NULL,
    state       text        NOT NULL,
    priority    integer     NOT NULL DEFAULT 0,
    due_at      timestamptz NOT NULL,
    rank        timestamptz NOT NULL, -- due_at + priority * 60 s: the order of the claim, in which low priorities age
    token       bigint      NOT NULL DEFAULT 0, -- the fence: raised at every claim, settle and re-enqueue
    attempt     integer     NOT NULL DEFAULT 0, -- nth run, counted from 1; a released run is not counted
    crashes     integer     NOT NULL DEFAULT 0, -- workers that died while they ran it
    claimed_by  uuid,
    claimed_at  timestamptz,
    enqueued_at timestamptz NOT NULL,
    args        jsonb, -- of a @job, by parameter name
    options     jsonb, -- of a @job
    message     bytea, -- of a plain actor: the encoder's own bytes
    error       text,  -- of the last attempt
    CONSTRAINT job_pkey PRIMARY KEY (id),
    CONSTRAINT job_state_is_known CHECK (state IN ('scheduled', 'available', 'running')),
    CONSTRAINT job_running_is_claimed CHECK ((state = 'running') = (claimed_by IS NOT NULL)),
    CONSTRAINT job_has_one_body CHECK ((args IS NULL) <> (message IS NULL)),
    CONSTRAINT job_priority_is_bounded CHECK (priority BETWEEN -1000000 AND 1000000)
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 500,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);

CREATE INDEX job_available ON {schema}.job (queue, rank, id)
    WHERE state = 'available';
CREATE INDEX job_scheduled ON {schema}.job (due_at)
    WHERE state = 'scheduled';
CREATE INDEX job_running ON {schema}.job (claimed_by)
    WHERE state = 'running';

-- Append-only: one row per finished job. Partitions by day are made ahead and dropped by age; there is no default
-- partition, because beside one no other can be detached concurrently.
CREATE TABLE {schema}.job_history (
    id          uuid        NOT NULL,
    queue       text        NOT NULL,
    actor       text        NOT NULL,
    outcome     text        NOT NULL,
    attempt     integer     NOT NULL,
    priority    integer     NOT NULL,
    due_at      timestamptz NOT NULL,
    enqueued_at timestamptz NOT NULL,
    started_at  timestamptz,
    finished_at timestamptz NOT NULL,
    worker      uuid,
    args        jsonb,
    error       text,
    CONSTRAINT job_history_outcome_is_known CHECK (outcome IN ('done', 'dead'))
) PARTITION BY RANGE (finished_at);

CREATE INDEX job_history_by_id ON {schema}.job_history (id);

-- Out of attempts, unreadable, or quarantined after crashes: kept whole until somebody redrives or deletes them.
CREATE TABLE {schema}.job_dead (
    id          uuid        NOT NULL,
    queue       text        NOT NULL,
    actor       text        NOT NULL,
    priority    integer     NOT NULL,
    attempt     integer     NOT NULL,
    crashes     integer     NOT NULL,
    due_at      timestamptz NOT NULL,
    enqueued_at timestamptz NOT NULL,
    started_at  timestamptz,
    died_at     timestamptz NOT NULL,
    worker      uuid,
    args        jsonb,
    options     jsonb,
    message     bytea,
    error       text,
    CONSTRAINT job_dead_pkey PRIMARY KEY (id)
);

-- One row per live worker, renewed by its heartbeat; jobs point at it, so renewing never touches them.
CREATE TABLE {schema}.worker (
    id            uuid             NOT NULL,
    name          text             NOT NULL, -- host and process, for people
    pid           integer          NOT NULL, -- server process of its pinned session ...
    backend_start timestamptz      NOT NULL, -- ... which pids being reused makes unambiguous
    queues        text[],
    slots         integer          NOT NULL,
    pool_size     integer          NOT NULL,
    lease         double precision NOT NULL, -- seconds after the heartbeat until others may rescue its jobs
    started_at    timestamptz      NOT NULL DEFAULT now(),
    heartbeat_at  timestamptz      NOT NULL DEFAULT now(),
    lost_at       timestamptz,               -- when another worker first saw its session gone
    CONSTRAINT worker_pkey PRIMARY KEY (id),
    CONSTRAINT worker_lease_is_positive CHECK (lease > 0)
);
