"""The dispatcher: one thread, one connection; what it is told becomes durable, what it claimed is never forgotten."""

from __future__ import annotations

from datetime import date
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from structlog.testing import capture_logs

from tests.chaos.cable import Cable
from tests.factories import backend_pid, column, scalar, terminate
from tests.queue.conftest import SCHEMA, InsertJob, NotingFeed, dispatching
from tests.waiting import wait_until
from worker import clock
from worker.errors import LeaseLost
from worker.queue.claim import Claim
from worker.queue.dispatcher import Dispatcher
from worker.queue.history import History
from worker.queue.identity import uuid7
from worker.queue.insertion import insert
from worker.queue.lease import application_name
from worker.queue.new_job import NewJob
from worker.queue.settlement import Outcome, Settlement
from worker.queue.submissions import Submissions

# Less than a poll, which is 2 s: what comes within it was told and not found by chance.
PROMPTLY = 1.5
WAIT = 15.0


def a_job(**changes: Any) -> NewJob:
    return NewJob(uuid7(), "default", "charge", 0, 0.0, 0.0, "{}", "{}", None)._replace(**changes)


def disconnect(db: psycopg.Connection, dispatcher: Dispatcher) -> None:
    """End the dispatcher's session and wait until it has another."""

    def pids() -> set[int]:
        name = application_name(dispatcher.lease.worker_id)
        return set(column(db, "SELECT pid FROM pg_stat_activity WHERE application_name = %s", name))

    before = wait_until(pids, WAIT, "the dispatcher's session")
    for pid in before:
        db.execute("SELECT pg_terminate_backend(%s)", [pid])
    wait_until(lambda: pids() - before, WAIT, "the dispatcher to connect again")


# Writing


def test_a_send_is_durable_when_its_future_is_done(database: str, db: psycopg.Connection) -> None:
    with dispatching(database) as dispatcher:
        dispatcher.send([a_job()]).result(WAIT)

        assert scalar(db, "SELECT count(*) FROM worker.job") == 1


class GatheringFeed(NotingFeed):
    """A feed with jobs for a minute, so that outcomes might wait for as long."""

    leisure = 60.0


