"""Claims stay flat while another session holds a transaction open, and no job is passed by for good."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, LiteralString
from uuid import UUID, uuid4

import psycopg
import pytest
from structlog.testing import capture_logs

from tests.factories import backend_pid, scalar
from tests.plans import num_blocks
from tests.queue.conftest import SCHEMA, InsertJob, NotingFeed, dispatching
from tests.queue.test_dispatcher import WAIT, a_job
from tests.queue.test_lease import Clock
from tests.waiting import wait_until
from worker import clock
from worker.queue import session
from worker.queue.exchange import Errand, exchange, follow
from worker.queue.feed import Room
from worker.queue.flow import Flow
from worker.queue.history import History
from worker.queue.insertion import insert
from worker.queue.lease import Lease
from worker.queue.lease_statements import FIND_DEAD, RENEW_LEASE, RESCUE_JOBS
from worker.queue.marks import Marks
from worker.queue.new_job import NewJob
from worker.queue.ration import Ration
from worker.queue.settlement import Outcome, Settlement, settle
from worker.queue.statements import CLAIM_JOBS, PROMOTE_DUE

# Their ranks are between that of a job that is `LATE` and now.
COME = """
    WITH made AS (
        INSERT INTO worker.job (actor, state, due_at, rank, claimed_by)
        SELECT 'charge', %(state)s, due, due, CASE WHEN %(state)s = 'running' THEN %(worker)s::uuid END
        FROM (SELECT now() - n * interval '100 milliseconds' AS due FROM generate_series(100, 3100) AS n) AS made
    )
    SELECT"""
LATE = 3600.0
# The longest until a full look, and more than a mark's step.
A_WHILE = 31.0


class Passes:
    """A dispatcher without a thread: exchanges with their marks, one at a time."""

    def __init__(self, conn: psycopg.Connection) -> None:
        self.conn = conn
        self.marks = Marks()
        self.lease = Lease(SCHEMA, duration=10.0, slots=1, pool_size=2)
        self.lease.register(conn)

    def look(
        self,
        limit: int = 10,
        *,
        actors: Sequence[str] = ("charge",),
        idle: bool = True,
        new: Sequence[NewJob] = (),
        promoting: bool = False,
        admitting: bool = False,
    ) -> list[UUID]:
        """One pass with a heartbeat and, if there is room, a claim; what was claimed."""
        room = Room(["default"], list(actors), limit, idle=idle)
        errand = Errand(
            new=new,
            rooms=[room] if limit else [],
            promoting=promoting,
            admitting=admitting,
            renewing=True,
            served=[room],
            marks=self.marks,
            search=self.marks.search([room], moving=True),
            mine=[] if self.marks.are_used else None,
        )
        reply = exchange(self.conn, SCHEMA, self.lease, errand)
        follow(errand, reply, workers=1)
        self.claimed = [claim for claims in reply.claims for claim in claims]
        self.seen = reply.look
        return [claim.id for claim in self.claimed]

    def begin(self) -> None:
        """Set the marks anew: at the first job of the queue that there is by now."""
        self.marks.forget()
        self.look(0)
        self.look(0)
        assert self.marks.are_used

    def parameters(self) -> dict[str, Any]:
        """Of the claim, the promotion and the heartbeat, as they would be asked now."""
        mine: list[UUID] | None = [] if self.marks.are_used else None
        return {
            **self.lease.parameters([Room(["default"], ["charge"], 10)], Flow(), self.marks, mine),
            "limit": 10,
            "free": 10,
            "holding": [],
            "checkouts": 0,
            "idle": True,
        }


@pytest.fixture(autouse=True)
def _history(db: psycopg.Connection) -> None:
    History(SCHEMA).maintain(db)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    passed = Clock()
    monkeypatch.setattr(clock, "monotonic", passed)
    return passed


@pytest.fixture
def holder(database: str) -> Iterator[psycopg.Connection]:
    """A session that keeps from being vacuumed whatever dies from now on, until it is rolled back."""
    with psycopg.connect(database, application_name="a report") as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.execute("SELECT")
        yield conn


@pytest.fixture
def passes(db: psycopg.Connection, holder: psycopg.Connection, time: Clock) -> Passes:
    """Where thousands of jobs have passed behind an open transaction, and marks are used."""
    pass_by(db)
    passes = Passes(db)
    passes.begin()
    return passes


def pass_by(db: psycopg.Connection, state: str = "available", worker: UUID | None = None) -> None:
    db.execute(COME, {"state": state, "worker": worker or uuid4()})
    db.execute("DELETE FROM worker.job WHERE state = %s", [state])


def blocks(db: psycopg.Connection, statement: LiteralString, parameters: dict[str, Any]) -> int:
    """How many *statement* reads, which is undone; planned as in a dispatcher's session."""
    session.prepare(db, statement_timeout=10.0)
    return num_blocks(db, statement, parameters)


