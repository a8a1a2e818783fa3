"""Lanes: so many at once over the whole fleet and no more, in order if asked, and a full lane holds nobody else up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.factories import InThread, column, scalar
from tests.plans import num_blocks
from tests.queue.conftest import SCHEMA, claim
from tests.waiting import wait_until
from worker import ConfigError, Limit, PostgresBroker, SignatureError, job
from worker.queue import session
from worker.queue.claim import Claim
from worker.queue.history import History
from worker.queue.identity import uuid7
from worker.queue.insertion import insert
from worker.queue.jobs import JobFilter, Jobs
from worker.queue.lane_statements import ADMIT_JOBS
from worker.queue.lanes import admit, sweep, what_was_admitted
from worker.queue.lease_statements import RESCUE_JOBS
from worker.queue.marks import Marks
from worker.queue.new_job import NewJob
from worker.queue.settlement import Outcome, Settlement, settle
from worker.queue.statements import CLAIM_JOBS, PROMOTE_DUE

Send = Callable[..., UUID]


@pytest.fixture(autouse=True)
def _history(db: psycopg.Connection) -> None:
    History(SCHEMA).maintain(db)


@pytest.fixture
def send(db: psycopg.Connection) -> Send:
    """Sends a job with a limit, as `@job(limit=...)` does; without a *lane*, one without."""

    def send(
        lane: str | None = "a", *, size: int = 1, in_order: bool = False, delay: float = 0.0, job_id: UUID | None = None
    ) -> UUID:
        named = f'{{"lane": {{"name": "{lane}", "size": {size}, "in_order": {str(in_order).lower()}}}}}'
        options = "{}" if lane is None else named
        new = NewJob(job_id or uuid7(), "default", "charge", 0, delay, 0.0, "{}", options, None)
        insert(db, SCHEMA, [new])
        return new.id

    return send


def take(db: psycopg.Connection, **options: Any) -> list[Claim]:
    """Admit and claim, as each pass of a dispatcher does."""
    admit(db, SCHEMA)
    return claim(db, **options)


def ids(claims: list[Claim]) -> list[UUID]:
    return [one.id for one in claims]


def end(db: psycopg.Connection, one: Claim, outcome: Outcome = Outcome.DONE, delay: float = 0.0) -> None:
    assert settle(db, SCHEMA, [Settlement(*one.proof, outcome, delay)])


def states(db: psycopg.Connection) -> list[str]:
    return column(db, "SELECT state FROM worker.job ORDER BY rank, id")


# So many at once


def test_no_more_of_a_lane_run_than_its_size(send: Send, db: psycopg.Connection) -> None:
    sent = [send(size=2) for _ in range(5)]

    assert ids(take(db)) == sent[:2]
    send(size=2)
    assert take(db) == []


def test_the_next_comes_in_when_one_is_done(send: Send, db: psycopg.Connection) -> None:
    sent = [send(size=2) for _ in range(5)]
    first, _ = take(db)

    end(db, first)

    assert ids(take(db)) == [sent[2]]


@pytest.mark.parametrize("outcome", [Outcome.DONE, Outcome.DEAD])
def test_a_job_that_is_over_gives_its_place_up(send: Send, db: psycopg.Connection, outcome: Outcome) -> None:
    _, second = send(), send()
    [one] = take(db)

    end(db, one, outcome)

    assert ids(take(db)) == [second]


def test_a_job_that_is_retried_later_gives_its_place_up_meanwhile(send: Send, db: psycopg.Connection) -> None:
    _, second = send(), send()
    [one] = take(db)

    end(db, one, Outcome.RETRY, delay=60)

    assert ids(take(db)) == [second]


def test_a_retried_job_waits_for_a_place_again(send: Send, db: psycopg.Connection) -> None:
    first, second = send(), send()
    [one] = take(db)
    end(db, one, Outcome.RETRY, delay=60)
    [other] = take(db)
    db.execute("UPDATE worker.job SET due_at = now() - interval '1 second' WHERE id = %s", [first])
    db.execute(SCHEMA.render(PROMOTE_DUE).encode(), {"due_low": None})

    assert (other.id, take(db)) == (second, [])
    end(db, other)
    assert ids(take(db)) == [first]


def test_a_full_lane_holds_up_neither_other_lanes_nor_jobs_without(send: Send, db: psycopg.Connection) -> None:
    for _ in range(20):
        send("hot")
    take(db, limit=1)
    other, free = send("other"), send(None)

    assert ids(take(db, limit=2)) == [other, free]


def test_a_job_deleted_by_hand_gives_its_place_up(send: Send, db: psycopg.Connection) -> None:
    first, second = send(), send()
    take(db)

    db.execute("DELETE FROM worker.job WHERE id = %s", [first])

    assert ids(take(db)) == [second]


def test_a_rescued_job_keeps_its_place_and_nobody_gets_it_too(send: Send, db: psycopg.Connection) -> None:
    first, _ = send(), send()
    dead = uuid4()
    take(db, worker=dead)

    db.execute(SCHEMA.render(RESCUE_JOBS).encode(), {"dead": dead, "max_crashes": 3, "reason": "crashed"})

    assert ids(take(db)) == [first]
    assert take(db) == []


def test_a_quarantined_job_gives_its_place_up(send: Send, db: psycopg.Connection) -> None:
    _, second = send(), send()
    dead = uuid4()
    take(db, worker=dead)

    db.execute(SCHEMA.render(RESCUE_JOBS).encode(), {"dead": dead, "max_crashes": 1, "reason": "crashed"})

    assert ids(take(db)) == [second]


def test_a_job_for_later_waits_for_a_place_when_its_time_has_come(send: Send, db: psycopg.Connection) -> None:
    first, later = send(), send(delay=60)
    [one] = take(db)
    db.execute("UPDATE worker.job SET due_at = now() - interval '1 second' WHERE id = %s", [later])
    db.execute(SCHEMA.render(PROMOTE_DUE).encode(), {"due_low": None})

    assert (one.id, take(db)) == (first, [])
    end(db, one)
    assert ids(take(db)) == [later]


def test_a_job_sent_again_under_its_id_waits_for_a_place_again(send: Send, db: psycopg.Connection) -> None:
    first, second = send(), send()
    take(db)

    send(job_id=first)

    assert ids(take(db)) == [second]


def test_a_redriven_job_waits_for_a_place(send: Send, db: psycopg.Connection) -> None:
    first = send()
    [one] = take(db)
    end(db, one, Outcome.DEAD)
    second = send()
    take(db)

    Jobs(db).redrive(JobFilter(states=["dead"], id=first))

    assert states(db) == ["running", "held"]
    assert second != first


def test_an_older_worker_finds_nothing_that_nobody_has_let_in(send: Send, db: psycopg.Connection) -> None:
    send()

    assert claim(db) == []


# Races


def test_racing_workers_never_run_more_than_the_size(send: Send, database: str, db: psycopg.Connection) -> None:
    lanes, size = 5, 2
    made = {send(f"lane {number % lanes}", size=size) for number in range(100)}
    crowded: list[Any] = []

    def work() -> list[UUID]:
        done: list[UUID] = []
        with psycopg.connect(database, autocommit=True) as conn:
            while len(made - set(column(conn, "SELECT id FROM worker.job_history"))) > 0:
                with conn.pipeline():
                    admitted = admit(conn, SCHEMA)
                what_was_admitted(admitted)
                claims = claim(conn, limit=3)
                query = "SELECT lane FROM worker.job WHERE state = 'running' GROUP BY lane HAVING count(*) > %s"
                crowded.extend(column(conn, query, size))
                for one in claims:
                    end(conn, one)
                done += ids(claims)
        return done

    workers = [InThread(work) for _ in range(4)]
    done = [job_id for worker in workers for job_id in worker.result(60)]

    assert (crowded, len(done), set(done)) == ([], 100, made)


def test_a_lane_in_anothers_hands_is_left_for_the_next_look(send: Send, database: str, db: psycopg.Connection) -> None:
    send()
    [one] = take(db)
    second = send()
    end(db, one)
    with psycopg.connect(database) as other:
        admit(other, SCHEMA)

        left = what_was_admitted(admit(db, SCHEMA)).left_some

    assert left
    assert ids(take(db)) == [second]


def test_who_saw_the_lane_before_another_let_jobs_in_lets_in_nobody(
    send: Send, database: str, db: psycopg.Connection
) -> None:
    """Its snapshot is older than its hold on the gate; here it waits between the two, elsewhere it would be luck."""
    send()
    [one] = take(db)
    end(db, one)
    first, _ = send(), send()
    hold = "gate.lane = ANY(ARRAY(SELECT lane FROM knocks))"
    text = SCHEMA.render(ADMIT_JOBS)
    assert text.count(hold) == 1
    waiting = text.replace(hold, f"{hold} AND pg_advisory_xact_lock(7)::text = ''").encode()

    def admit_late() -> int:
        with psycopg.connect(database, autocommit=True) as conn:
            row = conn.execute(waiting, {"wake": "worker_wake"}).fetchone()
            return int(row[0]) if row is not None else 0

    with psycopg.connect(database) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(7)")
        late = InThread(admit_late)
        query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        wait_until(lambda: scalar(db, query), 15.0, "the late one to wait")
        admit(db, SCHEMA)
        holder.commit()

    assert late.result() == 1
    assert ids(claim(db)) == [first]


# In order


def test_in_order_a_retry_keeps_the_later_ones_waiting(send: Send, db: psycopg.Connection) -> None:
    first, second = send(in_order=True), send(in_order=True)
    [one] = take(db)

    end(db, one, Outcome.RETRY, delay=60)

    assert take(db) == []
    db.execute("UPDATE worker.job SET due_at = now() - interval '1 second' WHERE id = %s", [first])
    db.execute(SCHEMA.render(PROMOTE_DUE).encode(), {"due_low": None})
    [again] = take(db)
    assert again.id == first
    end(db, again, Outcome.DEAD)
    assert ids(take(db)) == [second]


def test_in_order_jobs_run_as_they_were_due(send: Send, db: psycopg.Connection) -> None:
    sent = [send(in_order=True) for _ in range(10)]
    ran = []
    while claims := take(db):
        ran += ids(claims)
        end(db, claims[0])

    assert ran == sent


def test_in_order_nobody_passes_a_head_that_is_locked(send: Send, database: str, db: psycopg.Connection) -> None:
    first, _ = send(in_order=True), send(in_order=True)
    with psycopg.connect(database) as other:
        other.execute("SELECT FROM worker.job WHERE id = %s FOR UPDATE", [first])

        assert take(db) == []

    sweep(db, SCHEMA)
    assert ids(take(db)) == [first]


# Housekeeping


def test_a_knock_that_went_astray_is_made_up_for(send: Send, db: psycopg.Connection) -> None:
    sent = [send("a"), send("b")]
    db.execute("DELETE FROM worker.knock")

    assert take(db) == []
    sweep(db, SCHEMA)
    assert ids(take(db)) == sent


def test_gates_of_lanes_that_nobody_uses_are_forgotten(send: Send, db: psycopg.Connection) -> None:
    send("used"), send("over")
    for one in take(db):
        if scalar(db, "SELECT lane FROM worker.job WHERE id = %s", one.id) == "over":
            end(db, one)
    take(db)

    sweep(db, SCHEMA)

    assert column(db, "SELECT lane FROM worker.gate") == ["used"]


def test_a_job_without_a_limit_leaves_no_mark(send: Send, db: psycopg.Connection) -> None:
    send(None)
    [one] = claim(db)
    end(db, one)

    assert scalar(db, "SELECT count(*) FROM worker.knock") == 0


# Cost

LINE = """
    INSERT INTO worker.job (id, queue, actor, state, due_at, rank, enqueued_at, args, options)
    SELECT gen_random_uuid(), 'default', 'charge', 'available', due, due, now(), '{}',
        '{"lane": {"name": "hot", "size": 2, "in_order": false}}'
    FROM (SELECT now() - n * interval '1 second' AS due FROM generate_series(1, 20000) AS n) AS made"""


@pytest.fixture
def line(db: psycopg.Connection) -> None:
    """20,000 jobs that wait before a lane of two, which is full; a session like the dispatcher's."""
    db.execute(LINE)
    admit(db, SCHEMA)
    db.execute("VACUUM ANALYZE worker.job, worker.knock, worker.gate")
    session.prepare(db, statement_timeout=10.0)


