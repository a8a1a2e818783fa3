"""A timeout ends the body, its query on the server, and nothing else."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import psycopg
import pytest
from dramatiq.middleware import TimeLimitExceeded
from psycopg import AsyncConnection, Connection

from tests.factories import backend_pid, column, scalar
from tests.running import WAIT, RunningWorker, attempts, error, outcome
from tests.waiting import wait_until
from worker import Context, Pool, PostgresBroker, clock, job
from worker.pool import connection as worker_connection
from worker.pool import holder
from worker.queue.job_transaction import JobTransaction

pytestmark = pytest.mark.usefixtures("worker")

SLEEPING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'SELECT pg_sleep%%'"
RUNS = "SELECT extract(epoch FROM finished_at - started_at)::float FROM worker.job_history"


def declare(broker: PostgresBroker) -> dict[str, Any]:
    """Jobs that would go on for ten minutes, each in its own way, with one second to do it."""

    @job(broker=broker, timeout=1, max_retries=0)
    def in_its_transaction(conn: Connection) -> None:
        conn.execute("SELECT pg_sleep(600)")

    @job(broker=broker, timeout=1, max_retries=0)
    def on_a_connection_of_its_own(pool: Pool) -> None:
        with pool.connection() as conn:
            conn.execute("SELECT pg_sleep(600)")

    @job(broker=broker, timeout=1, max_retries=0)
    async def in_its_transaction_async(conn: AsyncConnection) -> None:
        await conn.execute("SELECT pg_sleep(600)")

    @job(broker=broker, timeout=1, max_retries=0)
    def in_python() -> None:
        deadline = clock.monotonic() + 600
        while clock.monotonic() < deadline:
            pass

    @job(broker=broker, timeout=1, max_retries=0)
    async def in_await() -> None:
        await asyncio.sleep(600)

    jobs = [in_its_transaction, on_a_connection_of_its_own, in_its_transaction_async, in_python, in_await]
    return {one.actor_name: one for one in jobs}


EVERY_WAY = sorted(declare(PostgresBroker(schema="worker")))
IN_COROUTINES = ["in_await", "in_its_transaction_async"]
IN_SQL = [name for name in EVERY_WAY if "_its_" in f"_{name}_"]


@pytest.fixture
def jobs(broker: PostgresBroker) -> dict[str, Any]:
    return declare(broker)


@pytest.mark.parametrize("name", EVERY_WAY)
def test_a_job_ends_at_its_timeout(jobs: dict[str, Any], db: psycopg.Connection, name: str) -> None:
    message = jobs[name].send()

    assert outcome(db, message) == "dead"
    said = error(db, message)
    assert said.strip().endswith("TimeLimitExceeded: it ran longer than its timeout of 1 s")
    assert (f"in {name}\n" in said) is (name not in IN_COROUTINES), "where it was"
    assert scalar(db, RUNS) < 2


def test_a_job_without_a_timeout_may_fail_with_that_of_something_else(
    broker: PostgresBroker, db: psycopg.Connection
) -> None:
    @job(broker=broker, timeout=None, max_retries=0)
    def ask() -> None:
        raise TimeLimitExceeded

    message = ask.send()

    assert outcome(db, message) == "dead"
    assert error(db, message).strip().endswith("TimeLimitExceeded")


@pytest.mark.parametrize("name", IN_SQL)
def test_the_query_of_a_job_that_timed_out_is_over_on_the_server(
    jobs: dict[str, Any], db: psycopg.Connection, name: str
) -> None:
    message = jobs[name].send()
    wait_until(lambda: scalar(db, f"{SLEEPING} AND state = 'active'"), WAIT, "the query to begin")

    outcome(db, message)

    assert scalar(db, f"{SLEEPING} AND state = 'active'") == 0


def test_after_timeouts_there_are_as_many_connections_as_before(
    jobs: dict[str, Any], worker: RunningWorker, db: psycopg.Connection
) -> None:
    for message in [jobs[name].send() for name in IN_SQL]:
        outcome(db, message)

    taken = [worker.pool.getconn(timeout=5) for _ in range(2)]
    answers = [scalar(conn, "SELECT 1") for conn in taken]
    for conn in taken:
        worker.pool.putconn(conn)

    assert answers == [1, 1]


def test_a_job_that_timed_out_may_run_again(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, timeout=0.2, min_backoff=1, max_backoff=1)
    def slow_at_first(conn: Connection, ctx: Context) -> None:
        if ctx.attempt == 1:
            conn.execute("SELECT pg_sleep(600)")

    message = slow_at_first.send()

    assert outcome(db, message) == "done"
    assert attempts(db, message) == 2


def test_a_job_may_see_its_timeout_and_end_well(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, timeout=0.2, max_retries=0)
    def sensible() -> None:
        try:
            deadline = clock.monotonic() + WAIT
            while clock.monotonic() < deadline:
                pass
        except TimeLimitExceeded:
            return

    assert outcome(db, sensible.send()) == "done"


def test_a_job_is_told_that_it_should_stop(broker: PostgresBroker, db: psycopg.Connection) -> None:
    told: list[str | None] = []

    @job(broker=broker, timeout=0.2, max_retries=0)
    def patient(ctx: Context) -> None:
        try:
            while True:
                pass
        finally:
            told.append(ctx.stopping)

    outcome(db, patient.send())

    assert told == ["timeout"]


def test_a_timeout_of_one_send_counts_for_it_alone(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, max_retries=0)
    def sleep(conn: Connection) -> None:
        conn.execute("SELECT pg_sleep(600)")

    message = sleep.send_with_options(time_limit=200)

    assert outcome(db, message) == "dead"


def test_without_a_timeout_a_job_takes_its_time(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, timeout=None, max_retries=0)
    def sleep(conn: Connection) -> None:
        conn.execute("SELECT pg_sleep(0.3)")

    assert outcome(db, sleep.send()) == "done"


def test_a_cancel_that_came_before_its_statement_is_repeated(
    broker: PostgresBroker, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else ends that statement: a thread that waits for the server hears of no interrupt."""
    cancel, first = worker_connection.Connection.cancel_safe, [True]

    def lose_the_first(conn: worker_connection.Connection, **options: Any) -> None:
        if not first:
            cancel(conn, **options)
        first.clear()

    monkeypatch.setattr(worker_connection.Connection, "cancel_safe", lose_the_first)

    @job(broker=broker, timeout=0.3, max_retries=0)
    def sleep(conn: Connection) -> None:
        conn.execute("SELECT pg_sleep(600)")

    outcome(db, sleep.send())

    assert scalar(db, RUNS) < 2


