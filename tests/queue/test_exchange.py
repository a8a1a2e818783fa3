"""The exchange: one trip and one commit for a whole pass, and nothing lost where a part of it is refused."""

from __future__ import annotations

import json
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.bench.protocol import Traffic, watched
from tests.factories import column, opened_pool, scalar
from tests.queue.conftest import SCHEMA, InsertJob, NotingFeed, claim, dispatching
from tests.queue.test_dispatcher import WAIT, a_job
from tests.waiting import wait_until
from worker.pool import Pool
from worker.queue.claim import Claim
from worker.queue.exchange import Errand, Reply, exchange
from worker.queue.feed import Room
from worker.queue.history import History
from worker.queue.lease import Lease
from worker.queue.new_job import NewJob
from worker.queue.settlement import Outcome, Settlement, settle
from worker.queue.unique import JobKey

ROOM = Room(["default"], ["charge"], 10, idle=True)


@pytest.fixture(autouse=True)
def _history(db: psycopg.Connection) -> None:
    History(SCHEMA).maintain(db)


@pytest.fixture
def lease(db: psycopg.Connection) -> Lease:
    lease = Lease(SCHEMA, duration=10.0, slots=1, pool_size=2)
    lease.register(db)
    return lease


def done(*claims: Claim) -> list[Settlement]:
    return [Settlement(*one.proof, Outcome.DONE) for one in claims]


def everything(insert_job: InsertJob, db: psycopg.Connection) -> Errand:
    """Each part at once: two outcomes, a send, what has begun, a claim, what is due, and the heartbeat."""
    for _ in range(3):
        insert_job()
    finished, retried, begun = claim(db)
    return Errand(
        settlements=[*done(finished), Settlement(*retried.proof, Outcome.RETRY)],
        new=[a_job()],
        begun=[begun],
        rooms=[ROOM],
        promoting=True,
        renewing=True,
        served=[ROOM],
    )


def test_a_whole_pass_is_one_trip_and_one_commit(
    insert_job: InsertJob, lease: Lease, database: str, db: psycopg.Connection
) -> None:
    errand = everything(insert_job, db)
    with watched() as wire, opened_pool(database, max_size=2) as pool, pool.pinned() as conn:
        conn.execute("SELECT")
        before = wire.traffic()
        exchange(conn, SCHEMA, lease, errand)
        conn.execute("SELECT")  # the trace tells of a reply with the next message
        spent = wire.traffic() - before

    assert spent == Traffic(statements=6 + 1, trips=1 + 1, commits=1 + 1)


def test_the_claim_of_a_pass_sees_what_it_returned_and_sent(
    insert_job: InsertJob, lease: Lease, db: psycopg.Connection
) -> None:
    errand = everything(insert_job, db)

    reply = exchange(db, SCHEMA, lease, errand)

    assert {one.id for one in reply.claims[0]} == {errand.settlements[1].id, errand.new[0].id}


def test_without_pipelines_it_is_one_commit_all_the_same(
    insert_job: InsertJob, lease: Lease, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psycopg.capabilities, "has_pipeline", lambda: False)
    errand = everything(insert_job, db)

    reply = exchange(db, SCHEMA, lease, errand)

    assert len(reply.claims[0]) == 2
    assert scalar(db, "SELECT count(DISTINCT xmin::text) FROM worker.job") == 1


def test_what_is_refused_in_one_part_undoes_all_of_it(
    insert_job: InsertJob, lease: Lease, db: psycopg.Connection
) -> None:
    errand = everything(insert_job, db)
    before = db.execute("SELECT id, state, token FROM worker.job ORDER BY id").fetchall()

    with pytest.raises(psycopg.DataError):
        exchange(db, SCHEMA, lease, errand._replace(new=[a_job(args="no json")]))

    assert db.execute("SELECT id, state, token FROM worker.job ORDER BY id").fetchall() == before


@pytest.mark.parametrize(
    "new",
    [[a_job() for _ in range(5001)], [a_job(args=json.dumps({"note": "x" * 900_000})) for _ in range(20)]],
    ids=["many", "large"],
)
def test_sends_that_are_more_than_one_statement_are_undone_with_the_rest(
    new: list[NewJob], lease: Lease, db: psycopg.Connection
) -> None:
    """Or they would be sent again, beside what refused them, when others have claimed them."""
    refused = ROOM._replace(limit=-1)

    with pytest.raises(psycopg.DataError):
        exchange(db, SCHEMA, lease, Errand(new=new, rooms=[refused]))

    assert scalar(db, "SELECT count(*) FROM worker.job") == 0


def test_refusals_do_not_confuse_what_is_prepared(lease: Lease, insert_job: InsertJob, db: psycopg.Connection) -> None:
    """A statement is prepared by its sixth use, here in a pipeline that never comes to it."""
    for _ in range(12):
        with pytest.raises(psycopg.DataError):
            exchange(db, SCHEMA, lease, Errand(new=[a_job(args="no json")], rooms=[ROOM]))
    insert_job()

    assert len(exchange(db, SCHEMA, lease, Errand(new=[a_job()], rooms=[ROOM])).claims[0]) == 2