@pytest.mark.usefixtures("line")
def test_a_claim_does_not_walk_a_line(send: Send, db: psycopg.Connection) -> None:
    assert len(claim(db)) == 2
    free = send(None)

    room = {"limit": 10, "free": 10, "holding": [], "checkouts": 0, "idle": False, "worker": uuid4()}
    blocks = num_blocks(db, CLAIM_JOBS, {**Marks().parameters(["default"]), "actors": ["charge"], **room})

    assert blocks < 100
    assert [one.id for one in claim(db)] == [free]


@pytest.mark.usefixtures("line")
def test_letting_one_in_does_not_walk_the_line(db: psycopg.Connection) -> None:
    end(db, claim(db)[0])

    blocks = num_blocks(db, ADMIT_JOBS, {"wake": SCHEMA.channels["wake"]})

    assert blocks < 200
    admit(db, SCHEMA)
    assert len(claim(db)) == 1


# Declaring


def test_lanes_are_made_by_the_values_of_arguments(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, limit=Limit(3, by=("customer", "kind")))
    def bill(customer: int, invoice: int, kind: str = "new") -> None: ...

    bill.send(7, 1)
    bill.send(customer=7, invoice=2, kind="old")

    assert db.execute("SELECT lane, lane_size, in_order FROM worker.job ORDER BY lane").fetchall() == [
        ('bill customer=7 kind="new"', 3, False),
        ('bill customer=7 kind="old"', 3, False),
    ]