def test_a_jobs_connection_is_used_again_only_when_its_cancel_is_over(
    broker: PostgresBroker, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancel that is still on its way would meet the statement that settles the job."""
    cancel, roll_back, order = Pool.cancel, JobTransaction.roll_back, []

    def cancel_slowly(*args: Any, **options: Any) -> None:
        cancel(*args, **options)
        threading.Event().wait(0.3)
        order.append("cancelled")

    def note_and_roll_back(transaction: JobTransaction) -> None:
        if transaction._open:
            order.append("rolled back")
        roll_back(transaction)

    monkeypatch.setattr(Pool, "cancel", cancel_slowly)
    monkeypatch.setattr(JobTransaction, "roll_back", note_and_roll_back)

    @job(broker=broker, timeout=0.2, max_retries=0)
    def sleep(conn: Connection) -> None:
        conn.execute("SELECT pg_sleep(600)")

    outcome(db, sleep.send())

    assert order == ["cancelled", "rolled back"]


def test_a_job_that_has_met_its_timeout_may_still_tidy_up_in_the_database(
    broker: PostgresBroker, db: psycopg.Connection
) -> None:
    @job(broker=broker, timeout=0.2, max_retries=0)
    def tidy(pool: Pool) -> None:
        try:
            while True:
                pass
        except TimeLimitExceeded:
            with pool.connection() as conn:
                conn.execute("SELECT pg_sleep(0.5)")

    assert outcome(db, tidy.send()) == "done"


# The interrupt meets the body and nothing else


def test_interrupts_lose_no_job_and_no_thread(
    broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    """Three hundred jobs that end just about when their time is up, in Python and in the database."""

    @job(broker=broker, timeout=0.02, max_retries=0)
    def in_python() -> None:
        deadline = clock.monotonic() + 0.019
        while clock.monotonic() < deadline:
            pass

    @job(broker=broker, timeout=0.02, max_retries=0)
    def in_sql(conn: Connection) -> None:
        conn.execute("SELECT pg_sleep(0.016)")

    @job(broker=broker, timeout=0.02, max_retries=0)
    async def in_await(conn: AsyncConnection) -> None:
        await conn.execute("SELECT pg_sleep(0.016)")

    messages = [one.send() for _ in range(100) for one in (in_python, in_sql, in_await)]
    wait_until(lambda: scalar(db, "SELECT count(*) FROM worker.job") == 0, 60, "the end of all jobs")

    assert worker.threads.dead == []
    assert scalar(db, "SELECT count(*) FROM worker.job_history") == len(messages)


def test_the_innocent_beside_them_are_not_met(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, timeout=0.01, max_retries=0)
    def guilty(conn: Connection) -> None:
        conn.execute("SELECT pg_sleep(0.5)")

    @job(broker=broker, max_retries=0)
    def innocent(conn: Connection) -> None:
        conn.execute("SELECT pg_sleep(0.005)")

    messages = []
    for _ in range(60):
        guilty.send()
        messages.append(innocent.send())

    assert {outcome(db, message) for message in messages} == {"done"}


def test_a_job_interrupted_while_it_waits_for_a_connection_takes_none_along(
    broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    """It gives up just when a connection is handed to it; that one must not be lost with the job."""
    taken = [worker.pool.getconn() for _ in range(2)]
    contexts: list[Context] = []

    @job(broker=broker, timeout=0.3, max_retries=0)
    def wait(pool: Pool, ctx: Context) -> None:
        contexts.append(ctx)
        with pool.connection():
            pass

    message = wait.send()
    wait_until(lambda: contexts and contexts[0].stopping, WAIT, "the end of its time")
    for conn in taken:
        worker.pool.putconn(conn)
    outcome(db, message)

    with worker.pool.connection(timeout=2), worker.pool.connection(timeout=2) as conn:
        assert scalar(conn, "SELECT 1") == 1


def test_what_a_job_kept_of_the_pool_is_taken_back_from_it(
    broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    @job(broker=broker)
    def forget(pool: Pool) -> None:
        pool.getconn()

    for message in [forget.send() for _ in range(4)]:
        outcome(db, message)

    with worker.pool.connection(timeout=2), worker.pool.connection(timeout=2) as conn:
        assert scalar(conn, "SELECT 1") == 1


def test_no_session_is_left_in_a_transaction(
    jobs: dict[str, Any], worker: RunningWorker, db: psycopg.Connection
) -> None:
    for message in [jobs[name].send() for name in IN_SQL]:
        outcome(db, message)

    query = "SELECT state FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%%'"
    assert column(db, query) == []


def test_interrupts_in_the_middle_of_the_pool_leave_it_whole(
    broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    """Jobs that do nothing but take and return connections are met where a connection is between two hands."""

    @job(broker=broker, timeout=0.02, max_retries=0)
    def take_and_return(pool: Pool) -> None:
        while True:
            with pool.connection():
                pass

    messages = [take_and_return.send() for _ in range(100)]
    for message in messages:
        outcome(db, message)

    assert (worker.threads.dead, worker.pool.num_out) == ([], 0)
    with worker.pool.connection(timeout=2), worker.pool.connection(timeout=2) as conn:
        assert scalar(conn, "SELECT 1") == 1


def test_a_send_is_not_interrupted_half_way(
    broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    sent: list[Any] = []

    @job(broker=broker)
    def receipt() -> None: ...

    @job(broker=broker, timeout=0.05, max_retries=0)
    def send_on_and_on() -> None:
        while True:
            sent.append(receipt.send_with_options(delay=3_600_000))

    for message in [send_on_and_on.send() for _ in range(20)]:
        outcome(db, message)

    # A send that the interrupt met is made, although its sender did not live to note it.
    assert 0 <= scalar(db, "SELECT count(*) FROM worker.job") - len(sent) <= 20
    assert worker.dispatcher.is_alive


def test_a_late_cancel_does_not_meet_the_next_holder_of_the_connection(
    broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    """It names the run that is to be cancelled, which has nothing out any more."""
    names: list[str | None] = []
    sessions: list[int] = []

    @job(broker=broker, max_retries=0)
    def hold(conn: Connection, seconds: float) -> None:
        names.append(holder.get())
        sessions.append(backend_pid(conn))
        conn.execute("SELECT pg_sleep(%s)", [seconds])

    outcome(db, hold.send(0.0))
    message = hold.send(1.0)
    asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    wait_until(lambda: scalar(db, asleep) == 1, WAIT, "the second run's statement")
    worker.pool.cancel(str(names[0]), timeout=1.0)

    assert outcome(db, message) == "done"
    assert (sessions[0] == sessions[1], names[0] == names[1]) == (True, False)