def test_an_outcome_frees_its_slot_for_the_claim_of_the_same_trip(
    insert_job: InsertJob, database: str, db: psycopg.Connection
) -> None:
    for _ in range(2):
        insert_job()
    feed = NotingFeed(limit=1)
    with dispatching(database, feed) as dispatcher:
        assert feed.was_put.wait(WAIT)
        feed.was_put.clear()
        feed.limit = 2  # as a slot does that is free again
        dispatcher.settle(*done(*feed.put_here))

        assert feed.was_put.wait(WAIT)
        ended, began = db.execute(
            "SELECT h.xmin::text, j.xmin::text FROM worker.job_history AS h, worker.job AS j"
        ).fetchall()[0]

    assert ended == began


# A part that is refused


def test_a_locked_outcome_holds_up_neither_sends_nor_claims_of_its_pass(
    insert_job: InsertJob, database: str, db: psycopg.Connection
) -> None:
    insert_job()
    feed = NotingFeed(limit=1)
    with dispatching(database, feed) as dispatcher, psycopg.connect(database) as holder:
        assert feed.was_put.wait(WAIT)
        feed.was_put.clear()
        holder.execute("SELECT FROM worker.job FOR UPDATE")
        feed.limit = 2
        written = dispatcher.settle(*done(*feed.put_here), wake=False)
        sent = dispatcher.send([a_job()])

        sent.result(WAIT)
        assert feed.was_put.wait(WAIT)
        assert not written.done()
        holder.rollback()
        assert written.result(WAIT)


def test_a_send_that_is_refused_spoils_no_outcome_of_its_pass(
    insert_job: InsertJob, database: str, db: psycopg.Connection
) -> None:
    insert_job()
    feed = NotingFeed(limit=1)
    with dispatching(database, feed) as dispatcher:
        assert feed.was_put.wait(WAIT)
        written = dispatcher.settle(*done(*feed.put_here), wake=False)
        sent = dispatcher.send([a_job(args="no json")])

        assert written.result(WAIT)
        assert isinstance(sent.exception(WAIT), psycopg.DataError)

    assert column(db, "SELECT outcome FROM worker.job_history") == ["done"]


# A connection that is lost


@pytest.mark.parametrize("reached", [True, False], ids=["committed", "not committed"])
def test_a_connection_lost_in_an_exchange_loses_and_doubles_nothing(
    insert_job: InsertJob, database: str, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, reached: bool
) -> None:
    first = [True]

    def lose(conn: psycopg.Connection, *args: object) -> Reply:
        if errand_of(args).settlements and first:
            first.clear()
            if reached:
                exchange(conn, *args)  # type: ignore[arg-type]  # as it was called
            db.execute("SELECT pg_terminate_backend(%s, 5000)", [conn.info.backend_pid])
        return exchange(conn, *args)  # type: ignore[arg-type]

    monkeypatch.setattr("worker.queue.dispatcher.exchange", lose)
    insert_job()
    insert_job()
    feed = NotingFeed(limit=1)
    with dispatching(database, feed) as dispatcher:
        assert feed.was_put.wait(WAIT)
        settled = feed.put_here[0]
        feed.limit = 2
        written = dispatcher.settle(
            Settlement(*settled.proof, Outcome.DONE, following=(a_job(actor="receipt"),)), wake=False
        )
        dispatcher.wake()

        # What was written although nobody heard it is found to be another's by now, which is as good.
        assert written.result(WAIT) is not reached
        wait_until(lambda: len(feed.put_here) == 2, WAIT, "the claim of the other job")

    assert scalar(db, "SELECT count(*) FROM worker.job WHERE actor = 'receipt'") == 1
    assert column(db, "SELECT id FROM worker.job_history") == [settled.id]
    assert column(db, "SELECT state FROM worker.job WHERE actor = 'charge'") == ["available"]


def errand_of(args: tuple[object, ...]) -> Errand:
    (errand,) = (arg for arg in args if isinstance(arg, Errand))
    return errand


