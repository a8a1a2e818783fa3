"""Limits of queues: so many jobs at once, so many starts within some seconds, over the whole fleet, set by people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.factories import InThread, column, scalar
from tests.queue.conftest import SCHEMA, InsertJob, NotingFeed, dispatching
from tests.waiting import wait_until
from worker import ConfigError, NotFound, Queues, clock
from worker.queue.claim import Claim
from worker.queue.exchange import Errand, Reply, exchange
from worker.queue.feed import Room
from worker.queue.flow import Flow
from worker.queue.history import History
from worker.queue.lease import Lease
from worker.queue.lease_statements import RESCUE_JOBS
from worker.queue.limited_claim import CLAIM_WITHIN_LIMITS
from worker.queue.marks import Marks
from worker.queue.queue_limit import QueueLimit
from worker.queue.settlement import Outcome, Settlement, settle

WAIT = 15.0
# What is promised, without a notification: a heartbeat.
HEARTBEAT = 2.5


@pytest.fixture(autouse=True)
def _history(db: psycopg.Connection) -> None:
    History(SCHEMA).maintain(db)


def look(
    db: psycopg.Connection,
    *,
    limited: Sequence[str] = ("default",),
    queues: Sequence[str] = (),
    limit: int = 10,
    worker: UUID | None = None,
    **room: Any,
) -> Reply:
    """What a dispatcher's exchange brings that claims of these queues."""
    lease = Lease(SCHEMA, duration=10.0, slots=1, pool_size=2, worker_id=worker)
    served = Room(queues, ["charge"], limit, limited=limited, **{"idle": True, **room})
    return exchange(db, SCHEMA, lease, Errand(rooms=[served]))


def take(db: psycopg.Connection, **chosen: Any) -> list[Claim]:
    return look(db, **chosen).claims[0]


def ids(claims: Sequence[Claim]) -> list[UUID]:
    return [one.id for one in claims]


def end(db: psycopg.Connection, claim: Claim, outcome: Outcome = Outcome.DONE) -> None:
    settle(db, SCHEMA, [Settlement(*claim.proof, outcome)])


def pass_by(db: psycopg.Connection, seconds: float) -> None:
    """So many seconds later, as far as starts know."""
    query = "UPDATE worker.rate_start SET started_at = started_at - %(ago)s, counts_until = counts_until - %(ago)s"
    db.execute(query, {"ago": timedelta(seconds=seconds)})


def limit(db: psycopg.Connection, queue: str = "default", **limits: Any) -> None:
    Queues(db).limit(queue, **limits, force=True)


# At once


def test_no_more_of_a_queue_run_than_its_limit(insert_job: InsertJob, db: psycopg.Connection) -> None:
    jobs = [insert_job() for _ in range(4)]
    limit(db, running=3)

    assert ids(take(db)) == jobs[:3]
    assert take(db) == []


def test_the_next_runs_when_one_is_over(insert_job: InsertJob, db: psycopg.Connection) -> None:
    jobs = [insert_job() for _ in range(3)]
    limit(db, running=2)
    first, _ = take(db)

    end(db, first)

    assert ids(take(db)) == [jobs[2]]


@pytest.mark.parametrize("outcome", [Outcome.DEAD, Outcome.RELEASED])
def test_whatever_becomes_of_a_job_its_place_is_free(
    insert_job: InsertJob, db: psycopg.Connection, outcome: Outcome
) -> None:
    for _ in range(3):
        insert_job()
    limit(db, running=1)
    [first] = take(db)

    end(db, first, outcome)

    assert len(take(db)) == 1


def test_what_ran_before_there_was_a_limit_is_counted(insert_job: InsertJob, db: psycopg.Connection) -> None:
    for _ in range(2):
        insert_job(claimed_by=uuid4())
    waiting = insert_job()
    limit(db, running=2)

    assert take(db) == []
    limit(db, running=3)
    assert ids(take(db)) == [waiting]


def test_a_dead_workers_jobs_count_until_they_are_rescued(insert_job: InsertJob, db: psycopg.Connection) -> None:
    dead, job_id = uuid4(), insert_job()
    insert_job(due_in=1)
    limit(db, running=1)
    take(db, worker=dead)

    assert take(db) == []
    db.execute(SCHEMA.render(RESCUE_JOBS).encode(), {"dead": dead, "max_crashes": 3, "reason": "crashed"})
    assert ids(take(db)) == [job_id]