@pytest.fixture
def _no_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is seen is told, and not met by the next poll."""
    monkeypatch.setattr("worker.queue.turns.LONGEST", 60.0)


@pytest.mark.usefixtures("_no_polls")
def test_what_is_gathered_is_written_with_whatever_comes_next(
    insert_job: InsertJob, database: str, db: psycopg.Connection
) -> None:
    insert_job()
    feed = GatheringFeed(limit=1)
    with dispatching(database, feed, duration=600.0) as dispatcher:
        assert feed.was_put.wait(WAIT)
        dispatcher.settle_unawaited(Settlement(*feed.put_here[0].proof, Outcome.DONE))

        dispatcher.send([a_job(actor="receipt")]).result(WAIT)

        assert scalar(db, "SELECT count(*) FROM worker.job_history") == 1


def test_what_is_gathered_is_written_at_the_end(insert_job: InsertJob, database: str, db: psycopg.Connection) -> None:
    insert_job()
    feed = GatheringFeed(limit=1)
    with dispatching(database, feed) as dispatcher:
        assert feed.was_put.wait(WAIT)
        dispatcher.settle_unawaited(Settlement(*feed.put_here[0].proof, Outcome.DONE))

    assert (scalar(db, "SELECT count(*) FROM worker.job_history"), feed.lost_here) == (1, [])


def test_a_send_that_the_server_refuses_fails_alone(database: str, db: psycopg.Connection) -> None:
    with dispatching(database) as dispatcher:
        futures = [dispatcher.send([a_job(args=args)]) for args in ("{}", '{"a": "\\u0000"}', "{}")]

        assert [isinstance(future.exception(WAIT), psycopg.DataError) for future in futures] == [False, True, False]


def test_submitted_work_is_committed_when_its_future_is_done(database: str, db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE note (id int)")
    with dispatching(database) as dispatcher:
        dispatcher.submit(lambda conn: conn.execute("INSERT INTO note VALUES (1)")).result(WAIT)

        assert scalar(db, "SELECT count(*) FROM note") == 1


def test_submitted_work_that_raises_leaves_nothing(database: str, db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE note (id int)")

    def work(conn: psycopg.Connection) -> None:
        conn.execute("INSERT INTO note VALUES (1)")
        raise ZeroDivisionError

    with dispatching(database) as dispatcher:
        with pytest.raises(ZeroDivisionError):
            dispatcher.submit(work).result(WAIT)

        assert scalar(db, "SELECT count(*) FROM note") == 0


def test_a_stopped_dispatcher_refuses_to_write(database: str) -> None:
    with dispatching(database) as dispatcher:
        pass

    with pytest.raises(psycopg.OperationalError, match="the worker has stopped"):
        dispatcher.send([a_job()])


def test_stopping_writes_what_was_told_before(database: str, insert_job: InsertJob, db: psycopg.Connection) -> None:
    insert_job()
    feed = NotingFeed(limit=1)
    with dispatching(database, feed) as dispatcher:
        assert feed.was_put.wait(WAIT)
        dispatcher.settle(Settlement(*feed.put_here[0].proof, Outcome.RETRY, 60.0))

    assert column(db, "SELECT state FROM worker.job") == ["scheduled"]


# Claiming


def test_a_job_that_waits_is_claimed_at_boot(database: str, insert_job: InsertJob) -> None:
    job_id, feed = insert_job(), NotingFeed(limit=1)

    with dispatching(database, feed):
        assert feed.was_put.wait(WAIT)

    assert [claim.id for claim in feed.put_here] == [job_id]


def test_jobs_sent_elsewhere_are_claimed_without_waiting_for_polls(database: str, db: psycopg.Connection) -> None:
    feed = NotingFeed(limit=4)
    with dispatching(database, feed):
        started = clock.monotonic()
        for number in range(1, 5):
            insert(db, SCHEMA, [a_job()])
            wait_until(lambda number=number: len(feed.put_here) == number, WAIT, "the claim")  # type: ignore[misc]

        # By polls alone it would be 2 s for each after the first.
        assert clock.monotonic() - started < 4.0


def test_a_job_whose_wake_up_was_lost_is_found_by_polling(database: str, insert_job: InsertJob) -> None:
    feed = NotingFeed(limit=1)
    with dispatching(database, feed) as dispatcher:
        dispatcher.submit(lambda conn: None).result(WAIT)
        insert_job()

        assert feed.was_put.wait(WAIT)


def test_a_job_for_later_is_claimed_when_it_is_due(database: str, db: psycopg.Connection) -> None:
    feed = NotingFeed(limit=1)
    with dispatching(database, feed) as dispatcher:
        dispatcher.send([a_job(delay=0.3)]).result(WAIT)

        assert feed.was_put.wait(PROMPTLY)


def test_nothing_is_claimed_without_room(database: str, insert_job: InsertJob, db: psycopg.Connection) -> None:
    insert_job()
    with dispatching(database, NotingFeed(limit=0)) as dispatcher:
        dispatcher.submit(lambda conn: None).result(WAIT)

        assert column(db, "SELECT state FROM worker.job") == ["available"]


def test_nothing_is_claimed_after_a_pause(database: str, insert_job: InsertJob, db: psycopg.Connection) -> None:
    feed = NotingFeed(limit=1)
    with dispatching(database, feed) as dispatcher:
        dispatcher.pause()
        insert_job()
        dispatcher.submit(lambda conn: None).result(WAIT)

        assert column(db, "SELECT state FROM worker.job") == ["available"]


def test_what_was_claimed_and_not_settled_is_given_back_with_its_attempt(
    database: str, insert_job: InsertJob, db: psycopg.Connection
) -> None:
    insert_job()
    feed = NotingFeed(limit=1)
    with dispatching(database, feed):
        assert feed.was_put.wait(WAIT)

    assert db.execute("SELECT state, attempt, claimed_by FROM worker.job").fetchall() == [("available", 0, None)]


# Losing the connection


def test_it_claims_again_after_its_session_was_ended(
    database: str, insert_job: InsertJob, db: psycopg.Connection
) -> None:
    feed = NotingFeed(limit=1)
    with dispatching(database, feed) as dispatcher:
        disconnect(db, dispatcher)
        insert_job()

        assert feed.was_put.wait(WAIT)


def test_the_house_is_kept_by_the_next_session_when_the_first_was_lost_over_it(
    database: str, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a partition for today no job can be recorded as done, and the next regular look is an hour away."""
    maintain, first = History.maintain, [True]

    def lose_the_first(history: History, conn: psycopg.Connection, today: date | None = None) -> float:
        if first:
            first.pop()
            terminate(db, backend_pid(conn))
        return maintain(history, conn, today)

    monkeypatch.setattr(History, "maintain", lose_the_first)

    with dispatching(database):
        query = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'worker.job_history'::regclass"
        wait_until(lambda: scalar(db, query) == 8, 5, "the partitions")


