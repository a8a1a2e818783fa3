"""Steps: what a job has recorded is not done again by its next attempt, and commits with its record or not at all."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import AsyncConnection, Connection

from tests.factories import column, scalar
from tests.running import WAIT, RunningWorker, attempts, error, outcome, row_id
from tests.waiting import wait_until
from worker import (
    ArgumentError,
    Cancelled,
    Context,
    JobFilter,
    Jobs,
    Pool,
    PostgresBroker,
    Refused,
    SignatureError,
    Unique,
    job,
)
from worker.queue import job_transaction
from worker.queue.delivery import current
from worker.queue.stop_reason import StopReason

pytestmark = pytest.mark.usefixtures("worker", "note")

NOTES = "SELECT word FROM note ORDER BY word"
STEPS = "SELECT name FROM worker.job_step ORDER BY recorded_at, name"
LOSE = "UPDATE worker.job SET token = token + 1 WHERE id = %s"
IN_TRANSACTION = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND state LIKE 'idle in transaction%%'"""
RETRY: dict[str, Any] = {"min_backoff": 1, "max_backoff": 1}


def write(conn: Connection, word: str) -> str:
    conn.execute("INSERT INTO note VALUES (%s)", [word])
    return word.upper()


async def write_async(conn: AsyncConnection, word: str) -> str:
    await conn.execute("INSERT INTO note VALUES (%s)", [word])
    return word.upper()


class Ways:
    """The same step in each way it can be said; *calls* tells how often it was really done."""

    def __init__(self) -> None:
        self.calls = 0
        self.fault: Callable[[], object] = lambda: None

    def called(self, word: str) -> str:
        self.calls += 1
        self.fault()
        return word.upper()

    async def called_async(self, word: str) -> str:
        return self.called(word)

    def connected(self, conn: Connection, word: str) -> str:
        self.called(word)
        return write(conn, word)

    async def connected_async(self, conn: AsyncConnection, word: str) -> str:
        self.called(word)
        return await write_async(conn, word)

    def declare(self, broker: PostgresBroker, way: str) -> Any:
        """A job of one step, that fails behind it in its first attempt; what the step gave is the job's result."""

        def after(ctx: Context, value: object) -> None:
            if ctx.attempt == 1:
                raise ValueError("behind the step")
            assert value == "A"

        @job(broker=broker, name="plain", **RETRY)
        def plain(ctx: Context) -> None:
            after(ctx, ctx.step("one", self.connected if way == "connected" else self.called, "a"))

        @job(broker=broker, name="block", **RETRY)
        def block(ctx: Context) -> None:
            with ctx.step("one") as step:
                if not step.done:
                    step.value = self.connected(step.conn, "a")
            after(ctx, step.value)

        @job(broker=broker, name="coroutine", **RETRY)
        async def coroutine(ctx: Context) -> None:
            after(
                ctx, await ctx.step("one", self.connected_async if way == "connected async" else self.called_async, "a")
            )

        @job(broker=broker, name="async_block", **RETRY)
        async def async_block(ctx: Context) -> None:
            async with ctx.step("one") as step:
                if not step.done:
                    step.value = await self.connected_async(step.conn, "a")
            after(ctx, step.value)

        jobs = {"block": block, "async block": async_block, "called async": coroutine, "connected async": coroutine}
        return jobs.get(way, plain)


EVERY_WAY = ["called", "connected", "block", "called async", "connected async", "async block"]
WRITING = [way for way in EVERY_WAY if not way.startswith("called")]


@pytest.fixture
def ways() -> Ways:
    return Ways()


@pytest.mark.parametrize("way", EVERY_WAY)
def test_a_recorded_step_is_not_done_again_and_gives_what_it_gave(
    ways: Ways, broker: PostgresBroker, db: psycopg.Connection, way: str
) -> None:
    message = ways.declare(broker, way).send()

    assert (outcome(db, message), attempts(db, message)) == ("done", 2)
    assert ways.calls == 1
    assert column(db, NOTES) == (["a"] if way in WRITING else [])
    assert scalar(db, IN_TRANSACTION) == 0


