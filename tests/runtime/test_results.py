"""What jobs return, pipelines, groups and rate limiters: joined to the jobs' transactions, on Postgres alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import dramatiq
import psycopg
import pytest
from dramatiq import group, pipeline
from dramatiq.middleware import GroupCallbacks
from dramatiq.rate_limits import Barrier, BucketRateLimiter, ConcurrentRateLimiter, WindowRateLimiter
from dramatiq.rate_limits.backends import StubBackend as StubLimits
from dramatiq.results import ResultFailure, ResultMissing, Results, ResultTimeout
from dramatiq.results.backends import StubBackend as StubResults
from psycopg import AsyncConnection, Connection

from tests.factories import InThread, column, opened_pool, scalar
from tests.running import RunningWorker, dead_error, outcome
from tests.waiting import wait_until
from worker import PostgresBroker, PostgresLimits, PostgresResults, job
from worker.queue.backends import ARRIVE, LOCK_GROUP
from worker.queue.schema import Schema


@pytest.fixture
def sender(broker: PostgresBroker, database: str) -> Iterator[PostgresBroker]:
    """The broker in a process that is no worker."""
    with opened_pool(database, max_size=8) as pool, broker.on(pool, Schema()):
        yield broker


def test_a_result_is_there_when_the_job_is_done(worker: RunningWorker, broker: PostgresBroker) -> None:
    @job(broker=broker, store_results=True)
    def add(conn: Connection, left: int, right: int) -> int:
        return left + right

    assert add.send(1, 2).get_result(block=True) == 3


@pytest.mark.parametrize("kind", ["plain", "async", "actor"])
def test_every_kind_of_job_has_results(worker: RunningWorker, broker: PostgresBroker, kind: str) -> None:
    @job(broker=broker, store_results=True)
    def add(left: int, right: int) -> int:
        return left + right

    @job(broker=broker, store_results=True)
    async def add_async(conn: AsyncConnection, left: int, right: int) -> int:
        return left + right

    @dramatiq.actor(broker=broker, store_results=True)
    def add_actor(left: int, right: int) -> int:
        return left + right

    kinds: dict[str, Any] = {"plain": add, "async": add_async, "actor": add_actor}

    assert kinds[kind].send(1, 2).get_result(block=True) == 3


def test_a_result_that_nobody_has_returned_yet_is_missing(sender: PostgresBroker) -> None:
    message = job(broker=sender, store_results=True)(_nothing).send()
    results = PostgresResults(sender)

    with pytest.raises(ResultMissing):
        message.get_result(backend=results)
    with pytest.raises(ResultTimeout):
        message.get_result(backend=results, block=True, timeout=150)


def test_an_expired_result_is_missing(worker: RunningWorker, broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, store_results=True, result_ttl=60_000)
    def answer() -> int:
        return 42

    message = answer.send()
    message.get_result(block=True)
    db.execute("UPDATE worker.result SET expires_at = now() - interval '1 second'")

    with pytest.raises(ResultMissing):
        message.get_result()


def test_a_dead_jobs_result_is_its_error(worker: RunningWorker, broker: PostgresBroker) -> None:
    @job(broker=broker, store_results=True, max_retries=0)
    def fail(conn: Connection) -> None:
        raise ValueError("no such invoice")

    with pytest.raises(ResultFailure, match="no such invoice"):
        fail.send().get_result(block=True)


def test_the_result_of_a_run_that_could_not_commit_does_not_exist(
    worker: RunningWorker, broker: PostgresBroker, db: psycopg.Connection
) -> None:
    @job(broker=broker, store_results=True, max_retries=0)
    def duplicate(conn: Connection) -> int:
        conn.execute("INSERT INTO once VALUES (1)")
        return 42

    db.execute("CREATE TABLE once (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    db.execute("INSERT INTO once VALUES (1)")
    message = duplicate.send()
    outcome(db, message)

    with pytest.raises(ResultFailure):
        message.get_result(block=True)


def test_a_result_that_cannot_be_stored_undoes_the_job_and_says_so(
    worker: RunningWorker, broker: PostgresBroker, db: psycopg.Connection
) -> None:
    @job(broker=broker, store_results=True)
    def lock(conn: Connection) -> Any:
        conn.execute("INSERT INTO note VALUES ('done')")
        return threading.Lock()

    db.execute("CREATE TABLE note (word text)")
    message = lock.send()

    assert outcome(db, message) == "dead"
    assert "not JSON serializable" in dead_error(db, message) or "Lock" in dead_error(db, message)
    assert scalar(db, "SELECT count(*) FROM note") == 0


def test_a_pipeline_hands_each_result_to_the_next_job(worker: RunningWorker, broker: PostgresBroker) -> None:
    @job(broker=broker, store_results=True)
    def double(conn: Connection, number: int) -> int:
        return number * 2

    steps = [double.message(1), *(double.message_with_options() for _ in range(2))]
    chain = pipeline(steps, broker=broker)

    assert chain.run().get_result(block=True) == 8


def test_a_groups_callback_runs_once_when_all_members_are_done(
    worker: RunningWorker, broker: PostgresBroker, db: psycopg.Connection
) -> None:
    @job(broker=broker)
    def note(conn: Connection, word: str) -> None:
        conn.execute("INSERT INTO note VALUES (%s)", [word])

    @job(broker=broker)
    def note_without_transaction(word: str) -> None:
        with psycopg.connect(worker.pool.options.conninfo) as conn:
            conn.execute("INSERT INTO note VALUES (%s)", [word])

    db.execute("CREATE TABLE note (word text, place serial)")
    members = group(
        [note.message("member"), note_without_transaction.message("member"), note.message("member")], broker=broker
    )
    members.add_completion_callback(note.message("callback"))
    members.run()
    wait_until(lambda: "callback" in column(db, "SELECT word FROM note"), 20, "the callback")
    wait_until(lambda: scalar(db, "SELECT count(*) FROM worker.job") == 0, 20, "the end of all jobs")

    assert column(db, "SELECT word FROM note ORDER BY place") == ["member"] * 3 + ["callback"]


def arrive(db: psycopg.Connection, broker: PostgresBroker, job_id: int) -> bool:
    db.execute(broker.schema.render(LOCK_GROUP).encode(), {"key": "g"})
    parameters = {"key": "g", "job_id": f"{job_id:032x}", "parties": 2}
    row = db.execute(broker.schema.render(ARRIVE).encode(), parameters).fetchone()
    assert row is not None
    return bool(row[0])


def test_a_member_that_runs_again_is_not_counted_again(sender: PostgresBroker, db: psycopg.Connection) -> None:
    PostgresLimits(sender).add("g", 2, 60_000)

    assert [arrive(db, sender, 1), arrive(db, sender, 1), arrive(db, sender, 2)] == [False, False, True]


def test_the_last_member_is_the_last_again_when_it_runs_again(sender: PostgresBroker, db: psycopg.Connection) -> None:
    """It may have died between being counted and enqueueing the callbacks; the others are not last by that."""
    PostgresLimits(sender).add("g", 2, 60_000)

    assert [arrive(db, sender, who) for who in (1, 2, 2, 1)] == [False, True, True, False]


@pytest.mark.parametrize("kind", [Results, GroupCallbacks])
def test_a_middleware_of_ones_own_takes_the_place_of_ours(kind: type[dramatiq.Middleware]) -> None:
    """Both together would store results twice, and enqueue the callbacks of a group twice."""
    broker = PostgresBroker(schema="worker")
    own = Results(backend=StubResults()) if kind is Results else GroupCallbacks(StubLimits())

    broker.add_middleware(own)

    assert [middleware for middleware in broker.middleware if isinstance(middleware, kind)] == [own]


def test_a_mutex_lets_one_in_at_a_time(sender: PostgresBroker) -> None:
    mutex = ConcurrentRateLimiter(PostgresLimits(sender), "one", limit=1)

    with mutex.acquire(raise_on_failure=False) as first, mutex.acquire(raise_on_failure=False) as second:
        inside = (first, second)
    with mutex.acquire(raise_on_failure=False) as third:
        pass

    assert (*inside, third) == (True, False, True)


def test_racing_callers_never_pass_a_limit(sender: PostgresBroker) -> None:
    limits = PostgresLimits(sender)

    racers = [InThread(lambda: [limits.incr("k", 1, 10, 60_000) for _ in range(10)]) for _ in range(8)]
    let_in = sum(sum(racer.result()) for racer in racers)

    assert let_in == 10


def test_a_window_and_a_bucket_count_what_they_let_in(sender: PostgresBroker) -> None:
    limits = PostgresLimits(sender)
    window = WindowRateLimiter(limits, "window", limit=3, window=60)
    bucket = BucketRateLimiter(limits, "bucket", limit=3, bucket=3_600_000)

    counted = []
    for limiter in (window, bucket):
        admitted = 0
        for _ in range(5):
            with limiter.acquire(raise_on_failure=False) as acquired:
                admitted += acquired
        counted.append(admitted)

    assert counted == [3, 3]


def test_racing_callers_never_pass_a_window(sender: PostgresBroker) -> None:
    """Each on another second's counter, so that none of them meets the row of another."""
    limits = PostgresLimits(sender)
    keys = [f"w@{second}" for second in range(8)]

    racers = [InThread(partial(limits.incr_and_sum, key, lambda: keys, 1, 3, 60_000)) for key in keys]
    let_in = sum(racer.result() for racer in racers)

    assert let_in == 3


def test_a_counter_that_has_expired_begins_anew(sender: PostgresBroker, db: psycopg.Connection) -> None:
    limits = PostgresLimits(sender)
    filled = [limits.incr("k", 1, 1, 60_000), limits.incr("k", 1, 1, 60_000)]
    db.execute("UPDATE worker.counter SET expires_at = now()")

    assert (filled, limits.incr("k", 1, 1, 60_000)) == ([True, False], True)


def test_a_barrier_wakes_everybody_who_waits(sender: PostgresBroker) -> None:
    barrier = Barrier(PostgresLimits(sender), "barrier", ttl=60_000)
    barrier.create(3)

    parties = [InThread(lambda: barrier.wait(timeout=10_000)) for _ in range(3)]

    assert [party.result() for party in parties] == [True, True, True]


def _nothing() -> None: ...