def test_an_outcome_told_while_it_was_disconnected_is_written(
    database: str, insert_job: InsertJob, db: psycopg.Connection
) -> None:
    insert_job()
    feed = NotingFeed(limit=1)
    with dispatching(database, feed) as dispatcher:
        assert feed.was_put.wait(WAIT)
        disconnect(db, dispatcher)
        (claim,) = feed.put_here

        assert dispatcher.settle(Settlement(*claim.proof, Outcome.RETRY, 60.0)).result(WAIT)


def test_a_claim_whose_reply_was_lost_is_given_back_with_its_attempt(
    database: str, insert_job: InsertJob, db: psycopg.Connection
) -> None:
    """The row says that this worker runs it; the worker has never heard of it."""
    worker_id = uuid7()
    insert_job(claimed_by=worker_id)

    with dispatching(database, worker_id=worker_id) as dispatcher:
        dispatcher.submit(lambda conn: None).result(WAIT)
        dispatcher.submit(lambda conn: None).result(WAIT)

        assert db.execute("SELECT state, attempt FROM worker.job").fetchall() == [("available", 0)]


def test_a_claim_whose_reply_was_lost_with_the_session_is_given_back_on_the_next(
    database: str, insert_job: InsertJob, db: psycopg.Connection
) -> None:
    with dispatching(database) as dispatcher:
        dispatcher.submit(lambda conn: None).result(WAIT)
        insert_job(claimed_by=dispatcher.lease.worker_id)
        disconnect(db, dispatcher)

        wait_until(lambda: column(db, "SELECT state FROM worker.job") == ["available"], WAIT, "the release")


def test_jobs_taken_over_by_others_are_reported_to_the_feed(
    database: str, insert_job: InsertJob, db: psycopg.Connection
) -> None:
    insert_job()
    feed = NotingFeed(limit=1)
    with dispatching(database, feed) as dispatcher:
        assert feed.was_put.wait(WAIT)
        db.execute("UPDATE worker.job SET token = token + 1, claimed_by = %s", [uuid4()])
        db.execute("DELETE FROM worker.worker WHERE id = %s", [dispatcher.lease.worker_id])

        assert feed.was_lost.wait(WAIT)
        assert feed.lost_here == feed.put_here


def test_a_worker_declared_dead_by_mistake_is_back_with_its_next_heartbeat(
    database: str, db: psycopg.Connection
) -> None:
    with dispatching(database) as dispatcher:
        dispatcher.submit(lambda conn: None).result(WAIT)
        db.execute("DELETE FROM worker.worker")

        def registered() -> list[UUID]:
            return column(db, "SELECT id FROM worker.worker")

        assert wait_until(registered, WAIT, "the worker's row") == [dispatcher.lease.worker_id]


def test_jobs_may_end_while_a_heartbeat_is_put_together(database: str, insert_job: InsertJob) -> None:
    """In their own transactions, on threads of theirs."""

    class Ending(Claim):
        @property
        def holder(self) -> str:
            dispatcher.forget(self)
            return super().holder

    feed = NotingFeed(limit=2)
    with dispatching(database, feed) as dispatcher:
        insert_job(), insert_job()
        wait_until(lambda: len(feed.put_here) == 2, WAIT, "the claims")
        dispatcher._outstanding.update((claim.proof, Ending(*claim)) for claim in feed.put_here)

        wait_until(lambda: not dispatcher.num_outstanding, WAIT, "the heartbeat")

        dispatcher.send([a_job()]).result(WAIT)


def test_a_worker_that_stopped_has_no_row(database: str, db: psycopg.Connection) -> None:
    with dispatching(database) as dispatcher:
        dispatcher.submit(lambda conn: None).result(WAIT)

    assert column(db, "SELECT id FROM worker.worker") == []


@pytest.mark.parametrize("round_", range(5))
def test_stopping_never_sleeps_until_the_next_poll(
    database: str, insert_job: InsertJob, db: psycopg.Connection, round_: int
) -> None:
    """Not even when the last outcomes come together with the request to stop, whose ring is heard with theirs."""
    for _ in range(20):
        insert_job()
    feed = NotingFeed(limit=20)
    with dispatching(database, feed) as dispatcher:
        wait_until(lambda: len(feed.put_here) == 20, WAIT, "the claims")
        for claim in feed.put_here:
            dispatcher.settle(Settlement(*claim.proof, Outcome.RETRY, 60.0))
        asked_at = clock.monotonic()
        dispatcher.stop()

        assert clock.monotonic() - asked_at < PROMPTLY