def test_outcomes_written_before_the_connection_was_lost_reach_the_dispatcher(
    insert_job: InsertJob, database: str, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the parted way halves are committed one after the other."""
    calls = [0]

    def lose_the_second_half(conn: psycopg.Connection, *args: object) -> set[UUID]:
        calls[0] += 1
        if calls[0] == 3:  # the whole, its first half, its second half
            db.execute("SELECT pg_terminate_backend(%s, 5000)", [conn.info.backend_pid])
        return settle(conn, *args)  # type: ignore[arg-type]

    monkeypatch.setattr("worker.queue.group_commit.settle", lose_the_second_half)
    for _ in range(2):
        insert_job()
    feed = NotingFeed(limit=2)
    with dispatching(database, feed) as dispatcher:
        wait_until(lambda: len(feed.put_here) == 2, WAIT, "the claims")
        good, bad = sorted(feed.put_here, key=lambda one: one.id)
        first = dispatcher.settle(*done(good), wake=False)
        second = dispatcher.settle(Settlement(*bad.proof, Outcome.RETRY, options='{"a": "\\u0000"}'))

        assert (first.result(WAIT), second.result(WAIT)) == (True, True)
        wait_until(lambda: dispatcher.num_outstanding == 0, WAIT, "the books to be closed")

    assert (feed.lost_here, calls[0] >= 3) == ([], True)


# What somebody has locked


def test_what_has_begun_and_is_locked_holds_up_no_pass_and_is_marked_by_a_later_one(
    insert_job: InsertJob, database: str, db: psycopg.Connection
) -> None:
    """By a transaction that sends the running job again, or the record of a step: else nothing would be renewed."""
    insert_job()
    feed = NotingFeed(limit=1)
    with dispatching(database, feed) as dispatcher, psycopg.connect(database) as somebody:
        assert feed.was_put.wait(WAIT)
        [one] = feed.put_here
        db.execute("UPDATE worker.job SET ahead = true")
        session = scalar(db, "SELECT pid FROM worker.worker")
        somebody.execute("SELECT FROM worker.job FOR SHARE")
        feed.begun_here.append(one)

        for _ in range(2):
            dispatcher.send([a_job(actor="receipt")]).result(WAIT)
        assert scalar(db, "SELECT ahead FROM worker.job WHERE id = %s", one.id)
        somebody.rollback()
        dispatcher.wake()
        query = "SELECT ahead FROM worker.job WHERE id = %s"
        wait_until(lambda: not scalar(db, query, one.id), WAIT, "the mark")

        assert (feed.begun_here, scalar(db, "SELECT pid FROM worker.worker")) == ([], session)


def test_what_has_begun_as_the_session_is_lost_is_marked_on_the_next_one(
    insert_job: InsertJob, database: str, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or, should the worker die, what ran would count as only claimed ahead."""
    lost: list[int] = []

    def lose_the_first(conn: psycopg.Connection, *args: object) -> Reply:
        if args[-1].begun and not lost:  # type: ignore[attr-defined]  # an errand
            lost.append(conn.info.backend_pid)
            db.execute("SELECT pg_terminate_backend(%s, 5000)", lost)
        return exchange(conn, *args)  # type: ignore[arg-type]

    monkeypatch.setattr("worker.queue.dispatcher.exchange", lose_the_first)
    insert_job()
    feed = NotingFeed(limit=1)
    with dispatching(database, feed) as dispatcher:
        assert feed.was_put.wait(WAIT)
        db.execute("UPDATE worker.job SET ahead = true")
        feed.begun_here += feed.put_here
        dispatcher.wake()

        wait_until(lambda: not scalar(db, "SELECT ahead FROM worker.job"), WAIT, "the mark")

    assert len(lost) == 1


# What one statement cannot write


def test_an_outcome_whose_following_job_has_a_key_is_written_beside_the_others_of_its_pass(
    insert_job: InsertJob, database: str, db: psycopg.Connection
) -> None:
    for _ in range(2):
        insert_job()
    feed = NotingFeed(limit=2)
    with dispatching(database, feed) as dispatcher:
        wait_until(lambda: len(feed.put_here) == 2, WAIT, "the claims")
        one, other = feed.put_here
        following = (a_job(actor="receipt", key=JobKey("invoice:42", "queued", None, "skip")), a_job(actor="note"))
        settled = [
            dispatcher.settle(Settlement(*one.proof, Outcome.DONE, following=following), wake=False),
            *[dispatcher.settle(settlement, wake=False) for settlement in done(other)],
        ]
        sent = dispatcher.send([a_job()])

        assert [written.result(WAIT) for written in settled] == [True, True]
        sent.result(WAIT)

    assert sorted(column(db, "SELECT actor FROM worker.job")) == ["charge", "note", "receipt"]
    assert column(db, "SELECT key FROM worker.job_key") == ["invoice:42"]


def test_a_following_job_with_tags_is_not_written_for_an_outcome_whose_token_no_longer_holds(
    insert_job: InsertJob, database: str, db: psycopg.Connection
) -> None:
    insert_job()
    feed = NotingFeed(limit=1)
    with dispatching(database, feed) as dispatcher:
        assert feed.was_put.wait(WAIT)
        job_id, token = feed.put_here[0].proof
        stale = Settlement(job_id, token - 1, Outcome.DONE, following=(a_job(actor="receipt", tags=("late",)),))

        assert dispatcher.settle(stale).result(WAIT) is False

    assert column(db, "SELECT actor FROM worker.job") == ["charge"]
    assert column(db, "SELECT tag FROM worker.job_tag") == []


def test_claiming_for_another_worker_finds_nothing_twice(
    insert_job: InsertJob, lease: Lease, db: psycopg.Connection, pool: Pool
) -> None:
    insert_job()
    with pool.pinned() as conn:
        first = exchange(conn, SCHEMA, lease, Errand(rooms=[ROOM]))

    assert (len(first.claims[0]), claim(db, worker=uuid4())) == (1, [])
