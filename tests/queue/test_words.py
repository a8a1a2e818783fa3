"""What jobs have said and done is kept as long as the job, or its history."""

from __future__ import annotations

from uuid import UUID

import psycopg

from tests.factories import column
from tests.queue.conftest import SCHEMA, InsertJob
from worker.queue.history import History
from worker.queue.identity import uuid7

OLD = """
    INSERT INTO worker.job_progress (job_id, token, attempt, note, begun_at)
    VALUES (%(id)s, 1, 1, %(word)s, now() - interval '15 days');
    INSERT INTO worker.job_step (job_id, name, value, attempt, args_hash, recorded_at)
    VALUES (%(id)s, %(word)s, '1', 1, 0, now() - interval '15 days')"""
DEAD = """
    INSERT INTO worker.job_dead (id, queue, actor, priority, attempt, crashes, due_at, enqueued_at, died_at, args)
    VALUES (%s, 'default', 'charge', 0, 1, 0, now(), now(), now(), '{}')"""


def say(db: psycopg.Connection, job_id: UUID, word: str) -> None:
    for statement in OLD.split(";"):
        db.execute(statement.encode(), {"id": job_id, "word": word})


def test_housekeeping_forgets_the_words_of_jobs_that_the_history_has_forgotten(
    db: psycopg.Connection, insert_job: InsertJob
) -> None:
    dead = uuid7()
    db.execute(DEAD, [dead])
    for job_id, word in ((insert_job(), "lives"), (dead, "dead"), (uuid7(), "gone")):
        say(db, job_id, word)

    History(SCHEMA).maintain(db)

    assert column(db, "SELECT note FROM worker.job_progress ORDER BY note") == ["dead", "lives"]
    assert column(db, "SELECT name FROM worker.job_step ORDER BY name") == ["dead", "lives"]
