"""Bad input, each kind once through the public API: a clear error, or a dead job with its reason; nobody is held up."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import dramatiq
import psycopg
import pytest
from dramatiq.errors import QueueNotFound
from psycopg import Connection

from tests.factories import column, scalar
from tests.running import WAIT, RunningWorker, outcome
from tests.waiting import wait_until
from worker import ArgumentError, Context, JobFilter, Jobs, PostgresBroker, Unique, job

INSERT = "INSERT INTO worker.job (actor, args, options) VALUES (%s, %s, %s) RETURNING id"


@pytest.fixture
def charge(broker: PostgresBroker) -> Any:
    @job(broker=broker, max_retries=1, min_backoff=1, max_backoff=1)
    def charge(ctx: Context, invoice: str = "") -> None: ...

    return charge


@pytest.fixture
def others_run(charge: Any, worker: RunningWorker, db: psycopg.Connection) -> Iterator[None]:
    """Whatever the test did, the next job runs, and the worker lives."""
    yield
    assert outcome(db, charge.send()) == "done"
    assert worker.dispatcher.is_connected
    assert worker.threads.dead == []


pytestmark = pytest.mark.usefixtures("others_run")


def insert(db: psycopg.Connection, args: str = "{}", options: str | None = "{}", actor: str = "charge") -> UUID:
    job_id = scalar(db, INSERT, actor, args, options)
    assert isinstance(job_id, UUID)
    return job_id


def death(db: psycopg.Connection, job_id: UUID) -> str:
    """Why the job is dead, once it is."""
    query = "SELECT error FROM worker.job_dead WHERE id = %s"
    return str(wait_until(lambda: column(db, query, job_id), WAIT, "the job to be dead")[0])


# Refused where it is sent


def test_an_unknown_queue(charge: Any, broker: PostgresBroker, db: psycopg.Connection) -> None:
    with pytest.raises(QueueNotFound, match=r"queue 'nowhere': no job of this process is on it.*declared: default"):
        broker.enqueue(charge.message().copy(queue_name="nowhere"))


def test_a_million_characters(charge: Any, db: psycopg.Connection) -> None:
    assert outcome(db, charge.send("x" * 1_000_000)) == "done"
    with pytest.raises(
        ArgumentError, match=r"job 'charge': its arguments are 1,100,014 bytes .* keep what is large in"
    ):
        charge.send("x" * 1_100_000)


@pytest.mark.parametrize("delay", [-1, timedelta(seconds=-1), float("nan"), "soon"])
def test_a_delay_that_is_none(charge: Any, delay: Any) -> None:
    with pytest.raises(ArgumentError, match="job 'charge': delay"):
        charge.send_with_options(delay=delay)


@pytest.mark.parametrize("unique", ["x" * 10_000, Unique])
def test_a_key_that_is_none(charge: Any, unique: Any) -> None:
    with pytest.raises(ArgumentError, match="expected"):
        charge.send_with_options(unique=unique)


def test_a_key_of_ten_thousand_characters_made_of_arguments(charge: Any, db: psycopg.Connection) -> None:
    """Then it is a digest of them."""
    sent = charge.send_with_options(args=("x" * 10_000,), unique=True, delay=3_600_000)

    assert not charge.send_with_options(args=("x" * 10_000,), unique=True).is_new
    assert sent.is_new


def test_a_character_that_postgres_cannot_store(charge: Any) -> None:
    with pytest.raises(ArgumentError, match=r"U\+0000, which Postgres cannot store"):
        charge.send("a\0b")


# Cancelled


def test_cancelled_twice(charge: Any, db: psycopg.Connection) -> None:
    sent = charge.send_with_options(delay=3_600_000)
    which = JobFilter(id=sent.message_id)

    assert [Jobs(db).cancel(which) for _ in range(2)] == [[UUID(sent.message_id)], []]


# Found in the queue


def test_an_unknown_actor_waits_and_says_so(db: psycopg.Connection) -> None:
    job_id = insert(db, actor="nobody")
    jobs = Jobs(db)

    [found] = jobs.find(JobFilter(id=job_id))
    wait_until(lambda: jobs.obstacle(found) == "no live worker knows actor 'nobody'", WAIT, "the worker to have told")
    assert found.state == "available"


def test_arguments_of_a_newer_version(db: psycopg.Connection) -> None:
    job_id = insert(db, '{"invoice": "a", "currency": "EUR"}')

    assert "quarantined: job 'charge': got an unexpected keyword argument 'currency'" in death(db, job_id)


def test_arguments_of_another_type(db: psycopg.Connection) -> None:
    assert "quarantined: job 'charge': Expected `str`, got `int`" in death(db, insert(db, '{"invoice": 42}'))


def test_bytes_that_are_no_message(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @dramatiq.actor(broker=broker)
    def plain() -> None: ...

    query = "INSERT INTO worker.job (actor, args, message) VALUES ('plain', NULL, %s) RETURNING id"
    assert "Failed to decode message" in death(db, scalar(db, query, b"\x80\x04 of another encoder"))


@pytest.mark.parametrize(
    "options",
    [
        "[]",
        '"text"',
        "42",
        "null",
        '{"retries": "many"}',
        '{"max_retries": "many"}',
        '{"time_limit": "soon"}',
        '{"time_limit": -1}',
        '{"errors": 5}',
        '{"cuts": "x"}',
        '{"pipe_target": 5}',
        '{"pipe_target": {"queue_name": "nowhere"}}',
        '{"group_completion_uuid": "x", "group_completion_callbacks": 5}',
        '{"on_success": "nobody"}',
        '{"min_backoff": "a", "max_backoff": []}',
        '{"max_age": "old"}',
        '{"schedule": 5, "scheduled_for": 5}',
    ],
)
@pytest.mark.parametrize("fails", [False, True])
def test_options_that_a_hand_has_written(
    broker: PostgresBroker, db: psycopg.Connection, options: str, fails: bool
) -> None:
    @job(broker=broker, max_retries=1, min_backoff=1, max_backoff=1)
    def odd(conn: Connection, ctx: Context) -> None:
        if fails:
            raise ValueError("of the job's own")

    try:
        job_id = insert(db, options=options, actor="odd")
    except psycopg.IntegrityError:
        return
    query = "SELECT outcome FROM worker.job_history WHERE id = %s"
    wait_until(lambda: column(db, query, job_id), WAIT, "the job to be over")