def test_actors_share_a_lane_by_its_name(broker: PostgresBroker, db: psycopg.Connection) -> None:
    shared = Limit(1, name="bank", in_order=True)

    @job(broker=broker, limit=shared)
    def pay() -> None: ...

    @job(broker=broker, limit=shared)
    def collect() -> None: ...

    pay.send()
    collect.send()

    assert column(db, "SELECT lane FROM worker.job") == ["bank", "bank"]


def test_a_key_of_ten_thousand_characters_is_a_lane_like_any_other(
    broker: PostgresBroker, db: psycopg.Connection
) -> None:
    @job(broker=broker, limit=Limit(by="name"))
    def greet(name: str) -> None: ...

    for name in ("a" * 10_000, "a" * 9_999 + "b", "a" * 10_000):
        greet.send(name)

    lanes = column(db, "SELECT lane FROM worker.job")
    assert (len(set(lanes)), max(map(len, lanes)) <= 300) == (2, True)


def test_a_limit_by_what_is_no_argument_is_refused(broker: PostgresBroker) -> None:
    with pytest.raises(SignatureError, match=r"limit by 'custmer': it has no such argument \(it has: customer\)"):

        @job(broker=broker, limit=Limit(by="custmer"))
        def bill(customer: int) -> None: ...


@pytest.mark.parametrize("size", [0, -1, 1.5, True])
def test_a_size_that_cannot_work_is_refused(size: Any) -> None:
    with pytest.raises(ConfigError, match="expected a whole number from 1 on"):
        Limit(size)