def test_a_full_queue_holds_up_no_other(insert_job: InsertJob, db: psycopg.Connection) -> None:
    for _ in range(3):
        insert_job()
    others = [insert_job(queue="mail"), insert_job(queue="bulk"), insert_job(queue="bulk")]
    limit(db, running=1)
    limit(db, "bulk", running=1)
    take(db)

    assert ids(take(db, limited=["default", "bulk"], queues=["mail"])) == others[:2]


def test_limited_and_other_queues_are_claimed_in_one_order(insert_job: InsertJob, db: psycopg.Connection) -> None:
    jobs = [insert_job(queue=queue, due_in=due) for due, queue in ((-3, "mail"), (-2, "default"), (-1, "mail"))]
    limit(db, running=1)

    assert ids(take(db, queues=["mail"], limit=2)) == jobs[:2]


def test_a_place_is_taken_only_for_a_slot_that_is_free(insert_job: InsertJob, db: psycopg.Connection) -> None:
    """Claimed ahead of one it would keep the place from workers that could begin."""
    jobs = [insert_job(due_in=-5), insert_job(due_in=-4)]
    ahead = insert_job(queue="mail", due_in=-6)
    insert_job(queue="mail", due_in=-3)
    limit(db, running=2)

    assert ids(take(db, queues=["mail"], limit=10, free=0)) == [ahead]
    # What could begin now is not passed by either, or it would wait for as long as others can be claimed ahead.
    assert ids(take(db, queues=["mail"], limit=10, free=1)) == jobs[:1]


def test_of_jobs_that_hold_a_connection_only_as_many_as_can_have_one(
    insert_job: InsertJob, db: psycopg.Connection
) -> None:
    held = [insert_job(actor="hold", due_in=due) for due in (-9, -8, -7)]
    free = [insert_job(due_in=due) for due in (-6, -5, -4)]
    limit(db, running=3)

    assert ids(take(db, holding=["hold"], checkouts=1)) == [held[0], free[0], free[1]]


def test_a_suspect_of_a_limited_queue_runs_alone_too(insert_job: InsertJob, db: psycopg.Connection) -> None:
    suspect, _ = insert_job(), insert_job(queue="mail", due_in=1)
    db.execute("UPDATE worker.job SET suspect_since = now() WHERE id = %s", [suspect])
    limit(db, running=5)

    assert take(db, queues=["mail"], idle=False) == []
    assert ids(take(db, queues=["mail"])) == [suspect]


# Starts


def test_no_more_start_within_the_seconds_than_the_limit(insert_job: InsertJob, db: psycopg.Connection) -> None:
    for _ in range(4):
        insert_job()
    limit(db, starts=3, per=60)
    for one in take(db):
        end(db, one)

    assert take(db) == []


def test_each_start_makes_room_for_another_when_its_seconds_are_over(
    insert_job: InsertJob, db: psycopg.Connection
) -> None:
    jobs = [insert_job() for _ in range(5)]
    limit(db, starts=2, per=60)
    take(db, limit=1)
    pass_by(db, 30)
    take(db)

    pass_by(db, 31)

    assert ids(take(db)) == [jobs[2]]


def test_a_claim_says_when_the_next_may_start(insert_job: InsertJob, db: psycopg.Connection) -> None:
    for _ in range(2):
        insert_job()
    limit(db, starts=1, per=60)

    replies = [look(db)]
    pass_by(db, 20)
    replies.append(look(db))

    first, second = (reply.opens_in for reply in replies)
    assert first == pytest.approx(60, abs=5)
    assert second == pytest.approx(40, abs=5)


def test_where_nothing_waits_nothing_is_awaited(insert_job: InsertJob, db: psycopg.Connection) -> None:
    insert_job()
    limit(db, starts=1, per=60)
    take(db)

    assert look(db).opens_in is None


def test_both_limits_hold_together(insert_job: InsertJob, db: psycopg.Connection) -> None:
    for _ in range(5):
        insert_job()
    limit(db, running=2, starts=3, per=60)
    claims = take(db)
    for one in claims:
        end(db, one)

    assert (len(claims), len(take(db)), take(db)) == (2, 1, [])


