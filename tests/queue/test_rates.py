"""Rates: so many starts within some seconds over the whole fleet and no more, and nobody else held up."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.factories import InThread, column, scalar
from tests.queue.conftest import SCHEMA, claim
from worker import ConfigError, Limit, PostgresBroker, Rate, SignatureError, job
from worker.queue import rates
from worker.queue.claim import Claim
from worker.queue.feed import Room
from worker.queue.history import History
from worker.queue.identity import uuid7
from worker.queue.insertion import insert
from worker.queue.jobs import JobFilter, Jobs
from worker.queue.lanes import admit
from worker.queue.lease_statements import RESCUE_JOBS
from worker.queue.new_job import NewJob
from worker.queue.queues import Queues
from worker.queue.rate_statements import MERGE_STARTS
from worker.queue.rates import what_is_left
from worker.queue.schema import Schema
from worker.queue.settlement import Outcome, Settlement, settle

Send = Callable[..., UUID]


@pytest.fixture(autouse=True)
def _history(db: psycopg.Connection) -> None:
    History(SCHEMA).maintain(db)


@pytest.fixture
def send(db: psycopg.Connection) -> Send:
    """Sends a job with a rate, as `@job(rate=...)` does; with a *lane* of one it has a limit too."""

    def send(
        rate: str = "a",
        *,
        size: int = 2,
        per: float = 60.0,
        first: bool = False,
        lane: str | None = None,
        actor: str = "charge",
    ) -> UUID:
        limit = "" if lane is None else f'"name": "{lane}", "size": 1, "in_order": false, '
        rated = f'"rate": {{"name": "{rate}", "size": {size}, "per": {per}, "first": {str(first).lower()}}}'
        new = NewJob(uuid7(), "default", actor, 0, 0.0, 0.0, "{}", f'{{"lane": {{{limit}{rated}}}}}', None)
        insert(db, SCHEMA, [new])
        return new.id

    return send


SERVED = [Room(["default"], ["charge", "refund"], 0)]


def clear(conn: psycopg.Connection, schema: Schema) -> psycopg.Cursor[Any]:
    """As a worker does that serves everything."""
    return rates.clear(conn, schema, SERVED)


def sweep(conn: psycopg.Connection, schema: Schema) -> None:
    rates.sweep(conn, schema, SERVED)


def take(db: psycopg.Connection, **options: Any) -> list[Claim]:
    """Admit, clear and claim, as two passes of a dispatcher do."""
    for _ in range(2):
        admit(db, SCHEMA)
        clear(db, SCHEMA)
    return claim(db, **options)


def ids(claims: list[Claim]) -> list[UUID]:
    return [one.id for one in claims]


def pass_by(db: psycopg.Connection, seconds: float) -> None:
    """So many seconds later, as far as rates know."""
    ago = timedelta(seconds=seconds)
    query = "UPDATE worker.rate_start SET started_at = started_at - %(ago)s, counts_until = counts_until - %(ago)s"
    db.execute(query, {"ago": ago})
    db.execute("UPDATE worker.rate_gate SET opens_at = opens_at - %(ago)s", {"ago": ago})


def states(db: psycopg.Connection) -> list[str]:
    return column(db, "SELECT state FROM worker.job ORDER BY rank, id")


def test_no_more_start_than_the_rate_allows(send: Send, db: psycopg.Connection) -> None:
    sent = [send() for _ in range(4)]

    assert ids(take(db)) == sent[:2]
    assert (take(db), states(db)) == ([], ["running", "running", "throttled", "throttled"])


def test_a_start_counts_when_its_job_is_over_too(send: Send, db: psycopg.Connection) -> None:
    for _ in range(3):
        send()
    settle(db, SCHEMA, [Settlement(*one.proof, Outcome.DONE) for one in take(db)])

    assert take(db) == []


def test_the_next_start_when_the_first_counts_no_more(send: Send, db: psycopg.Connection) -> None:
    sent = [send() for _ in range(5)]
    take(db, limit=1)
    pass_by(db, 30)
    take(db, limit=1)

    pass_by(db, 31)

    assert ids(take(db)) == [sent[2]]


def test_a_look_says_when_the_next_may_start(send: Send, db: psycopg.Connection) -> None:
    for _ in range(3):
        send()
    take(db)

    opens_in = what_is_left(clear(db, SCHEMA)).opens_in

    assert opens_in is not None
    assert 50 < opens_in <= 60


def test_what_is_cleared_and_not_started_counts(send: Send, db: psycopg.Connection) -> None:
    """However late a worker has a slot for it: else two windows' jobs could start in one."""
    for _ in range(4):
        send()
    clear(db, SCHEMA)
    pass_by(db, 120)
    clear(db, SCHEMA)

    assert states(db).count("available") == 2


def test_a_cleared_job_that_is_cancelled_leaves_its_start_to_another(send: Send, db: psycopg.Connection) -> None:
    sent = [send(size=1) for _ in range(2)]
    clear(db, SCHEMA)

    Jobs(db).cancel(JobFilter(id=sent[0], states=["available"]))

    assert ids(take(db)) == [sent[1]]