@pytest.mark.parametrize("way", EVERY_WAY)
def test_a_step_that_raises_is_not_recorded_and_leaves_nothing(
    ways: Ways, broker: PostgresBroker, db: psycopg.Connection, way: str
) -> None:
    def fault() -> None:
        if ways.calls == 1:
            raise ValueError("within the step")

    ways.fault = fault
    message = ways.declare(broker, way).send()

    outcome(db, message)
    assert ways.calls == 2
    assert column(db, NOTES) == (["a"] if way in WRITING else [])


@pytest.mark.parametrize("way", EVERY_WAY)
def test_a_lost_lease_ends_the_job_at_its_step_and_nothing_of_that_is_written(
    ways: Ways, broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection, way: str
) -> None:
    ways.fault = lambda: db.execute("UPDATE worker.job SET token = token + 1")
    message = ways.declare(broker, way).send()
    lost = "SELECT count(*) FROM worker.job WHERE id = %s AND token = 2"
    wait_until(lambda: scalar(db, lost, row_id(message)) and not worker.feed.num_running, WAIT, "the end of the run")

    assert (ways.calls, column(db, NOTES), column(db, STEPS)) == (1, [], [])


def test_a_job_that_is_anothers_by_now_does_not_begin_a_step(
    broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    """Not even one that would be done outside of the database, as far as anybody can tell."""
    met: list[str] = []

    @job(broker=broker)
    def late(ctx: Context) -> None:
        db.execute(LOSE, [ctx.job_id])
        try:
            ctx.step("charge", met.append, "charged")
        except Exception:
            met.append("swallowed")

    late.send()
    wait_until(lambda: scalar(db, "SELECT count(*) FROM worker.job WHERE token = 2"), WAIT, "the loss")
    wait_until(lambda: not worker.feed.num_running, WAIT, "the end of the run")

    assert met == []


@pytest.mark.parametrize("way", ["block", "connected", "async block", "connected async"])
def test_sends_within_a_step_commit_with_it(broker: PostgresBroker, db: psycopg.Connection, way: str) -> None:
    @job(broker=broker)
    def receipt() -> None: ...

    def fails_first(ctx: Context) -> None:
        if ctx.attempt == 1:
            raise ValueError

    @job(broker=broker, **RETRY)
    def plain(ctx: Context) -> None:
        def body(conn: Connection) -> None:
            receipt.send_with_options(delay=3_600_000)
            fails_first(ctx)

        if way == "connected":
            ctx.step("one", body)
        else:
            with ctx.step("one") as step:
                body(step.conn)

    @job(broker=broker, **RETRY)
    async def coroutine(ctx: Context) -> None:
        async def body(conn: AsyncConnection) -> None:
            await receipt.send_with_options_async(delay=3_600_000)
            fails_first(ctx)

        if way == "connected async":
            await ctx.step("one", body)
        else:
            async with ctx.step("one") as step:
                await body(step.conn)

    message = (coroutine if "async" in way else plain).send()

    assert (outcome(db, message), attempts(db, message)) == ("done", 2)
    assert column(db, "SELECT actor FROM worker.job") == ["receipt"]


def test_steps_of_many_kinds_give_their_values_again(broker: PostgresBroker, db: psycopg.Connection) -> None:
    values: list[Any] = [None, 0, -0.0, 1e22, "ü", [1, [2]], {"a": {"b": [None, True]}}, "\\u0000", 2**70, (1, 2)]
    given: list[list[Any]] = []

    @job(broker=broker, **RETRY)
    def many(ctx: Context) -> None:
        given.append([ctx.step(f"step {n}", lambda value: value, value) for n, value in enumerate(values)])
        if ctx.attempt == 1:
            raise ValueError

    outcome(db, many.send())

    assert repr(given[0]) == repr(given[1]) == repr([*values[:-1], [1, 2]])  # tuples are lists from the first run on


def test_only_what_was_recorded_is_passed_over(broker: PostgresBroker, db: psycopg.Connection) -> None:
    done: list[str] = []

    @job(broker=broker, **RETRY)
    def pages(ctx: Context) -> None:
        for page in range(6):
            ctx.step(f"page {page}", done.append, f"{ctx.attempt}:{page}")
            if page == 2 * ctx.attempt:
                raise ValueError

    outcome(db, pages.send())

    assert done == ["1:0", "1:1", "1:2", "2:3", "2:4", "3:5"]


def test_steps_of_one_job_are_not_those_of_another(broker: PostgresBroker, db: psycopg.Connection) -> None:
    done: list[int] = []

    @job(broker=broker)
    def one(ctx: Context, n: int) -> None:
        ctx.step("one", done.append, n)

    for n in (1, 2):
        outcome(db, one.send(n))

    assert done == [1, 2]


def test_a_redriven_job_goes_on_where_it_failed(broker: PostgresBroker, db: psycopg.Connection) -> None:
    done: list[str] = []
    broken = threading.Event()
    broken.set()

    @job(broker=broker, max_retries=0)
    def two(ctx: Context) -> None:
        ctx.step("first", done.append, "first")
        if broken.is_set():
            raise ValueError
        ctx.step("second", done.append, "second")

    message = two.send()
    outcome(db, message)
    broken.clear()
    Jobs(db).redrive(JobFilter(id=row_id(message)))
    query = "SELECT count(*) FROM worker.job_history WHERE id = %s"
    wait_until(lambda: scalar(db, query, row_id(message)) == 2, WAIT, "its second end")

    assert done == ["first", "second"]
    assert [step.name for step in Jobs(db).steps(row_id(message))] == ["first", "second"]


@pytest.mark.parametrize("end", ["done", "dead", "waiting"])
def test_a_message_that_is_sent_again_does_all_its_steps(
    broker: PostgresBroker, db: psycopg.Connection, end: str
) -> None:
    """Under its own id: another send is another job, however the first one ended."""
    done: list[str] = []
    broken = threading.Event()
    if end != "done":
        broken.set()

    @job(broker=broker, max_retries=int(end == "waiting"), min_backoff=3_600_000, max_backoff=3_600_000)
    def two(ctx: Context) -> None:
        ctx.step("first", done.append, "first")
        if broken.is_set():
            raise ValueError
        ctx.step("second", done.append, "second")

    message = two.send()
    ended = "SELECT count(*) FROM worker.job_history WHERE id = %s"
    if end == "waiting":
        wait_until(lambda: column(db, "SELECT state FROM worker.job") == ["scheduled"], WAIT, "the retry")
    else:
        wait_until(lambda: scalar(db, ended, row_id(message)) == 1, WAIT, "its first end")
    broken.clear()
    done.clear()
    broker.enqueue(message)
    wait_until(lambda: scalar(db, ended, row_id(message)) == (1 if end == "waiting" else 2), WAIT, "its end")

    assert done == ["first", "second"]


def test_a_job_redriven_after_it_was_sent_again_goes_on_behind_the_steps_of_that_send(
    broker: PostgresBroker, db: psycopg.Connection
) -> None:
    done: list[str] = []
    fails = iter([False, True, False])

    @job(broker=broker, max_retries=0)
    def two(ctx: Context) -> None:
        ctx.step("first", done.append, "first")
        if next(fails):
            raise ValueError
        ctx.step("second", done.append, "second")

    def await_end(nth: int) -> None:
        wait_until(lambda: scalar(db, "SELECT count(*) FROM worker.job_history") == nth, WAIT, f"its end {nth}")

    message = two.send()
    await_end(1)
    broker.enqueue(message)
    await_end(2)
    Jobs(db).redrive(JobFilter(id=row_id(message)))
    await_end(3)

    assert done == ["first", "second", "first", "second"]


def test_a_snoozed_job_goes_on_behind_its_steps(broker: PostgresBroker, db: psycopg.Connection) -> None:
    done: list[str] = []

    @job(broker=broker)
    def naps(ctx: Context) -> None:
        ctx.step("first", done.append, "first")
        if len(done) == 1:
            done.append("nap")
            ctx.snooze(0)

    message = naps.send()

    assert (outcome(db, message), attempts(db, message)) == ("done", 1)
    assert done == ["first", "nap"]


def test_a_job_whose_arguments_a_send_has_replaced_does_its_steps_anew(
    broker: PostgresBroker, db: psycopg.Connection
) -> None:
    done: list[int] = []

    @job(broker=broker, min_backoff=3_600_000, max_backoff=3_600_000)
    def rebuild(ctx: Context, n: int) -> None:
        ctx.step("one", done.append, n)
        if n == 1:
            raise ValueError

    unique = Unique("only", on_conflict="replace")
    message = rebuild.send_with_options(args=(1,), unique=unique)
    query = "SELECT state FROM worker.job WHERE id = %s"
    wait_until(lambda: column(db, query, row_id(message)) == ["scheduled"], WAIT, "the retry")
    rebuild.send_with_options(args=(2,), unique=unique)
    db.execute("UPDATE worker.job SET due_at = now()")
    db.execute("NOTIFY worker_later")

    assert outcome(db, message) == "done"
    assert done == [1, 2]


def test_no_connection_is_held_while_a_called_step_is_at_work(
    broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    out: list[int] = []

    @job(broker=broker)
    def one(ctx: Context) -> None:
        ctx.step("one", lambda: out.append(worker.pool.num_out))

    outcome(db, one.send())

    assert out == [0]  # beside the dispatcher's own


def test_a_step_works_for_a_job_that_takes_the_pool(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker)
    def one(pool: Pool, ctx: Context) -> None:
        ctx.step("one", write, "a")
        with pool.connection() as conn:
            write(conn, "b")

    assert outcome(db, one.send()) == "done"
    assert column(db, NOTES) == ["a", "b"]


# What costs no attempt, and what has happened


@pytest.fixture
def locker(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection]:
    """A session of somebody else, in transactions."""
    monkeypatch.setattr(job_transaction, "_LIMITS", "SET LOCAL lock_timeout = '300ms'")
    with psycopg.connect(database) as conn:
        yield conn


WAITS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
LOCKS = {
    "row": "UPDATE worker.job SET cancelled_at = now()",
    "table": "LOCK TABLE worker.job_step IN ACCESS EXCLUSIVE MODE",
}
CALLED = ["called", "called async"]


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("way", CALLED)
def test_a_called_step_that_meets_a_lock_is_recorded_when_it_is_gone(
    ways: Ways, broker: PostgresBroker, db: psycopg.Connection, locker: psycopg.Connection, way: str, lock: str
) -> None:
    """The second wait for it begins only when the first has timed out."""
    ways.fault = lambda: locker.execute(LOCKS[lock].encode())
    message = ways.declare(broker, way).send()

    wait_until(lambda: scalar(db, WAITS), WAIT, "the first wait for the lock")
    wait_until(lambda: not scalar(db, WAITS), WAIT, "its end")
    wait_until(lambda: scalar(db, WAITS), WAIT, "the second")
    locker.rollback()

    assert (outcome(db, message), attempts(db, message)) == ("done", 2)  # it fails once behind the step
    assert ways.calls == 1


FAIL_TWICE = """
    CREATE SEQUENCE tries;
    CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF nextval('tries') <= 2 THEN
            {how};
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER failing BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION fail()"""
FAILURES = {
    "deadlock": "RAISE EXCEPTION 'conflict' USING ERRCODE = '40P01'",
    "serialization failure": "RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'",
    "lost connection": "PERFORM pg_terminate_backend(pg_backend_pid())",
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("way", CALLED)
def test_a_called_step_is_recorded_in_spite_of_conflicts_and_lost_connections(
    ways: Ways, broker: PostgresBroker, db: psycopg.Connection, way: str, failure: str
) -> None:
    db.execute(FAIL_TWICE.format(how=FAILURES[failure], table="worker.job_step").encode())
    message = ways.declare(broker, way).send()

    assert (outcome(db, message), attempts(db, message)) == ("done", 2)  # it fails once behind the step
    assert ways.calls == 1


@pytest.mark.parametrize("way", CALLED)
def test_a_called_step_that_meets_a_lock_ends_with_its_job(
    ways: Ways, broker: PostgresBroker, db: psycopg.Connection, locker: psycopg.Connection, way: str
) -> None:
    ways.fault = lambda: locker.execute(LOCKS["table"].encode())
    message = ways.declare(broker, way).send()
    wait_until(lambda: scalar(db, WAITS), WAIT, "the wait for the lock")
    Jobs(db).cancel(JobFilter(id=row_id(message)))

    ended = "SELECT count(*) FROM worker.job_history WHERE id = %s"
    wait_until(lambda: scalar(db, ended, row_id(message)), WAIT, "its end while the lock is held")
    assert (outcome(db, message), ways.calls) == ("dead", 1)


def test_a_called_step_that_has_swallowed_its_interrupt_does_not_wait_for_a_lock_for_ever(
    broker: PostgresBroker, db: psycopg.Connection, locker: psycopg.Connection
) -> None:
    called = threading.Event()

    @job(broker=broker, max_retries=0)
    def deaf(ctx: Context) -> None:
        def charge() -> None:
            locker.execute(LOCKS["table"].encode())
            with suppress(Cancelled):
                called.set()
                while True:
                    time.sleep(0.01)

        ctx.step("charge", charge)

    message = deaf.send()
    assert called.wait(WAIT)
    Jobs(db).cancel(JobFilter(id=row_id(message)))

    assert outcome(db, message) == "dead"
    assert "LockNotAvailable" in error(db, message)


def test_a_called_step_is_recorded_in_the_grace_of_a_stop(broker: PostgresBroker, db: psycopg.Connection) -> None:
    db.execute(FAIL_TWICE.format(how=FAILURES["deadlock"], table="worker.job_step").encode())

    @job(broker=broker, max_retries=0)
    def last(ctx: Context) -> None:
        def charge() -> None:
            delivery = current.get()
            assert delivery is not None
            delivery.stop(StopReason.SHUTDOWN)  # as a drain announces it

        ctx.step("charge", charge)

    message = last.send()

    assert outcome(db, message) == "done"
    assert [step.name for step in Jobs(db).steps(row_id(message))] == ["charge"]


def test_a_record_that_the_database_refuses_for_good_fails_the_attempt(
    ways: Ways, broker: PostgresBroker, db: psycopg.Connection
) -> None:
    db.execute(FAIL_TWICE.format(how="RAISE EXCEPTION 'no'", table="worker.job_step").encode())
    message = ways.declare(broker, "called").send()

    assert (outcome(db, message), attempts(db, message)) == ("done", 3)
    assert ways.calls == 3


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("table", ["note", "worker.job_step"], ids=["in the step", "at its record"])
@pytest.mark.parametrize("way", WRITING)
def test_a_step_cut_by_a_conflict_or_a_lost_connection_costs_no_attempt(
    ways: Ways, broker: PostgresBroker, db: psycopg.Connection, way: str, table: str, failure: str
) -> None:
    db.execute(FAIL_TWICE.format(how=FAILURES[failure], table=table).encode())
    message = ways.declare(broker, way).send()

    assert (outcome(db, message), attempts(db, message)) == ("done", 2)  # it fails once behind the step
    assert (ways.calls, column(db, NOTES)) == (3, ["a"])


def test_a_conflict_in_what_a_step_calls_costs_an_attempt(
    ways: Ways, broker: PostgresBroker, db: psycopg.Connection
) -> None:
    """It may be anybody's database, and what the function has done before is not undone."""

    def fault() -> None:
        if ways.calls == 1:
            raise psycopg.errors.DeadlockDetected("elsewhere")

    ways.fault = fault
    message = ways.declare(broker, "called").send()

    # The second attempt does not fail behind the step: only the first does.
    assert (outcome(db, message), attempts(db, message), ways.calls) == ("done", 2, 2)


# What cannot work


def refusal(broker: PostgresBroker, db: psycopg.Connection, body: Callable[[Context], Any]) -> BaseException:
    """What *body* is refused with in a job."""
    refused: list[BaseException] = []

    @job(broker=broker, name="one", max_retries=0)
    def one(ctx: Context) -> None:
        try:
            body(ctx)
        except Exception as exc:
            refused.append(exc)

    assert outcome(db, one.send()) == "done"
    assert str(refused[0]).startswith("job 'one'")
    return refused[0]


def twice(ctx: Context) -> None:
    for _ in range(2):
        ctx.step("charge", list)


def too_many(ctx: Context) -> None:
    for n in range(1001):
        ctx.step(f"step {n}")


def after_finish(ctx: Context) -> None:
    with ctx.finish():
        pass
    ctx.step("charge", list)


def done_already(ctx: Context) -> None:
    with ctx.step("charge") as step:
        step.done = True  # as an earlier attempt would have it
        step.conn.execute("SELECT 1")


def outside(ctx: Context) -> None:
    ctx.step("charge").conn.execute("SELECT 1")


def wrong_kind(ctx: Context) -> None:
    def book(conn: AsyncConnection) -> None: ...

    ctx.step("charge", book)


async def coroutine() -> None: ...


@pytest.mark.parametrize(
    ("body", "kind", "reason"),
    [
        (twice, Refused, "step 'charge' was there before in this run: give each a name of its own, such as 'charge 2'"),
        (too_many, Refused, "step 'step 1000' is one more than 1,000: make larger steps"),
        (after_finish, Refused, r"step 'charge' cannot be recorded by itself, .* before ctx.finish\(\)"),
        (done_already, Refused, "it was done by attempt None: do nothing in it `if step.done`"),
        (outside, Refused, "it has a connection within its block only"),
        (wrong_kind, SignatureError, "`async def` takes psycopg.AsyncConnection, a plain function psycopg.Connection"),
        (lambda ctx: ctx.step("a", coroutine), ArgumentError, "nobody awaits an `async def` function in a plain job"),
        (lambda ctx: ctx.step("a", 42), ArgumentError, "expected a function and its arguments, got 42"),
        (lambda ctx: ctx.step(list), ArgumentError, "the name of a step is <class 'list'>: expected text"),
        (lambda ctx: ctx.step("", list), ArgumentError, "the name of a step is '': expected text of at most 200"),
        (lambda ctx: ctx.step("x" * 201, list), ArgumentError, "expected text of at most 200 characters"),
        (lambda ctx: ctx.step("a\0", list), ArgumentError, r"the name of a step holds the character U\+0000"),
    ],
)
def test_a_step_that_cannot_work_is_refused_at_the_call(
    broker: PostgresBroker, db: psycopg.Connection, body: Callable[[Context], Any], kind: type, reason: str
) -> None:
    refused = refusal(broker, db, body)

    assert type(refused) is kind
    with pytest.raises(kind, match=reason):
        raise refused


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (datetime.date(2026, 1, 1), "a date, which is not plain JSON: give None, finite numbers, text"),
        ({1: 2}, "a dict, which is not plain JSON"),
        (float("inf"), "a float, which is not plain JSON"),
        ({"a": object()}, "which is not plain JSON"),
        ("x" * 70_000, "its value is 70,002 bytes of JSON, expected at most 65,536: keep what is large"),
        ("a\0b", "its value holds the character U+0000"),
        ("a\ud800", "its value cannot be written as JSON"),
    ],
)
def test_a_value_that_cannot_be_recorded_makes_the_job_dead_before_it_is_done_again(
    broker: PostgresBroker, db: psycopg.Connection, value: Any, reason: str
) -> None:
    done: list[int] = []

    def charge() -> Any:
        done.append(1)
        return value

    @job(broker=broker, **RETRY)
    def one(ctx: Context) -> None:
        ctx.step("charge", charge)

    message = one.send()

    assert outcome(db, message) == "dead"
    assert reason in error(db, message)
    assert "job 'one', step 'charge': its value" in error(db, message)
    assert len(done) == 1


@pytest.mark.parametrize("transaction", [True, False])
def test_a_job_with_a_connection_is_told_what_to_do_instead(
    broker: PostgresBroker, db: psycopg.Connection, transaction: bool
) -> None:
    @job(broker=broker, max_retries=0, transaction=transaction)
    def one(conn: Connection, ctx: Context) -> None:
        ctx.step("charge", list)

    message = one.send()

    assert outcome(db, message) == "dead"
    assert "leave out the parameter (a step is given a connection, see ctx.step)" in error(db, message)


def test_a_plain_function_in_an_async_job_is_refused(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, max_retries=0)
    async def one(ctx: Context) -> None:
        ctx.step("charge", list)

    message = one.send()

    assert outcome(db, message) == "dead"
    assert "a plain function would block the event loop of an async job" in error(db, message)


def test_a_block_that_goes_on_after_an_sql_error_is_not_recorded(
    broker: PostgresBroker, db: psycopg.Connection
) -> None:
    @job(broker=broker, max_retries=0)
    def careless(ctx: Context) -> None:
        with ctx.step("one") as step:
            write(step.conn, "a")
            with suppress(psycopg.errors.DivisionByZero):
                step.conn.execute("SELECT 1/0")

    message = careless.send()

    assert outcome(db, message) == "dead"
    assert "went on after an SQL error" in error(db, message)
    assert (column(db, NOTES), column(db, STEPS)) == ([], [])


def test_outside_of_a_worker_there_are_no_steps() -> None:
    context = Context(job_id=uuid4(), actor="a", queue="q", attempt=1, options={})

    with pytest.raises(Refused, match="only a worker can"):
        context.step("one", list)