# Flat


@pytest.mark.parametrize("statement", [CLAIM_JOBS, RENEW_LEASE, PROMOTE_DUE], ids=["claim", "heartbeat", "promotion"])
def test_what_passed_behind_an_open_transaction_costs_nothing(
    insert_job: InsertJob, db: psycopg.Connection, holder: psycopg.Connection, time: Clock, statement: LiteralString
) -> None:
    passes = Passes(db)
    for _ in range(10):
        insert_job()
    blocks(db, statement, passes.parameters())
    before = blocks(db, statement, passes.parameters())
    db.execute("DELETE FROM worker.job")
    for state in ("available", "scheduled", "running"):
        pass_by(db, state)
    for _ in range(10):
        insert_job()
    without = blocks(db, statement, passes.parameters())

    passes.look(0)
    passes.look(0)

    assert without > 2 * before
    assert blocks(db, statement, passes.parameters()) <= 1.5 * before


def test_looking_for_jobs_without_a_worker_passes_those_of_workers_that_live(
    insert_job: InsertJob, db: psycopg.Connection, holder: psycopg.Connection
) -> None:
    passes = Passes(db)
    look = {"worker": passes.lease.worker_id, "countdown": 1.5, "unbroken": True}
    blocks(db, FIND_DEAD, look)
    before = blocks(db, FIND_DEAD, look)
    pass_by(db, "running", passes.lease.worker_id)
    insert_job(claimed_by=passes.lease.worker_id)

    assert blocks(db, FIND_DEAD, look) < 2 * before
    orphan = uuid4()
    insert_job(claimed_by=orphan)
    assert db.execute(SCHEMA.render(FIND_DEAD).encode(), look).fetchall() == [(orphan,)]


def test_marks_follow_the_claims(insert_job: InsertJob, passes: Passes, db: psycopg.Connection, time: Clock) -> None:
    for number in range(200):
        insert_job(due_in=number * 0.03 - 9)
    passes.begin()
    first = blocks(db, CLAIM_JOBS, passes.parameters())

    for _ in range(19):
        time.advance(1)
        assert len(passes.look()) == 10
        assert settle(db, SCHEMA, [Settlement(*one.proof, Outcome.DONE) for one in passes.claimed])

    assert blocks(db, CLAIM_JOBS, passes.parameters()) <= 1.5 * first
    assert passes.marks.parameters(["default"])["queues"] == ["default"], "none of them is a stray"


def test_where_the_table_has_been_vacuumed_no_marks_are_used(db: psycopg.Connection, time: Clock) -> None:
    passes = Passes(db)
    pass_by(db)
    db.execute("VACUUM worker.job")

    passes.look(0)

    assert not passes.marks.are_used


def test_no_marks_are_used_any_more_when_the_transaction_has_ended(
    passes: Passes, holder: psycopg.Connection, db: psycopg.Connection, time: Clock
) -> None:
    holder.rollback()
    db.execute("VACUUM worker.job")

    time.advance(A_WHILE)
    passes.look(0)

    assert not passes.marks.are_used


# Nothing is passed by for good


def found_in_time(passes: Passes, time: Clock, **options: Any) -> list[UUID]:
    """What is claimed within the time of a full look."""
    time.advance(A_WHILE)
    return passes.look(**options) + passes.look(**options)


def test_a_job_below_the_mark_is_found_by_the_next_full_look(
    insert_job: InsertJob, passes: Passes, time: Clock
) -> None:
    late = insert_job(due_in=-LATE)

    assert passes.look() == []
    assert found_in_time(passes, time) == [late]


def test_a_job_sent_in_a_transaction_that_is_committed_late_is_found(
    database: str, passes: Passes, time: Clock
) -> None:
    with psycopg.connect(database) as other:
        late = a_job()
        insert(other, SCHEMA, [late])
        other.execute("UPDATE worker.job SET rank = now() - interval '1 minute' WHERE id = %s", [late.id])
        passes.look()
        other.commit()

    assert found_in_time(passes, time) == [late.id]


def test_a_job_of_a_high_priority_is_found_and_comes_first(
    insert_job: InsertJob, passes: Passes, db: psycopg.Connection, time: Clock
) -> None:
    insert_job()
    urgent = insert_job(priority=-60)

    time.advance(A_WHILE)
    passes.look(0)

    assert passes.look(limit=1) == [urgent]


def test_more_jobs_below_the_mark_than_are_kept_in_mind_are_all_claimed_in_their_order(
    insert_job: InsertJob, passes: Passes, time: Clock
) -> None:
    late = [insert_job(due_in=-LATE + number) for number in range(120)]

    claimed = found_in_time(passes, time, limit=50)
    claimed += passes.look(limit=50) + passes.look(limit=50)

    assert claimed == late


