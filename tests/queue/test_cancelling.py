"""Cancelling: what waits is dead at once, what runs is marked, and never comes back."""

from __future__ import annotations

from uuid import UUID

import psycopg
import pytest

from tests.factories import column, scalar
from tests.queue.conftest import SCHEMA, InsertJob, NotingFeed, dispatching
from tests.waiting import wait_until
from worker.queue.history import History
from worker.queue.identity import uuid7
from worker.queue.insertion import insert
from worker.queue.jobs import JobFilter, Jobs
from worker.queue.lease import Lease
from worker.queue.new_job import NewJob
from worker.queue.settlement import Outcome, Settlement, settle

ERROR = "SELECT error FROM worker.job_dead WHERE id = %s"
OUTCOME = "SELECT outcome FROM worker.job_history WHERE id = %s"
MARK = "UPDATE worker.job SET cancelled_at = now() WHERE id = %s"


@pytest.fixture(autouse=True)
def _history(db: psycopg.Connection) -> None:
    History(SCHEMA).maintain(db)


@pytest.mark.parametrize(("state", "due_in"), [("available", 0), ("scheduled", 60)])
def test_a_job_that_waits_is_dead_at_once(
    db: psycopg.Connection, insert_job: InsertJob, state: str, due_in: int
) -> None:
    job_id = insert_job(state=state, due_in=due_in, args={"x": 1})

    assert Jobs(db).cancel(JobFilter(id=job_id)) == [job_id]

    assert scalar(db, "SELECT count(*) FROM worker.job") == 0
    assert db.execute("SELECT id, error, args FROM worker.job_dead").fetchall() == [(job_id, "cancelled", {"x": 1})]
    assert column(db, OUTCOME, job_id) == ["dead"]


def test_what_went_wrong_before_is_kept(db: psycopg.Connection, insert_job: InsertJob) -> None:
    job_id = insert_job()
    db.execute("UPDATE worker.job SET error = 'ValueError: no'")

    Jobs(db).cancel(JobFilter(id=job_id))

    assert column(db, ERROR, job_id) == ["ValueError: no\ncancelled"]


def test_a_job_that_runs_is_marked_and_its_worker_told(
    database: str, db: psycopg.Connection, insert_job: InsertJob
) -> None:
    job_id = insert_job(claimed_by=uuid7())

    with psycopg.connect(database, autocommit=True) as worker:
        worker.execute("LISTEN worker_cancel")
        assert Jobs(db).cancel(JobFilter(id=job_id)) == [job_id]
        told = [(one.channel, one.payload) for one in worker.notifies(timeout=5, stop_after=1)]

    assert told == [("worker_cancel", "")]
    assert column(db, "SELECT id FROM worker.job WHERE state = 'running' AND cancelled_at IS NOT NULL") == [job_id]


def test_nobody_is_told_of_jobs_that_only_waited(database: str, db: psycopg.Connection, insert_job: InsertJob) -> None:
    insert_job()

    with psycopg.connect(database, autocommit=True) as worker:
        worker.execute("LISTEN worker_cancel")
        Jobs(db).cancel(JobFilter())
        db.execute("NOTIFY worker_cancel, 'end'")
        told = [one.payload for one in worker.notifies(timeout=5, stop_after=1)]

    assert told == ["end"]


def test_cancelled_twice_counts_once(db: psycopg.Connection, insert_job: InsertJob) -> None:
    insert_job(claimed_by=uuid7())
    insert_job()

    assert (len(Jobs(db).cancel(JobFilter())), Jobs(db).cancel(JobFilter())) == (2, [])


def test_only_those_that_match_are_cancelled_oldest_first(db: psycopg.Connection, insert_job: InsertJob) -> None:
    first, second = (insert_job(queue="mail", job_id=UUID(int=n)) for n in (1, 2))
    insert_job(queue="mail", job_id=UUID(int=3))
    insert_job(job_id=UUID(int=4))

    assert Jobs(db).cancel(JobFilter(queues=["mail"], limit=2)) == [first, second]
    assert scalar(db, "SELECT count(*) FROM worker.job") == 2


def test_only_those_with_the_tags_are_cancelled(db: psycopg.Connection, insert_job: InsertJob) -> None:
    tagged, other = insert_job(), insert_job()
    db.execute("INSERT INTO worker.job_tag (tag, job_id) VALUES ('customer:7', %s)", [tagged])

    assert Jobs(db).cancel(JobFilter(actors=["charge"], tags=["customer:7"])) == [tagged]
    assert column(db, "SELECT id FROM worker.job") == [other]


