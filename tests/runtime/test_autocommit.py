"""`@job(transaction=False)`: a connection in autocommit, at least once instead of exactly once."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection, Connection
from structlog.testing import capture_logs

from tests.factories import column
from tests.running import RunningWorker, attempts, outcome
from worker import Context, PostgresBroker, job

pytestmark = pytest.mark.usefixtures("worker", "note")

NOTES = "SELECT word FROM note ORDER BY word"


@pytest.fixture(params=["plain", "coroutine"])
def book(request: pytest.FixtureRequest, broker: PostgresBroker) -> Any:
    """Writes, sends, and fails in its first attempt."""

    @job(broker=broker)
    def receipt() -> None: ...

    def send_and_fail(ctx: Context) -> None:
        receipt.send_with_options(delay=3_600_000)
        if ctx.attempt == 1:
            raise ValueError

    @job(broker=broker, transaction=False, min_backoff=1, max_backoff=1)
    def plain(conn: Connection, ctx: Context) -> None:
        conn.execute("INSERT INTO note VALUES (%s)", [str(ctx.attempt)])
        send_and_fail(ctx)

    @job(broker=broker, transaction=False, min_backoff=1, max_backoff=1)
    async def coroutine(conn: AsyncConnection, ctx: Context) -> None:
        await conn.execute("INSERT INTO note VALUES (%s)", [str(ctx.attempt)])
        send_and_fail(ctx)

    return plain if request.param == "plain" else coroutine


def test_what_an_attempt_wrote_and_sent_stays(book: Any, db: psycopg.Connection) -> None:
    message = book.send()

    assert (outcome(db, message), attempts(db, message)) == ("done", 2)
    assert column(db, NOTES) == ["1", "2"]
    assert column(db, "SELECT actor FROM worker.job") == ["receipt", "receipt"]


def test_what_refuses_transactions_can_run(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, transaction=False, max_retries=0)
    def tidy(conn: Connection) -> None:
        conn.execute("VACUUM note")

    assert outcome(db, tidy.send()) == "done"


def test_the_next_holder_of_the_connection_is_in_a_transaction(broker: PostgresBroker, db: psycopg.Connection) -> None:
    seen: list[bool] = []

    @job(broker=broker, transaction=False)
    def first(conn: Connection) -> None:
        seen.append(conn.autocommit)

    @job(broker=broker)
    def second(conn: Connection) -> None:
        seen.append(conn.autocommit)

    for one in (first, second, first, second):
        outcome(db, one.send())

    assert seen == [True, False, True, False]


@pytest.mark.parametrize("failing", [False, True])
def test_a_transaction_that_a_job_leaves_open_is_rolled_back_and_told_as_that_and_nothing_else(
    failing: bool, broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    @job(broker=broker, transaction=False, max_retries=0)
    def untidy(conn: Connection) -> None:
        conn.execute("BEGIN")
        conn.execute("INSERT INTO note VALUES ('left')")
        if failing:
            conn.execute("SELECT 1/0")

    with capture_logs() as logs:
        ended = outcome(db, untidy.send())

    told = [line["event"] for line in logs if line["log_level"] == "warning"]
    assert (ended, told) == ("dead" if failing else "done", ["job.transaction_left"])
    assert column(db, NOTES) == []
    assert worker.pool.stats().dirty_total == 0