def test_in_order_is_one_at_a_time() -> None:
    with pytest.raises(ConfigError, match="expected a size of 1"):
        Limit(2, in_order=True)


@pytest.mark.parametrize(
    "other", [Limit(2, name="bank"), Limit(1, name="bank", in_order=True), Limit(2, name="charge")]
)
def test_actors_that_share_a_limit_with_other_numbers_are_refused(broker: PostgresBroker, other: Limit) -> None:
    @job(broker=broker, limit=Limit(1, name=None if other.name == "charge" else "bank"))
    def charge() -> None: ...

    said = rf"^job 'refund': limit '{other.name}' is {other.numbers}, and that of job 'charge' is 1 at once: "
    with pytest.raises(ConfigError, match=said):

        @job(broker=broker, limit=other)
        def refund() -> None: ...


def test_actors_that_share_a_limit_may_say_it_twice(broker: PostgresBroker) -> None:
    @job(broker=broker, limit=Limit(3, name="bank"))
    def charge() -> None: ...

    @job(broker=broker, limit=Limit(3, name="bank"))
    def refund() -> None: ...


@pytest.mark.parametrize(
    ("lane", "constraint"),
    [
        ('{"name": "a"}', "job_lane_has_size"),
        ('{"name": "a", "size": 0}', "job_lane_has_size"),
        ('{"rate": {"name": "a"}}', "job_rate_has_size"),
        ('{"rate": {"name": "a", "size": 1}}', "job_rate_has_size"),
    ],
)
def test_a_row_made_by_hand_that_would_stop_its_lane_is_refused(
    db: psycopg.Connection, lane: str, constraint: str
) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match=constraint):
        db.execute("INSERT INTO worker.job (actor, options) VALUES ('charge', %s)", [f'{{"lane": {lane}}}'])