@pytest.mark.parametrize("outcome", [Outcome.RETRY, Outcome.RELEASED])
def test_a_run_that_comes_back_waits_for_another_start(send: Send, db: psycopg.Connection, outcome: Outcome) -> None:
    first = send(size=1)
    [one] = take(db)

    settle(db, SCHEMA, [Settlement(*one.proof, outcome)])

    assert take(db) == []
    pass_by(db, 61)
    assert ids(take(db)) == [first]


def test_a_rescued_job_waits_for_another_start(send: Send, db: psycopg.Connection) -> None:
    first, dead = send(size=1), uuid4()
    take(db, worker=dead)

    db.execute(SCHEMA.render(RESCUE_JOBS).encode(), {"dead": dead, "max_crashes": 3, "reason": "crashed"})

    assert take(db) == []
    pass_by(db, 61)
    assert ids(take(db)) == [first]


def test_a_redriven_job_waits_for_another_start(send: Send, db: psycopg.Connection) -> None:
    first = send(size=1)
    [one] = take(db)
    settle(db, SCHEMA, [Settlement(*one.proof, Outcome.DEAD)])

    Jobs(db).redrive(JobFilter(states=["dead"], id=first))

    assert (take(db), states(db)) == ([], ["throttled"])


def test_a_used_up_rate_holds_up_no_other(send: Send, db: psycopg.Connection) -> None:
    for _ in range(5):
        send("hot", size=1)
    take(db)
    other = send("other")

    assert ids(take(db)) == [other]


# Nobody there


@pytest.mark.parametrize("why", ["paused", "unknown"])
def test_jobs_that_nobody_would_claim_hold_up_no_other_of_their_rate(
    send: Send, db: psycopg.Connection, why: str
) -> None:
    actor = "refund" if why == "paused" else "stranger"
    _ = [send(actor=actor) for _ in range(3)]
    if why == "paused":
        Queues(db).pause(actor="refund")
    others = [send() for _ in range(3)]

    assert ids(take(db)) == others[:2]
    assert column(db, "SELECT DISTINCT state FROM worker.job WHERE actor <> 'charge'") == ["throttled"]


def test_a_start_that_a_job_was_cleared_for_is_taken_back_when_it_is_paused(send: Send, db: psycopg.Connection) -> None:
    paused, other = send(size=1, actor="refund"), send(size=1)
    clear(db, SCHEMA)
    Queues(db).pause(actor="refund")
    assert take(db) == []

    sweep(db, SCHEMA)

    assert ids(take(db)) == [other]
    Queues(db).resume(actor="refund")
    pass_by(db, 61)
    sweep(db, SCHEMA)
    assert ids(take(db, actors=["charge", "refund"])) == [paused]


def test_a_start_of_a_job_that_is_just_being_claimed_is_not_taken_back(
    send: Send, db: psycopg.Connection, database: str
) -> None:
    send(size=1, actor="refund")
    clear(db, SCHEMA)
    Queues(db).pause(actor="refund")
    with psycopg.connect(database) as claimer:
        [one] = claim(claimer, actors=["refund"])
        sweep(db, SCHEMA)
        claimer.commit()

    assert scalar(db, "SELECT state FROM worker.job WHERE id = %s", one.id) == "running"
    assert scalar(db, "SELECT count(*) FROM worker.rate_start") == 1


def test_what_another_worker_serves_is_cleared_for_it(send: Send, db: psycopg.Connection) -> None:
    served = send(actor="theirs")
    db.execute("""
        INSERT INTO worker.worker (id, name, pid, backend_start, slots, pool_size, lease, queues, actors)
        VALUES (gen_random_uuid(), 'host:1', pg_backend_pid(), now(), 1, 2, 10, '{default}', '{theirs}')""")

    clear(db, SCHEMA)

    assert ids(claim(db, actors=["theirs"])) == [served]


def test_nothing_with_a_rate_is_claimed_ahead_of_a_slot(send: Send, db: psycopg.Connection) -> None:
    """Given back, it would have been counted."""
    first, _ = send(), send()

    assert ids(take(db, limit=2, free=1)) == [first]


@pytest.mark.parametrize("first", [False, True])
def test_a_limit_and_a_rate_hold_both(send: Send, db: psycopg.Connection, first: bool) -> None:
    sent = [send(size=2, lane="one", first=first) for _ in range(4)]
    started = []
    for _ in range(3):
        claims = take(db)
        started += ids(claims)
        settle(db, SCHEMA, [Settlement(*one.proof, Outcome.DONE) for one in claims])

    assert started == sent[:2]
    pass_by(db, 61)
    assert ids(take(db)) == [sent[2]]


