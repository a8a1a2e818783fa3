"""The SQL of steps."""

from __future__ import annotations

from typing import LiteralString

# job_pkey and job_step_once. No row: the job is another's by now. A step counts for the arguments that it was done
# with: a send with a unique key may have given the job others; and for the send that its job is from, where both say.
FIND_STEP: LiteralString = """
    SELECT step.job_id IS NOT NULL, step.value::text, step.attempt
    FROM {schema}.job AS job
    LEFT JOIN {schema}.job_step AS step
        ON step.job_id = job.id
       AND step.name = %(name)s
       AND step.args_hash = hashtextextended(coalesce(job.args::text, ''), 0)
       AND (step.sent_at = job.sent_at) IS NOT FALSE
    WHERE job.id = %(id)s
      AND job.token = %(token)s
      AND job.state = 'running'"""

# job_pkey. The lock keeps the job from becoming another's before this commits. No row: it is already.
RECORD_STEP: LiteralString = """
    INSERT INTO {schema}.job_step (job_id, name, value, attempt, args_hash, sent_at)
    SELECT job.id, %(name)s, %(value)s::jsonb, job.attempt, hashtextextended(coalesce(job.args::text, ''), 0),
        job.sent_at
    FROM {schema}.job AS job
    WHERE job.id = %(id)s
      AND job.token = %(token)s
      AND job.state = 'running'
    FOR SHARE OF job
    ON CONFLICT ON CONSTRAINT job_step_once DO UPDATE
    SET value = excluded.value, attempt = excluded.attempt, args_hash = excluded.args_hash,
        sent_at = excluded.sent_at, recorded_at = excluded.recorded_at
    RETURNING job_id"""