# Races


def test_a_queue_in_anothers_hands_is_left_for_the_next_look(
    insert_job: InsertJob, database: str, db: psycopg.Connection
) -> None:
    jobs = [insert_job(), insert_job(), insert_job(queue="mail")]
    limit(db, running=1)
    with psycopg.connect(database) as other:
        assert ids(take(other)) == jobs[:1]

        reply = look(db, queues=["mail"])

    assert (reply.knocking, ids(reply.claims[0])) == (True, jobs[2:])
    assert look(db).knocking is False


def test_who_counted_before_another_claimed_claims_nothing(
    insert_job: InsertJob, database: str, db: psycopg.Connection
) -> None:
    """Its snapshot is older than its hold on the gate; here it waits between the two, elsewhere it would be luck."""
    first, _ = insert_job(), insert_job()
    limit(db, running=1)
    hold = "gate.queue = ANY(ARRAY(SELECT queue FROM seen WHERE places > 0))"
    text = SCHEMA.render(CLAIM_WITHIN_LIMITS)
    assert text.count(hold) == 1
    waiting = text.replace(hold, f"{hold} AND pg_advisory_xact_lock(7)::text = ''").encode()
    looked = {**Marks().parameters([]), **Marks().parameters(["default"], "limited_")}
    room = {**looked, "actors": ["charge"], "limit": 5, "free": 5, "holding": []}

    def claim_late() -> list[Any]:
        with psycopg.connect(database, autocommit=True) as conn:
            return conn.execute(waiting, {**room, "checkouts": 0, "idle": True, "worker": uuid4()}).fetchall()

    with psycopg.connect(database) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(7)")
        late = InThread(claim_late)
        query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        wait_until(lambda: scalar(db, query), WAIT, "the late one to wait")
        assert ids(take(db)) == [first]
        holder.commit()

    [(job_id, *_, left_some, _)] = late.result()
    assert (job_id, left_some) == (None, True)


def test_racing_workers_keep_both_limits(insert_job: InsertJob, database: str, db: psycopg.Connection) -> None:
    size, starts = 3, 60
    jobs = {insert_job() for _ in range(starts + 10)}
    limit(db, running=size, starts=starts, per=3600)
    crowded: list[Any] = []

    def work() -> list[UUID]:
        done: list[UUID] = []
        with psycopg.connect(database, autocommit=True) as conn:
            while scalar(conn, "SELECT count(*) FROM worker.job_history") < starts:
                claims = take(conn, limit=2)
                crowded.extend(column(conn, "SELECT count(*) FROM worker.job WHERE state = 'running'"))
                for one in claims:
                    end(conn, one)
                done += ids(claims)
        return done

    workers = [InThread(work) for _ in range(4)]
    done = [job_id for worker in workers for job_id in worker.result(60)]

    assert max(crowded) <= size
    assert (len(done), len(set(done)), set(done) < jobs) == (starts, starts, True)


def test_an_open_transaction_that_changes_a_limit_stops_nobody(
    insert_job: InsertJob, database: str, db: psycopg.Connection
) -> None:
    insert_job()
    limit(db, running=1)
    with psycopg.connect(database) as other:
        Queues(other).limit("default", running=5)

        assert len(take(db)) == 1


# In running dispatchers


def test_a_running_worker_keeps_a_limit_from_when_it_is_set(
    database: str, insert_job: InsertJob, db: psycopg.Connection
) -> None:
    feed = NotingFeed(limit=5)
    with dispatching(database, feed) as dispatcher:
        dispatcher.submit(lambda conn: None).result(WAIT)
        Queues(db).limit("default", running=2)
        wait_until(lambda: dispatcher._flow.limited_queues, HEARTBEAT, "the dispatcher to know of the limit")
        for _ in range(4):
            insert_job()
        wait_until(lambda: len(feed.put_here) == 2, WAIT, "what may run")
        dispatcher.submit(lambda conn: None).result(WAIT)
        assert len(feed.put_here) == 2

        Queues(db).unlimit("default")
        wait_until(lambda: len(feed.put_here) == 4, HEARTBEAT, "what waited for a place")