def test_more_than_a_batch_is_cancelled(db: psycopg.Connection) -> None:
    db.execute("""
        INSERT INTO worker.job (id, queue, actor, state, due_at, rank, enqueued_at, args)
        SELECT gen_random_uuid(), 'default', 'charge', 'available', now(), now(), now(), '{}'
        FROM generate_series(1, 1100)""")

    assert len(Jobs(db).cancel(JobFilter(limit=5000))) == 1100


def test_what_a_transaction_cancelled_goes_on_without_it(db: psycopg.Connection, insert_job: InsertJob) -> None:
    insert_job()

    with db.transaction(force_rollback=True):
        Jobs(db).cancel(JobFilter())

    assert scalar(db, "SELECT count(*) FROM worker.job") == 1


@pytest.mark.parametrize("came_back", [Outcome.RETRY, Outcome.RELEASED])
def test_a_cancelled_run_is_not_repeated_however_it_ended(
    db: psycopg.Connection, insert_job: InsertJob, came_back: Outcome
) -> None:
    job_id = insert_job(claimed_by=uuid7())
    Jobs(db).cancel(JobFilter())

    assert settle(db, SCHEMA, [Settlement(job_id, 1, came_back, error="ValueError: no")]) == {job_id}

    assert scalar(db, "SELECT count(*) FROM worker.job") == 0
    assert column(db, ERROR, job_id) == ["ValueError: no\ncancelled"]
    assert column(db, OUTCOME, job_id) == ["dead"]


def test_a_run_that_succeeded_before_its_interrupt_is_done(db: psycopg.Connection, insert_job: InsertJob) -> None:
    job_id = insert_job(claimed_by=uuid7())
    Jobs(db).cancel(JobFilter())

    settle(db, SCHEMA, [Settlement(job_id, 1, Outcome.DONE)])

    assert column(db, OUTCOME, job_id) == ["done"]


def test_a_cancelled_job_whose_worker_died_is_dead(db: psycopg.Connection, insert_job: InsertJob) -> None:
    dead, rescuer = uuid7(), Lease(SCHEMA, duration=10, slots=1, pool_size=2)
    cancelled, other = insert_job(claimed_by=dead), insert_job(claimed_by=dead)
    db.execute(MARK, [cancelled])
    rescuer._registered_at -= 60

    assert rescuer.rescue(db).jobs == 1

    assert column(db, "SELECT id FROM worker.job") == [other]
    assert column(db, ERROR, cancelled) == ["cancelled"]


def test_a_job_sent_again_under_its_id_is_not_cancelled(db: psycopg.Connection, insert_job: InsertJob) -> None:
    job_id = insert_job(claimed_by=uuid7())
    db.execute(MARK, [job_id])

    insert(db, SCHEMA, [NewJob(job_id, "default", "charge", 0, 0.0, 0.0, "{}", "{}", None)])

    assert column(db, "SELECT cancelled_at FROM worker.job") == [None]


def test_a_dispatcher_hears_of_it(database: str, db: psycopg.Connection, insert_job: InsertJob) -> None:
    feed = NotingFeed(limit=1)
    job_id = insert_job()
    with dispatching(database, feed):
        assert feed.was_put.wait(10)
        Jobs(db).cancel(JobFilter())
        assert feed.was_cancelled.wait(10)

    assert feed.cancelled_here[0].id == job_id


def test_a_dispatcher_sees_it_also_when_the_notification_is_lost(
    database: str, db: psycopg.Connection, insert_job: InsertJob
) -> None:
    feed = NotingFeed(limit=1)
    job_id = insert_job()
    with dispatching(database, feed):
        assert feed.was_put.wait(10)
        db.execute(MARK, [job_id])
        assert feed.was_cancelled.wait(10)


def test_a_cancelled_job_that_nobody_runs_is_ended_by_its_owner(
    database: str, db: psycopg.Connection, insert_job: InsertJob
) -> None:
    """A retry that was written just as the mark was made finds no row; the books would say running for ever."""
    worker_id = uuid7()
    with dispatching(database, worker_id=worker_id):
        wait_until(lambda: column(db, "SELECT id FROM worker.worker"), 10, "the worker's row")
        job_id = insert_job(claimed_by=worker_id)
        db.execute(MARK, [job_id])

        wait_until(lambda: column(db, ERROR, job_id) == ["cancelled"], 10, "its end")