def test_merged_starts_count_like_single_ones_and_never_less_long(db: psycopg.Connection) -> None:
    db.execute("""
        INSERT INTO worker.rate_start (rate, started_at, counts_until)
        SELECT 'a', at, at + interval '100 s'
        FROM (SELECT now() - n * interval '10 ms' AS at FROM generate_series(1, 1500) AS n) AS made""")
    query = "SELECT sum(starts), max(started_at), max(counts_until - started_at) FROM worker.rate_start"
    before = db.execute(query.encode()).fetchone()

    db.execute(SCHEMA.render(MERGE_STARTS).encode())

    assert db.execute(query.encode()).fetchone() == before
    assert scalar(db, "SELECT count(*) FROM worker.rate_start") <= 31


def test_sweeping_makes_up_for_a_knock_that_went_astray(send: Send, db: psycopg.Connection) -> None:
    first = send()
    db.execute("DELETE FROM worker.rate_knock")
    assert take(db) == []

    sweep(db, SCHEMA)

    assert ids(take(db)) == [first]


def test_racing_workers_never_start_more_than_the_rate(send: Send, database: str, db: psycopg.Connection) -> None:
    made = {send(f"rate {number % 3}", size=4, per=0.5) for number in range(60)}

    def work() -> None:
        with psycopg.connect(database, autocommit=True) as conn:
            while len(made - set(column(conn, "SELECT id FROM worker.job_history"))) > 0:
                with conn.pipeline():
                    clear(conn, SCHEMA)
                settle(conn, SCHEMA, [Settlement(*one.proof, Outcome.DONE) for one in claim(conn, limit=3)])

    for worker in [InThread(work) for _ in range(4)]:
        worker.result(60)

    most = """
        SELECT max(starts) FROM (
            SELECT count(*) OVER (
                PARTITION BY made.rate ORDER BY started_at RANGE BETWEEN '499999 us' PRECEDING AND CURRENT ROW
            ) AS starts
            FROM worker.job_history
            JOIN (SELECT unnest(%s::uuid[]) AS id, unnest(%s::text[]) AS rate) AS made USING (id)
        ) AS windows"""
    ordered = sorted(made)
    assert scalar(db, most, ordered, [f"rate {number % 3}" for number in range(60)]) == 4


# Declaring


def test_rates_are_made_by_the_values_of_arguments(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, rate=Rate(100, per=60, by="customer"))
    def bill(customer: int) -> None: ...

    bill.send(7)

    query = "SELECT state, rate, rate_size, rate_per, lane FROM worker.job"
    assert db.execute(query.encode()).fetchall() == [("throttled", "bill customer=7", 100, 60.0, None)]


def test_why_a_throttled_job_waits_is_one_sentence(send: Send, db: psycopg.Connection) -> None:
    db.execute("""
        INSERT INTO worker.worker (id, name, pid, backend_start, slots, pool_size, lease)
        VALUES (gen_random_uuid(), 'host:1', pg_backend_pid(), now(), 1, 2, 10)""")
    send(size=1)
    waiting = send(size=1)
    take(db)
    clear(db, SCHEMA)

    obstacle = Jobs(db).obstacle(Jobs(db).find(JobFilter(id=waiting))[0])

    assert obstacle is not None
    assert obstacle.startswith("its rate 'a' is used up, 1 starts in 60 s: the next may start at 20")


def test_a_rate_by_what_is_no_argument_is_refused(broker: PostgresBroker) -> None:
    with pytest.raises(SignatureError, match=r"rate by 'custmer': it has no such argument \(it has: customer\)"):

        @job(broker=broker, rate=Rate(1, per=1, by="custmer"))
        def bill(customer: int) -> None: ...


def test_a_limit_and_a_rate_that_would_hold_each_other_up_are_refused(broker: PostgresBroker) -> None:
    with pytest.raises(ConfigError, match="expected one of the two to be by 'account', 'customer'"):

        @job(broker=broker, limit=Limit(by="account"), rate=Rate(1, per=1, by="customer"))
        def bill(customer: int, account: int) -> None: ...


def test_the_name_of_a_queues_starts_is_refused(broker: PostgresBroker) -> None:
    with pytest.raises(ConfigError, match=r"job 'visit': rate 'queue:mail': expected a name without 'queue:' before"):

        @job(broker=broker, rate=Rate(1, per=1, name="queue:mail"))
        def visit() -> None: ...


@pytest.mark.parametrize(("size", "per"), [(0, 1), (True, 1), (1.5, 1), (1, 0), (1, -1), (1, "60"), (1, float("nan"))])
def test_a_rate_that_cannot_work_is_refused(size: Any, per: Any) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Rate(size, per=per)


def test_actors_that_share_a_rate_with_other_numbers_are_refused(broker: PostgresBroker) -> None:
    @job(broker=broker, rate=Rate(100, per=60, by="account", name="bank"))
    def charge(account: int) -> None: ...

    @job(broker=broker, rate=Rate(5, per=60, name="bank"))
    def by_nothing(account: int) -> None: ...

    expected = (
        "job 'refund': rate 'bank' is 100 in 30 s, and that of job 'charge' is 100 in 60 s: they are counted together:"
        " expected the same numbers, as with one worker.Rate for both, or another name="
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):

        @job(broker=broker, rate=Rate(100, per=30, by="account", name="bank"))
        def refund(account: int) -> None: ...

    assert "refund" not in broker.actors