def test_a_full_look_that_would_take_too_long_is_taken_in_slices_down_to_the_first_rank(
    insert_job: InsertJob, passes: Passes, time: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.queue.marks._SLICE", 0.0)
    monkeypatch.setattr("worker.queue.marks._NARROWEST", LATE / 5)
    passes.begin()
    time.advance(A_WHILE)
    passes.look(0)
    late = insert_job(due_in=-LATE)
    looks = 0
    while passes.look() != [late]:
        time.advance(A_WHILE)
        looks += 1
        assert looks < 20

    assert looks >= 5


def test_jobs_below_the_mark_that_lie_close_together_are_kept_in_mind_once(
    insert_job: InsertJob, passes: Passes, time: Clock
) -> None:
    for number in range(3):
        insert_job(due_in=-LATE + number * 0.0001)
    for _ in range(4):
        time.advance(A_WHILE / 4)
        passes.look(0)

    assert len(passes.marks._marks["default"].strays) == 3


def test_jobs_below_the_mark_that_lie_close_together_fill_a_claim(
    insert_job: InsertJob, passes: Passes, time: Clock
) -> None:
    jobs = [insert_job(due_in=-LATE + number * 1e-5) for number in range(10)]
    time.advance(A_WHILE)
    passes.look(0)

    assert sorted(passes.look(limit=10)) == sorted(jobs)


def test_among_jobs_of_a_low_priority_an_ordinary_one_is_found_at_once_and_comes_first(
    insert_job: InsertJob, passes: Passes, db: psycopg.Connection
) -> None:
    later = [insert_job(priority=10, due_in=number - 10.0) for number in range(3)]
    passes.begin()
    lows = passes.marks.parameters(["default"])["lows"]
    assert lows[0] > scalar(db, "SELECT extract(epoch FROM now())::float8")
    ordinary = insert_job()

    assert passes.look() == [ordinary, *later]


def test_a_scheduled_job_that_was_due_before_the_mark_is_promoted(
    insert_job: InsertJob, passes: Passes, time: Clock
) -> None:
    late = insert_job(state="scheduled", due_in=-LATE)

    time.advance(A_WHILE)
    passes.look(0)
    passes.look(0)
    assert passes.seen is not None
    assert (passes.seen.next_due or 0) < 0
    passes.look(0, promoting=True)

    assert passes.look() == [late]


def test_a_job_that_others_had_locked_is_passed_by_and_claimed_when_it_is_free(
    insert_job: InsertJob, database: str, passes: Passes, time: Clock
) -> None:
    jobs = [insert_job(due_in=number - 60) for number in range(6)]
    passes.begin()
    with psycopg.connect(database) as other:
        other.execute("SELECT FROM worker.job WHERE id = %s FOR UPDATE", [jobs[0]])
        for one in jobs[1:4]:
            time.advance(1)
            assert passes.look(limit=1) == [one]
        assert len(passes.marks.parameters(["default"])["queues"]) == 2, "the mark has gone on and left it as a stray"

    assert passes.look(limit=1) == [jobs[0]], "without a full look"
    assert passes.look() == jobs[4:]


def test_a_suspect_that_was_passed_by_runs_when_the_worker_is_idle(
    insert_job: InsertJob, passes: Passes, db: psycopg.Connection, time: Clock
) -> None:
    suspect, *others = [insert_job(due_in=number - 60) for number in range(4)]
    passes.begin()
    # Now is in that part of the suspect's minute in which the busy pass it by.
    db.execute("UPDATE worker.job SET suspect_since = now() - interval '30 seconds' WHERE id = %s", [suspect])
    for one in others:
        time.advance(1)
        assert passes.look(limit=1, idle=False) == [one]

    assert passes.look(limit=1) == [suspect]


def test_a_job_of_a_dead_worker_is_found_with_the_rank_that_it_had(
    insert_job: InsertJob, passes: Passes, db: psycopg.Connection, time: Clock
) -> None:
    dead = uuid4()
    lost = insert_job(claimed_by=dead, due_in=-LATE)
    db.execute(SCHEMA.render(RESCUE_JOBS).encode(), {"dead": dead, "max_crashes": 3, "reason": ""})

    assert found_in_time(passes, time) == [lost]


def test_jobs_of_an_actor_that_is_resumed_or_becomes_known_are_found_at_once(
    insert_job: InsertJob, passes: Passes
) -> None:
    early = insert_job(actor="refund", due_in=-LATE)
    assert passes.look() == []

    passes.look(actors=["charge", "refund"])

    assert passes.look(actors=["charge", "refund"]) == [early]


def test_a_job_that_is_let_into_its_lane_is_claimed_without_a_full_look(
    passes: Passes, db: psycopg.Connection, time: Clock
) -> None:
    limited = a_job(options='{"lane": {"name": "a", "size": 1, "in_order": false}}')
    insert(db, SCHEMA, [limited])
    db.execute("UPDATE worker.job SET rank = now() - interval '10 minutes'")
    assert passes.look(admitting=True) == []

    assert passes.look() == [limited.id]


def test_a_job_that_is_released_is_claimed_at_once(
    insert_job: InsertJob, passes: Passes, db: psycopg.Connection
) -> None:
    job_id = insert_job()
    assert passes.look() == [job_id]
    settle(db, SCHEMA, [Settlement(*one.proof, Outcome.RELEASED) for one in passes.claimed])

    assert passes.look() == [job_id]


def test_a_cancelled_job_is_told_to_its_worker_by_a_look_that_is_not_full(
    insert_job: InsertJob, passes: Passes, db: psycopg.Connection
) -> None:
    mine, others = insert_job(claimed_by=passes.lease.worker_id), insert_job(claimed_by=uuid4())
    db.execute("UPDATE worker.job SET cancelled_at = now()")

    beat = passes.lease.beat(db, [], mine=[mine, others])
    look = passes.lease.hear(beat)

    assert look is not None
    assert look.cancelled == {str(mine): 1}


def test_a_full_look_is_rarer_the_dearer_it_is_and_the_more_share_it_but_never_rarer_than_each_30_seconds(
    time: Clock,
) -> None:
    ration = Ration()
    waits = []
    for took, sharers in ((0.0, 8), (0.01, 1), (0.01, 8), (5.0, 8)):
        ration.spend(took, sharers)
        waits.append(ration.again_at - time.seconds)

    assert waits == pytest.approx([0.0, 0.2, 1.6, 30.0])


def test_however_cheap_a_full_look_is_an_idle_worker_makes_one_in_a_second(passes: Passes, time: Clock) -> None:
    assert passes.marks.again_at - time.seconds == pytest.approx(1.0)

    time.advance(1.0)
    passes.look(0)

    assert passes.marks.again_at - time.seconds == pytest.approx(1.0)


def test_a_heartbeat_that_looks_at_all_and_comes_near_to_its_timeout_is_put_off(time: Clock) -> None:
    ration = Ration(too_long=1.0)

    ration.spend(1.5)

    assert ration.again_at - time.seconds > 60


# The dispatcher


def test_a_job_below_the_mark_is_found_by_a_dispatcher_whom_nobody_told(
    insert_job: InsertJob, holder: psycopg.Connection, database: str, db: psycopg.Connection
) -> None:
    pass_by(db)
    feed = NotingFeed(limit=5)
    with dispatching(database, feed) as dispatcher:
        wait_until(lambda: dispatcher._marks.parameters(["default"])["lows"], WAIT, "a mark")
        late = insert_job(due_in=-LATE)

        assert feed.was_put.wait(WAIT)

    assert [one.id for one in feed.put_here] == [late]


def test_a_job_that_another_worker_has_rescued_is_found_within_seconds(
    insert_job: InsertJob,
    holder: psycopg.Connection,
    database: str,
    db: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.queue.ration._SHARE", 1e-9)  # each full look is the last one for 30 s
    dead = Lease(SCHEMA, duration=60.0, slots=1, pool_size=2)
    dead.register(db)
    pass_by(db)
    feed = NotingFeed(limit=5)
    with dispatching(database, feed) as dispatcher:
        wait_until(lambda: dispatcher._marks.parameters(["default"])["lows"], WAIT, "a mark")
        lost = insert_job(claimed_by=dead.worker_id, due_in=-LATE)
        with db.transaction():
            db.execute(SCHEMA.render(RESCUE_JOBS).encode(), {"dead": dead.worker_id, "max_crashes": 3, "reason": ""})
            dead.unregister(db)

        assert feed.was_put.wait(WAIT)

    assert [one.id for one in feed.put_here] == [lost]


def test_a_dispatcher_says_once_who_keeps_dead_rows_from_being_vacuumed_and_once_that_nobody_does(
    holder: psycopg.Connection, database: str, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.queue.horizon._INTERVAL", 0.0)
    pass_by(db)
    with capture_logs() as logs, dispatching(database) as dispatcher:
        wait_until(lambda: told(logs), WAIT, "the log")
        dispatcher.wake()
        holder.rollback()
        db.execute("VACUUM worker.job")
        wait_until(lambda: len(told(logs)) > 1, WAIT, "the log")

    held, free = told(logs)
    assert (held["event"], free["event"]) == ("vacuum.held", "vacuum.free")
    assert (held["pid"], held["application"], held["state"]) == (backend_pid(holder), "a report", "idle in transaction")
    assert held["seconds"] > 0


def told(logs: Sequence[Any]) -> list[Any]:
    return [line for line in logs if line["event"].startswith("vacuum.")]
