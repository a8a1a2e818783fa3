"""Queues in people's hands: paused, resumed and looked at; and what is paused is not claimed anywhere."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psycopg
import pytest

from tests.factories import column, scalar
from tests.queue.conftest import SCHEMA, InsertJob, NotingFeed, dispatching
from tests.waiting import wait_until
from worker import ArgumentError, NotFound, Queues, clock
from worker.queue.dispatcher import Dispatcher
from worker.queue.feed import Room
from worker.queue.flow import Flow
from worker.queue.lease import Lease
from worker.queue.statements import HAS_WORK

WAIT = 15.0
# What is promised, without the notification: a heartbeat.
HEARTBEAT = 2.5


def lives(db: psycopg.Connection, *, queues: list[str], actors: list[str] | None, ago: float = 0.0) -> None:
    """Put the row of a worker into the table; an older one does not say what it knows."""
    db.execute(
        """
        INSERT INTO worker.worker (
            id, name, pid, backend_start, queues, actors, slots, pool_size, lease, heartbeat_at
        )
        VALUES (%s, 'host:1', pg_backend_pid(), now(), %s, %s, 1, 2, 10, now() - %s * interval '1 second')""",
        [uuid4(), queues, actors, ago],
    )


def pass_by(dispatcher: Dispatcher, db: psycopg.Connection) -> None:
    """Wait for a heartbeat from now on, and for the claim that follows it."""
    since = scalar(db, "SELECT clock_timestamp()")
    query = "SELECT count(*) FROM worker.worker WHERE heartbeat_at > %s"
    dispatcher.wake()
    wait_until(lambda: scalar(db, query, since), WAIT, "a heartbeat")
    for _ in range(2):
        dispatcher.submit(lambda conn: None).result(WAIT)


# Pausing


def test_nothing_of_a_paused_queue_is_claimed_from_the_first_claim_on(
    database: str, insert_job: InsertJob, db: psycopg.Connection
) -> None:
    insert_job()
    Queues(db).pause("default")
    feed = NotingFeed(limit=1)

    with dispatching(database, feed) as dispatcher:
        pass_by(dispatcher, db)

    assert feed.put_here == []


def test_a_running_worker_hears_of_a_pause_at_once(
    database: str, insert_job: InsertJob, db: psycopg.Connection
) -> None:
    feed = NotingFeed(limit=1)
    with dispatching(database, feed) as dispatcher:
        pass_by(dispatcher, db)
        before = clock.monotonic()
        Queues(db).pause("default", force=True)
        wait_until(lambda: dispatcher._flow.paused_queues, WAIT, "the dispatcher to know of the pause")
        took = clock.monotonic() - before
        insert_job()
        pass_by(dispatcher, db)

    assert feed.put_here == []
    assert took < HEARTBEAT


def test_a_pause_whose_notification_was_lost_is_seen_by_the_next_heartbeat(
    database: str, db: psycopg.Connection
) -> None:
    with dispatching(database) as dispatcher:
        pass_by(dispatcher, db)
        before = clock.monotonic()
        db.execute("INSERT INTO worker.pause (kind, name) VALUES ('queue', 'default')")
        wait_until(lambda: dispatcher._flow.paused_queues, WAIT, "the dispatcher to know of the pause")

        assert clock.monotonic() - before < HEARTBEAT


def test_what_is_resumed_is_claimed_at_once(database: str, insert_job: InsertJob, db: psycopg.Connection) -> None:
    job_id, feed = insert_job(), NotingFeed(limit=1)
    Queues(db).pause("default")
    with dispatching(database, feed) as dispatcher:
        pass_by(dispatcher, db)
        before = clock.monotonic()
        Queues(db).resume("default")
        assert feed.was_put.wait(WAIT)

        assert clock.monotonic() - before < HEARTBEAT
    assert [claim.id for claim in feed.put_here] == [job_id]


def test_a_paused_actor_stays_and_holds_nobody_up(database: str, insert_job: InsertJob, db: psycopg.Connection) -> None:
    insert_job(actor="charge", due_in=-5)
    Queues(db).pause(actor="charge")

    assert Flow.of([], ["charge"]).through([Room(["default"], ["charge", "mail"], 3, holding=["charge"])]) == [
        Room(["default"], ["mail"], 3, holding=[], limited=[])
    ]
    feed = NotingFeed(limit=1)
    with dispatching(database, feed) as dispatcher:
        pass_by(dispatcher, db)
    assert feed.put_here == []


def test_a_pause_is_part_of_the_callers_transaction(db: psycopg.Connection) -> None:
    with db.transaction(force_rollback=True):
        Queues(db).pause("default", force=True)

    assert column(db, "SELECT name FROM worker.pause") == []


def test_pausing_twice_keeps_the_first_instant(db: psycopg.Connection) -> None:
    first = Queues(db).pause("default", force=True)
    paused_at = scalar(db, "SELECT paused_at FROM worker.pause")

    assert (first, Queues(db).pause("default", force=True)) == (True, False)
    assert scalar(db, "SELECT paused_at FROM worker.pause") == paused_at


def test_resuming_what_is_not_paused_says_so(db: psycopg.Connection) -> None:
    assert Queues(db).resume("default") is False


def test_a_name_that_nobody_uses_is_refused_with_the_one_meant(insert_job: InsertJob, db: psycopg.Connection) -> None:
    insert_job(queue="billing")

    with pytest.raises(NotFound, match=r"queue 'biling': no job and no live worker uses that name, did you mean 'bill"):
        Queues(db).pause("biling")


def test_exactly_one_name_is_expected(db: psycopg.Connection) -> None:
    with pytest.raises(ArgumentError, match="expected exactly one name"):
        Queues(db).pause("default", actor="charge")


@pytest.mark.parametrize("name", [{"name": "default"}, {"actor": "charge"}])
def test_what_is_paused_is_no_work_that_can_run_now(
    insert_job: InsertJob, db: psycopg.Connection, name: dict[str, str]
) -> None:
    insert_job()
    has_work = SCHEMA.render(HAS_WORK).encode()
    everything = {"queues": ["default"], "actors": ["charge"]}
    before = db.execute(has_work, everything).fetchone()

    Queues(db).pause(**name)  # type: ignore[arg-type]  # a name

    assert (before, db.execute(has_work, everything).fetchone()) == ((True,), (False,))


# Looking


def test_a_queue_is_counted_by_what_its_jobs_do(insert_job: InsertJob, db: psycopg.Connection) -> None:
    insert_job(due_in=-60)
    insert_job(state="scheduled", due_in=-5)
    insert_job(state="scheduled", due_in=60)
    insert_job(claimed_by=uuid4())

    [queue] = Queues(db).list()

    assert (queue.name, queue.waiting, queue.running, queue.scheduled, queue.dead) == ("default", 2, 1, 1, 0)
    assert queue.oldest is not None
    assert 60 <= queue.oldest < 90
    assert (queue.paused_at, queue.workers) == (None, 0)


def test_a_paused_queue_is_listed_without_jobs(db: psycopg.Connection) -> None:
    Queues(db).pause("mail", force=True)

    [queue] = Queues(db).list()

    assert (queue.name, queue.waiting, queue.oldest) == ("mail", 0, None)
    assert queue.paused_at is not None
    assert abs(queue.paused_at - datetime.now(UTC)) < timedelta(minutes=1)


def test_jobs_of_actors_that_no_live_worker_knows_are_named(insert_job: InsertJob, db: psycopg.Connection) -> None:
    lives(db, queues=["default"], actors=["charge"])
    lives(db, queues=["default"], actors=["gone"], ago=60)
    for actor in ("charge", "gone", "gone"):
        insert_job(actor=actor)

    [queue] = Queues(db).list()

    assert (queue.unknown, queue.workers) == ({"gone": 2}, 1)


def test_where_an_older_worker_lives_nobody_is_said_to_be_unknown(
    insert_job: InsertJob, db: psycopg.Connection
) -> None:
    lives(db, queues=["default"], actors=None)
    insert_job(actor="perhaps")

    assert Queues(db).list()[0].unknown == {}


@pytest.mark.parametrize(
    ("queue", "actor", "obstacle"),
    [
        ("default", "charge", None),
        ("default", "gone", "no live worker knows actor 'gone'"),
        ("mail", "charge", "no live worker serves queue 'mail'"),
        ("paused", "charge", "queue 'paused' is paused since "),
        ("default", "held", "actor 'held' is paused since "),
    ],
)
def test_why_a_job_does_not_start_is_one_sentence(
    db: psycopg.Connection, queue: str, actor: str, obstacle: str | None
) -> None:
    lives(db, queues=["default", "paused"], actors=["charge", "held"])
    Queues(db).pause("paused")
    Queues(db).pause(actor="held")

    found = Queues(db).obstacle(queue, actor)

    assert found is None if obstacle is None else found is not None and found.startswith(obstacle)


def test_without_any_worker_that_is_the_reason(db: psycopg.Connection) -> None:
    assert Queues(db).obstacle("default", "charge") == "no worker lives"


# What workers say of themselves


def test_a_worker_says_at_registration_what_it_knows(db: psycopg.Connection) -> None:
    lease = Lease(SCHEMA, duration=10.0, slots=1, pool_size=2)

    lease.register(db, [Room(["mail"], ["send"], 0, holding=["charge"])])

    assert db.execute("SELECT queues, actors FROM worker.worker").fetchall() == [(["mail"], ["charge", "send"])]


def test_what_a_worker_learns_later_comes_with_its_heartbeat(db: psycopg.Connection) -> None:
    lease = Lease(SCHEMA, duration=10.0, slots=1, pool_size=2)
    lease.register(db)

    lease.beat(db, [Room(["mail"], ["send"], 0)], Flow.of(["mail"], ["send"]))

    assert db.execute("SELECT queues, actors FROM worker.worker").fetchall() == [(["mail"], ["send"])]