def test_stopping_twice_is_harmless(database: str) -> None:
    with dispatching(database) as dispatcher:
        dispatcher.stop()
        dispatcher.stop()

    assert not dispatcher.is_alive


def test_a_dead_workers_job_is_run_by_another_within_seconds(
    database: str, insert_job: InsertJob, db: psycopg.Connection
) -> None:
    dead = uuid4()
    db.execute(
        """
        INSERT INTO worker.worker (id, name, pid, backend_start, slots, pool_size, lease)
        VALUES (%s, 'gone', 2147483647, now(), 1, 2, 3600)
        """,
        [dead],
    )
    insert_job(claimed_by=dead)
    feed = NotingFeed(limit=1)

    with dispatching(database, feed):
        assert feed.was_put.wait(6)


# A server in trouble


def test_a_server_that_takes_some_writes_and_not_others_is_told_once_and_once_when_it_takes_all(
    insert_job: InsertJob, database: str, db: psycopg.Connection
) -> None:
    """As with a full disk: the heartbeat finds room in its page, and what is done finds none in the history."""
    db.execute(
        """
        CREATE SEQUENCE refusals;
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM nextval('refusals');
            RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100';
        END $$;
        """
    )
    insert_job()
    feed = NotingFeed(limit=1)
    with capture_logs() as logs, dispatching(database, feed) as dispatcher:
        assert feed.was_put.wait(WAIT)
        db.execute(
            "CREATE TRIGGER full_disk BEFORE INSERT ON worker.job_history FOR EACH ROW EXECUTE FUNCTION refuse()"
        )

        [claimed] = feed.put_here
        settled = dispatcher.settle(Settlement(claimed.id, claimed.token, Outcome.DONE))
        wait_until(lambda: scalar(db, "SELECT last_value FROM refusals") >= 4, WAIT, "some tries")
        assert not settled.done()
        db.execute("DROP TRIGGER full_disk ON worker.job_history")

        assert settled.result(WAIT)
        wait_until(lambda: dispatcher.is_connected, WAIT, "the dispatcher to say so")
    told = [entry["event"] for entry in logs if entry["event"].startswith("dispatcher.")]
    assert [event for event in told if event != "dispatcher.parted"] == [
        "dispatcher.connected", "dispatcher.disconnected", "dispatcher.connected",
    ]  # fmt: skip


def test_only_what_may_have_made_a_job_is_followed_by_a_claim(db: psycopg.Connection) -> None:
    """A look every few seconds, of an idle worker, would otherwise cost two statements."""
    submissions = Submissions()

    submissions.add(lambda conn: conn.execute("SELECT"), atomic=False)
    assert not submissions.run(db)

    submissions.add(lambda conn: conn.execute("SELECT"))
    assert submissions.run(db)


def test_a_network_that_is_silent_costs_no_more_than_a_third_of_the_lease(
    insert_job: InsertJob, database: str, db: psycopg.Connection
) -> None:
    """Nothing on the way says that the connection is gone, and no timeout of the server's reaches us."""
    insert_job()
    feed = NotingFeed(limit=1)
    with Cable(database) as cable, dispatching(cable.url, feed, duration=3.0) as dispatcher:
        assert feed.was_put.wait(WAIT)
        cable.forget()

        [claimed] = feed.put_here
        assert dispatcher.settle(Settlement(claimed.id, claimed.token, Outcome.DONE)).result(WAIT)


def test_a_run_that_has_lost_its_job_sends_nothing(
    insert_job: InsertJob, database: str, db: psycopg.Connection
) -> None:
    """It may be any time behind: stopped and woken up, it goes on in the middle, before anybody has told it."""
    insert_job()
    feed = NotingFeed(limit=1)
    with dispatching(database, feed) as dispatcher:
        assert feed.was_put.wait(WAIT)
        [claimed] = feed.put_here
        db.execute("UPDATE worker.job SET token = token + 1")
        for pid in column(db, "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'carpool %%'"
                              " AND datname = current_database()"):  # fmt: skip
            terminate(db, pid)

        sent = dispatcher.send([a_job(actor="receipt")], claimed.proof)

        assert isinstance(sent.exception(WAIT), LeaseLost)
        assert column(db, "SELECT actor FROM worker.job") == ["charge"]
