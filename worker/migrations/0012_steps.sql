-- serves: 1
-- What jobs say of themselves while they run: how far they are, and which of their steps are done. Beside the jobs, as
-- tags are: jobs that say nothing never come here, and what was said outlives the job's row in the history.

CREATE TABLE {schema}.job_progress (
    job_id      uuid             NOT NULL,
    token       bigint           NOT NULL, -- of the run that said it
    attempt     integer          NOT NULL,
    fraction    double precision,          -- from 0 to 1; NULL when nobody knows
    note        text,
    reported_at timestamptz      NOT NULL DEFAULT clock_timestamp(),
    begun_at    timestamptz      NOT NULL DEFAULT clock_timestamp(), -- never changed, so that updates touch no index
    CONSTRAINT job_progress_pkey PRIMARY KEY (job_id),
    CONSTRAINT job_progress_fraction_is_bounded CHECK (fraction BETWEEN 0 AND 1),
    CONSTRAINT job_progress_note_is_short CHECK (length(note) <= 500)
) WITH (fillfactor = 50);
CREATE INDEX job_progress_by_age ON {schema}.job_progress (begun_at);

-- One for each step that a job has done; what is here is not done again by its next attempts.
CREATE TABLE {schema}.job_step (
    job_id      uuid        NOT NULL,
    name        text        NOT NULL,
    value       jsonb       NOT NULL, -- what the step has returned
    attempt     integer     NOT NULL,
    args_hash   bigint      NOT NULL, -- of the arguments it was done with: with others it is another step
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT job_step_once PRIMARY KEY (job_id, name),
    CONSTRAINT job_step_name_is_short CHECK (length(name) BETWEEN 1 AND 200)
);
CREATE INDEX job_step_by_age ON {schema}.job_step (recorded_at);