def test_a_limit_is_kept_from_the_first_claim_on(database: str, insert_job: InsertJob, db: psycopg.Connection) -> None:
    for _ in range(3):
        insert_job()
    limit(db, running=1)
    feed = NotingFeed(limit=5)

    with dispatching(database, feed) as dispatcher:
        assert feed.was_put.wait(WAIT)
        dispatcher.submit(lambda conn: None).result(WAIT)

        assert len(feed.put_here) == 1


def test_the_next_begins_at_once_where_one_was_settled(
    database: str, insert_job: InsertJob, db: psycopg.Connection
) -> None:
    for _ in range(6):
        insert_job()
    limit(db, running=1)
    feed = NotingFeed(limit=10)
    with dispatching(database, feed) as dispatcher:
        assert feed.was_put.wait(WAIT)
        before = clock.monotonic()
        for number in range(1, 6):
            # A pass that finds the queue full, so that only the settling can bring the next.
            for _ in range(2):
                dispatcher.submit(lambda conn: None).result(WAIT)
            dispatcher.settle(Settlement(*feed.put_here[-1].proof, Outcome.DONE))
            wait_until(lambda number=number: len(feed.put_here) == number + 1, WAIT, "the next")  # type: ignore[misc]

        # By polls alone it would be a second or two for each.
        assert clock.monotonic() - before < 4.0


def test_a_worker_without_room_leaves_the_next_to_another(
    database: str, insert_job: InsertJob, db: psycopg.Connection
) -> None:
    first, second = insert_job(), insert_job(due_in=1)
    limit(db, running=1)
    full, free = NotingFeed(limit=1), NotingFeed(limit=0)
    with dispatching(database, full) as one, dispatching(database, free):
        assert full.was_put.wait(WAIT)
        free.limit = 1
        one.settle(Settlement(*full.put_here[0].proof, Outcome.DONE))

        wait_until(lambda: free.put_here, HEARTBEAT, "the next, on the other")
    assert (ids(full.put_here), ids(free.put_here)) == ([first], [second])


def test_the_next_starts_when_it_may_and_not_at_a_poll(
    database: str, insert_job: InsertJob, db: psycopg.Connection
) -> None:
    for _ in range(8):
        insert_job()
    limit(db, starts=1, per=0.4)
    feed = NotingFeed(limit=10)
    with dispatching(database, feed):
        wait_until(lambda: len(feed.put_here) == 8, WAIT, "all of them")
        query = "SELECT extract(epoch FROM max(claimed_at) - min(claimed_at))::float8 FROM worker.job"
        # By polls it would be two seconds for each.
        assert 2.8 <= scalar(db, query) < 8.0


