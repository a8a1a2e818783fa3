"""Jobs of every kind run, and their effect commits together with their completion."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import dramatiq
import psycopg
import pytest
from psycopg import AsyncConnection, Connection

from tests.factories import column, scalar
from tests.running import WAIT, RunningWorker, attempts, error, outcome, row_id, waiting_row
from tests.waiting import wait_until
from worker import Context, Pool, PostgresBroker, job

pytestmark = pytest.mark.usefixtures("worker", "note")

# xmin is the transaction that wrote a row: equal ones were committed by one COMMIT.
ONE_COMMIT = "SELECT note.xmin = history.xmin FROM note, worker.job_history AS history"


# Kinds


def test_a_plain_actor_runs(broker: PostgresBroker, db: psycopg.Connection) -> None:
    seen: list[int] = []

    @dramatiq.actor(broker=broker)
    def plain(number: int) -> None:
        seen.append(number)

    assert outcome(db, plain.send(42)) == "done"
    assert seen == [42]


def test_a_plain_async_actor_runs(broker: PostgresBroker, db: psycopg.Connection) -> None:
    seen: list[int] = []

    @dramatiq.actor(broker=broker)
    async def plain(number: int) -> None:
        await asyncio.sleep(0)
        seen.append(number)

    assert outcome(db, plain.send(42)) == "done"
    assert seen == [42]


def test_the_writes_of_a_job_commit_with_its_completion(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker)
    def write(conn: Connection, word: str) -> None:
        conn.execute("INSERT INTO note VALUES (%s)", [word])

    outcome(db, write.send("hello"))

    assert column(db, ONE_COMMIT) == [True]


def test_the_writes_of_an_async_job_commit_with_its_completion(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker)
    async def write(conn: AsyncConnection, word: str) -> None:
        await conn.execute("INSERT INTO note VALUES (%s)", [word])

    outcome(db, write.send("hello"))

    assert column(db, ONE_COMMIT) == [True]


def test_a_job_takes_connections_from_the_pool_as_it_likes(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker)
    def write(pool: Pool, word: str) -> None:
        with pool.connection() as conn:
            conn.execute("INSERT INTO note VALUES (%s)", [word])

    outcome(db, write.send("hello"))

    assert column(db, "SELECT word FROM note") == ["hello"]


def test_an_async_job_without_connection_runs(broker: PostgresBroker, db: psycopg.Connection) -> None:
    seen: list[int] = []

    @job(broker=broker)
    async def remember(number: int) -> None:
        await asyncio.sleep(0)
        seen.append(number)

    assert outcome(db, remember.send(42)) == "done"
    assert seen == [42]


def test_async_jobs_share_one_thread(broker: PostgresBroker, db: psycopg.Connection) -> None:
    threads: set[int] = set()

    @job(broker=broker)
    async def remember() -> None:
        threads.add(threading.get_ident())

    for message in [remember.send() for _ in range(4)]:
        outcome(db, message)

    assert len(threads) == 1


def test_a_job_knows_what_it_is(broker: PostgresBroker, db: psycopg.Connection) -> None:
    seen: list[Context] = []

    @job(broker=broker, queue="billing", name="remember")
    def remember(ctx: Context) -> None:
        seen.append(ctx)

    message = remember.send_with_options(max_retries=7)
    outcome(db, message)

    (ctx,) = seen
    assert (ctx.job_id, ctx.actor, ctx.queue, ctx.attempt) == (row_id(message), "remember", "billing", 1)
    assert ctx.options == {"max_retries": 7}
    assert ctx.stopping is None


def test_a_job_gets_everything_it_asks_for(broker: PostgresBroker, db: psycopg.Connection) -> None:
    seen: list[Any] = []

    @job(broker=broker)
    def remember(conn: Connection, pool: Pool, ctx: Context, number: int) -> None:
        seen[:] = [isinstance(conn, Connection), isinstance(pool, Pool), isinstance(ctx, Context), number]

    outcome(db, remember.send(42))

    assert seen == [True, True, True, 42]


def test_arguments_arrive_as_their_annotations_say(broker: PostgresBroker, db: psycopg.Connection) -> None:
    seen: list[Any] = []

    @job(broker=broker)
    def remember(at: datetime, day: date, who: UUID, note: str = "none") -> None:
        seen[:] = [at, day, who, note]

    sent: list[Any] = [datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=UTC), date(2024, 2, 29), UUID(int=7)]
    outcome(db, remember.send(*sent))

    assert seen == [*sent, "none"]


def test_a_job_called_by_another_is_a_plain_function(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker)
    def write(conn: Connection, word: str) -> None:
        conn.execute("INSERT INTO note VALUES (%s)", [word])

    @job(broker=broker)
    def write_twice(conn: Connection, word: str) -> None:
        write(conn, word)
        write(conn, word)

    outcome(db, write_twice.send("hello"))

    assert column(db, "SELECT word FROM note") == ["hello", "hello"]


def test_a_message_that_cannot_be_read_is_dead_and_says_so(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @dramatiq.actor(broker=broker)
    def plain() -> None: ...

    db.execute("SELECT pg_advisory_lock(1)")
    message = plain.send_with_options(delay=300)
    db.execute("UPDATE worker.job SET message = 'not json'")

    assert outcome(db, message) == "dead"
    assert error(db, message).startswith("unreadable: ")


# Sends


def test_what_a_job_sends_commits_with_its_writes(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker)
    def receipt() -> None: ...

    @job(broker=broker)
    def write(conn: Connection) -> None:
        conn.execute("INSERT INTO note VALUES ('hello')")
        receipt.send_with_options(delay=3_600_000)

    outcome(db, write.send())

    assert column(db, "SELECT note.xmin = job.xmin FROM note, worker.job") == [True]


def test_what_an_async_job_sends_commits_with_its_writes(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker)
    def receipt() -> None: ...

    @job(broker=broker)
    async def write(conn: AsyncConnection) -> None:
        await conn.execute("INSERT INTO note VALUES ('hello')")
        receipt.send_with_options(delay=3_600_000)

    outcome(db, write.send())

    assert column(db, "SELECT note.xmin = job.xmin FROM note, worker.job") == [True]


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_what_a_failing_job_sent_vanishes_with_its_transaction(
    broker: PostgresBroker, db: psycopg.Connection, kind: str
) -> None:
    @job(broker=broker)
    def receipt() -> None: ...

    @job(broker=broker, max_retries=0)
    def write(conn: Connection) -> None:
        receipt.send_with_options(delay=3_600_000)
        raise ZeroDivisionError

    @job(broker=broker, max_retries=0)
    async def write_async(conn: AsyncConnection) -> None:
        receipt.send_with_options(delay=3_600_000)
        raise ZeroDivisionError

    outcome(db, write.send() if kind == "def" else write_async.send())

    assert scalar(db, "SELECT count(*) FROM worker.job") == 0


def test_what_a_job_without_connection_sends_is_durable_at_once(broker: PostgresBroker, db: psycopg.Connection) -> None:
    sent, enough = threading.Event(), threading.Event()

    @job(broker=broker)
    def receipt() -> None: ...

    @job(broker=broker)
    def send() -> None:
        receipt.send_with_options(delay=3_600_000)
        sent.set()
        assert enough.wait(WAIT)

    message = send.send()
    assert sent.wait(WAIT)
    found = column(db, "SELECT actor FROM worker.job WHERE state = 'scheduled'")
    enough.set()
    outcome(db, message)

    assert found == ["receipt"]


def test_what_a_job_without_connection_sent_stays_when_it_fails(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker)
    def receipt() -> None: ...

    @job(broker=broker, max_retries=0)
    def send() -> None:
        receipt.send_with_options(delay=3_600_000)
        raise ZeroDivisionError

    outcome(db, send.send())

    assert column(db, "SELECT actor FROM worker.job") == ["receipt"]


def test_jobs_sent_by_jobs_run(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker)
    def count_down(conn: Connection, number: int) -> None:
        conn.execute("INSERT INTO note VALUES (%s)", [str(number)])
        if number:
            count_down.send(number - 1)

    count_down.send(5)

    wait_until(lambda: scalar(db, "SELECT count(*) FROM note") == 6, WAIT, "six notes")


# Failures


def test_a_failing_jobs_writes_are_rolled_back(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, max_retries=0)
    def write(conn: Connection) -> None:
        conn.execute("INSERT INTO note VALUES ('hello')")
        raise ZeroDivisionError

    outcome(db, write.send())

    assert column(db, "SELECT word FROM note") == []


def test_a_failed_job_runs_again_until_it_succeeds(broker: PostgresBroker, db: psycopg.Connection) -> None:
    seen: list[int] = []

    @job(broker=broker, min_backoff=1, max_backoff=1)
    def stumble(ctx: Context) -> None:
        seen.append(ctx.attempt)
        if ctx.attempt < 3:
            raise ZeroDivisionError

    message = stumble.send()

    assert outcome(db, message) == "done"
    assert (seen, attempts(db, message)) == ([1, 2, 3], 3)


def test_a_job_out_of_attempts_is_dead_with_its_traceback(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, max_retries=2, min_backoff=1, max_backoff=1)
    def stumble() -> None:
        _ = 1 / 0

    message = stumble.send()

    assert outcome(db, message) == "dead"
    assert attempts(db, message) == 3
    assert "in stumble" in error(db, message)
    assert error(db, message).rstrip().endswith("ZeroDivisionError: division by zero")


def test_a_retry_waits_in_its_row_with_its_error(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, min_backoff=3_600_000)
    def stumble() -> None:
        _ = 1 / 0

    row = waiting_row(db, stumble.send(), "scheduled")

    assert (row["attempt"], row["options"]["retries"]) == (1, 1)
    assert "ZeroDivisionError" in row["error"]


def test_the_backoff_grows_with_every_retry(broker: PostgresBroker, db: psycopg.Connection) -> None:
    delays = "SELECT extract(epoch FROM due_at - clock_timestamp())::float FROM worker.job WHERE state = 'scheduled'"

    @job(broker=broker, min_backoff=1_000_000)
    def stumble() -> None:
        _ = 1 / 0

    @job(broker=broker, min_backoff=1_000_000)
    def stumble_late() -> None:
        _ = 1 / 0

    waiting_row(db, stumble.send(), "scheduled")
    first = scalar(db, delays)
    db.execute("DELETE FROM worker.job")
    waiting_row(db, broker.enqueue(stumble_late.message().copy(options={"retries": 3})), "scheduled")

    assert scalar(db, delays) > 3 * first


def test_a_job_may_ask_for_its_own_delay(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker)
    def come_back() -> None:
        raise dramatiq.Retry(delay=3_600_000)

    waiting_row(db, come_back.send(), "scheduled")

    assert scalar(db, "SELECT due_at > now() + interval '3500 s' FROM worker.job")


def test_an_error_named_by_throws_is_not_retried(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, throws=(ZeroDivisionError,))
    def stumble() -> None:
        _ = 1 / 0

    message = stumble.send()

    assert outcome(db, message) == "dead"
    assert attempts(db, message) == 1


def test_a_failing_async_job_runs_again(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, min_backoff=1, max_backoff=1)
    async def stumble(ctx: Context) -> None:
        if ctx.attempt < 3:
            raise ZeroDivisionError

    message = stumble.send()

    assert outcome(db, message) == "done"
    assert attempts(db, message) == 3


def test_a_job_that_exits_is_a_job_that_failed(
    broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    @job(broker=broker, max_retries=0)
    def leave() -> None:
        raise SystemExit(3)

    assert outcome(db, leave.send()) == "dead"
    assert worker.threads.dead == []


def test_many_jobs_run_once_each(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker)
    def write(conn: Connection, number: int) -> None:
        conn.execute("INSERT INTO note VALUES (%s)", [str(number)])

    for message in [write.send(number) for number in range(200)]:
        assert outcome(db, message) == "done"

    assert scalar(db, "SELECT count(*) = 200 AND count(DISTINCT word) = 200 FROM note")
