"""Finding jobs, and bringing dead ones back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import dramatiq
import psycopg
import pytest
from dramatiq import Message

from tests.factories import column, scalar
from tests.queue.conftest import InsertJob, claim
from tests.running import outcome, running_worker
from worker import ArgumentError, PostgresBroker, job
from worker.queue.history import History
from worker.queue.identity import uuid7
from worker.queue.jobs import JobFilter, Jobs, without_notes
from worker.queue.schema import Schema
from worker.queue.settlement import Outcome, Settlement, settle

INSERT_DEAD = """
    INSERT INTO worker.job_dead (
        id, queue, actor, priority, attempt, crashes, due_at, enqueued_at, died_at, args, options, message, error
    )
    VALUES (%(id)s, %(queue)s, %(actor)s, 0, 21, 2, now(), %(enqueued_at)s, now(), %(args)s, %(options)s,
        %(message)s, 'ZeroDivisionError')"""

INSERT_DONE = """
    INSERT INTO worker.job_history (
        id, queue, actor, outcome, attempt, priority, due_at, enqueued_at, finished_at
    )
    VALUES (%s, 'default', 'charge', 'done', 1, 0, now(), now(), now())"""

Bury = Callable[..., UUID]


@pytest.fixture
def bury(db: psycopg.Connection) -> Bury:
    """Puts a dead job into its table; returns its id."""

    def put(*, queue: str = "default", actor: str = "charge", message: bytes | None = None, **given: Any) -> UUID:
        row = {"id": uuid7(), "queue": queue, "actor": actor, "enqueued_at": datetime.now(UTC), **given}
        row |= {"args": None, "options": None} if message else {"args": "{}", "options": '{"retries": 20, "x": 1}'}
        db.execute(INSERT_DEAD, {**row, "message": message})
        return UUID(str(row["id"]))

    return put


def test_jobs_are_found_newest_first(db: psycopg.Connection, insert_job: InsertJob) -> None:
    first, second = insert_job(job_id=UUID(int=1)), insert_job(job_id=UUID(int=2))

    assert [found.id for found in Jobs(db).find(JobFilter())] == [second, first]


def test_no_more_are_found_than_asked_for(db: psycopg.Connection, insert_job: InsertJob, bury: Bury) -> None:
    insert_job(job_id=UUID(int=1))
    dead, newest = bury(id=UUID(int=2)), insert_job(job_id=UUID(int=3))

    assert [found.id for found in Jobs(db).find(JobFilter(limit=2))] == [newest, dead]


def test_every_state_is_found_by_its_name(
    db: psycopg.Connection, insert_job: InsertJob, bury: Bury, broker: PostgresBroker
) -> None:
    expected = {
        "available": insert_job(state="available"),
        "scheduled": insert_job(state="scheduled", due_in=60),
        "running": insert_job(state="running", claimed_by=uuid7()),
        "dead": bury(),
        "done": uuid7(),
    }
    History(Schema()).maintain(db, datetime.now(UTC).date())
    db.execute(INSERT_DONE, [expected["done"]])

    found = {state: [job.id for job in Jobs(db).find(JobFilter(states=[state]))] for state in expected}

    assert found == {state: [job_id] for state, job_id in expected.items()}


@pytest.mark.parametrize(
    "narrowing",
    [{"queues": ["mail"]}, {"actors": ["receipt"]}, {"since": datetime.now(UTC) - timedelta(hours=1)}],
)
def test_each_part_of_a_filter_narrows(db: psycopg.Connection, bury: Bury, narrowing: dict[str, Any]) -> None:
    bury(enqueued_at=datetime.now(UTC) - timedelta(hours=2))
    wanted = bury(queue="mail", actor="receipt")

    assert [found.id for found in Jobs(db).find(JobFilter(**narrowing))] == [wanted]


def test_the_beginning_of_an_id_is_enough(db: psycopg.Connection, insert_job: InsertJob) -> None:
    wanted = insert_job(job_id=UUID("01890000-0000-7000-8000-000000000001"))
    insert_job(job_id=UUID("01880000-0000-7000-8000-000000000001"))

    assert [found.id for found in Jobs(db).find(JobFilter(id="0189"))] == [wanted]


@pytest.mark.parametrize("wrong", ["x", "0189zz", "0" * 33])
def test_an_id_that_cannot_be_one_is_refused(wrong: str) -> None:
    with pytest.raises(ArgumentError, match=f"job id '{wrong}'"):
        JobFilter(id=wrong)


def test_an_unknown_state_is_refused_by_name() -> None:
    with pytest.raises(
        ArgumentError, match="job state 'failed': expected one of scheduled, held, throttled, available"
    ):
        JobFilter(states=["failed"])


def test_a_redriven_job_is_as_if_it_had_been_sent_now(db: psycopg.Connection, bury: Bury) -> None:
    dead = bury()

    redriven = Jobs(db).redrive(JobFilter(id=dead))

    row = db.execute("SELECT id, state, attempt, crashes, error, options, due_at <= now() FROM worker.job").fetchall()
    assert redriven == [dead]
    assert row == [(dead, "available", 0, 0, None, {"x": 1}, True)]
    assert scalar(db, "SELECT count(*) FROM worker.job_dead") == 0


def test_a_run_of_the_life_before_cannot_settle_a_redriven_job(db: psycopg.Connection, insert_job: InsertJob) -> None:
    """One that was stopped all the while, and comes back: its token must not be given out a second time."""
    History(Schema()).maintain(db)
    job_id = insert_job(claimed_by=uuid4())
    settle(db, Schema(), [Settlement(job_id, 1, Outcome.DEAD)])
    Jobs(db).redrive(JobFilter(id=job_id))
    [claimed] = claim(db)

    assert settle(db, Schema(), [Settlement(job_id, 1, Outcome.DONE)]) == set()
    assert settle(db, Schema(), [Settlement(job_id, claimed.token, Outcome.DONE)]) == {job_id}


def test_only_those_that_match_are_redriven(db: psycopg.Connection, bury: Bury) -> None:
    bury(actor="charge")
    receipt = bury(actor="receipt")

    assert Jobs(db).redrive(JobFilter(actors=["receipt"])) == [receipt]
    assert scalar(db, "SELECT count(*) FROM worker.job_dead") == 1


def test_a_job_that_lives_again_keeps_its_dead_letter(
    db: psycopg.Connection, bury: Bury, insert_job: InsertJob
) -> None:
    dead = bury()
    insert_job(job_id=dead)

    assert Jobs(db).redrive(JobFilter(id=dead)) == []
    assert column(db, "SELECT id FROM worker.job_dead") == [dead]


def test_what_a_transaction_redrove_goes_with_it(db: psycopg.Connection, bury: Bury) -> None:
    bury()

    with db.transaction(force_rollback=True):
        assert len(Jobs(db).redrive(JobFilter())) == 1

    assert scalar(db, "SELECT count(*) FROM worker.job_dead") == 1


def test_more_than_a_batch_is_redriven(db: psycopg.Connection) -> None:
    db.execute("""
        INSERT INTO worker.job_dead (id, queue, actor, priority, attempt, crashes, due_at, enqueued_at, died_at, args)
        SELECT gen_random_uuid(), 'default', 'charge', 0, 1, 0, now(), now(), now(), '{}' FROM generate_series(1, 2100)
    """)

    assert len(Jobs(db).redrive(JobFilter(limit=2050))) == 2050
    assert scalar(db, "SELECT count(*) FROM worker.job_dead") == 50


def test_a_plain_actors_message_loses_its_notes_and_keeps_the_rest() -> None:
    message: Message[Any] = Message("default", "add", (1, 2), {}, {"retries": 3, "traceback": "...", "lang": "de"})

    cleaned = Message.decode(without_notes(message.encode()) or b"")

    assert cleaned.options == {"lang": "de"}
    assert (list(cleaned.args), cleaned.message_id) == ([1, 2], message.message_id)


@pytest.mark.parametrize("encoded", [b"\x80\x04pickle", b"[]", b'{"args": []}'])
def test_what_another_encoder_made_is_left_as_it_is(encoded: bytes) -> None:
    assert without_notes(encoded) == encoded


def test_a_redriven_job_has_all_its_attempts_again(database: str, db: psycopg.Connection) -> None:
    broker = PostgresBroker(schema="worker")
    healthy: list[bool] = []

    @job(broker=broker, max_retries=1, min_backoff=1, max_backoff=2)
    def fragile() -> None:
        if not healthy:
            raise ZeroDivisionError

    @dramatiq.actor(broker=broker, max_retries=1, min_backoff=1, max_backoff=2)
    def plain() -> None:
        if not healthy:
            raise ZeroDivisionError

    with running_worker(broker, database):
        messages = [fragile.send(), plain.send()]
        assert [outcome(db, message) for message in messages] == ["dead", "dead"]
        healthy.append(True)
        db.execute("TRUNCATE worker.job_history")
        redriven = Jobs(db).redrive(JobFilter())
        outcomes = [outcome(db, message) for message in messages]

    assert (len(redriven), outcomes) == (2, ["done", "done"])