def test_without_a_slot_nobody_looks_again_at_a_queue_in_anothers_hands(
    database: str, insert_job: InsertJob, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert_job()
    limit(db, running=1)
    feed = NotingFeed(limit=1)
    with psycopg.connect(database) as holder, dispatching(database, feed) as dispatcher:
        holder.execute("SELECT FROM worker.queue_gate FOR UPDATE")
        wait_until(lambda: dispatcher._admit_at < float("inf"), WAIT, "the dispatcher to find it locked")
        passes: list[float] = []
        run_once = dispatcher._run_once

        def counted(conn: psycopg.Connection[Any]) -> float:
            passes.append(clock.monotonic())
            return run_once(conn)

        monkeypatch.setattr(dispatcher, "_run_once", counted)

        feed.limit = 0
        beaten_at = scalar(db, "SELECT clock_timestamp()")
        query = "SELECT count(*) FROM worker.worker WHERE heartbeat_at > %s"
        wait_until(lambda: scalar(db, query, beaten_at), WAIT, "a heartbeat")

        assert len(passes) < 20
        holder.rollback()
        feed.limit = 1
        dispatcher.wake()
        assert feed.was_put.wait(WAIT)


def test_what_is_paused_is_not_claimed_within_its_limit_either() -> None:
    room = Room(["default", "mail", "bulk"], ["charge"], 3)

    assert Flow.of(["bulk"], [], ["bulk", "mail", "other"]).through([room]) == [
        room._replace(queues=["default"], limited=["mail"], holding=[])
    ]


# In people's hands


def test_a_limit_is_stated_whole_and_the_one_before_is_told(db: psycopg.Connection) -> None:
    queues = Queues(db)
    before = [
        queues.limit("default", running=5, force=True),
        queues.limit("default", starts=10, per=timedelta(minutes=1)),
        queues.unlimit("default"),
        queues.unlimit("default"),
    ]

    assert [str(one) for one in before] == ["None", "5 running", "10 starts in 60 s", "None"]


@pytest.mark.parametrize(("per", "said"), [(0.1, "0.1 s"), (timedelta(days=30), "2592000 s")])
def test_a_limit_says_its_seconds_as_a_person_would(per: float | timedelta, said: str) -> None:
    assert str(QueueLimit.of("billing", None, 5, per)) == f"5 starts in {said}"


def test_a_limit_is_part_of_the_callers_transaction(db: psycopg.Connection) -> None:
    with db.transaction(force_rollback=True):
        limit(db, running=5)

    assert column(db, "SELECT queue FROM worker.queue_limit") == []


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "queue 'default': a limit of nothing: expected running, or starts and per"),
        ({"running": 0}, "queue 'default': running 0: expected a whole number from 1 to 1000000000"),
        ({"running": -1}, "running -1: expected"),
        ({"running": True}, "running True: expected"),
        ({"running": 1.5}, "running 1.5: expected"),
        ({"running": "5"}, "running '5': expected"),
        ({"starts": 0, "per": 1}, "starts 0: expected"),
        ({"starts": 1}, "starts without per: expected so many starts per so many seconds"),
        ({"running": 1, "per": 1}, "per without starts: expected"),
        ({"starts": 1, "per": 0}, "per 0: expected seconds from 0.001 to 31622400"),
        ({"starts": 1, "per": float("nan")}, "per nan: expected"),
        ({"starts": 1, "per": float("inf")}, "per inf: expected"),
        ({"starts": 1, "per": timedelta(0)}, "per datetime.timedelta(0): expected"),
    ],
)
def test_what_cannot_work_is_refused_by_name(db: psycopg.Connection, limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        limit(db, **limits)

    assert message in str(refused.value)


def test_a_name_that_nobody_uses_is_refused_with_the_one_meant(insert_job: InsertJob, db: psycopg.Connection) -> None:
    insert_job(queue="billing")

    with pytest.raises(NotFound, match=r"queue 'biling': no job and no live worker uses that name, did you mean 'bill"):
        Queues(db).limit("biling", running=1)


def test_a_limited_queue_is_listed_with_its_limit(insert_job: InsertJob, db: psycopg.Connection) -> None:
    insert_job()
    limit(db, running=5, starts=10, per=60)
    limit(db, "mail", running=1)
    take(db)

    default, mail = Queues(db).list()

    assert (default.max_running, default.max_starts, default.starts_per, default.starts) == (5, 10, 60.0, 1)
    assert (mail.name, mail.waiting, str(mail.limit), mail.starts) == ("mail", 0, "1 running", None)


def test_what_is_in_a_waiting_jobs_way_is_the_limit(insert_job: InsertJob, db: psycopg.Connection) -> None:
    lease = Lease(SCHEMA, duration=10.0, slots=1, pool_size=2)
    lease.register(db, [Room(["default"], ["charge"], 1)])
    for _ in range(3):
        insert_job()
    limit(db, running=1, starts=2, per=60)
    said = [Queues(db).obstacle("default", "charge")]
    [first] = take(db)
    said.append(Queues(db).obstacle("default", "charge"))
    end(db, first)
    said.append(Queues(db).obstacle("default", "charge"))
    [second] = take(db)
    end(db, second)
    said.append(Queues(db).obstacle("default", "charge"))

    limited = "queue 'default' is limited to 1 running, 2 starts in 60 s: "
    assert said[:3] == [None, f"{limited}as many run already", None]
    assert str(said[3]).startswith(f"{limited}the next may start at 20")


def test_a_queue_without_a_limit_leaves_no_mark(insert_job: InsertJob, db: psycopg.Connection) -> None:
    insert_job()
    limit(db, "mail", running=1)

    assert len(take(db, limited=["mail"], queues=["default"])) == 1
    assert scalar(db, "SELECT count(*) FROM worker.rate_start") == 0
    assert column(db, "SELECT turn FROM worker.queue_gate") == [0]
