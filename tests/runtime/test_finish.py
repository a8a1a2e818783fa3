"""`ctx.finish()`: a short transaction at a job's end that commits with its completion, or not at all."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg import Connection

from tests.factories import column, scalar
from tests.running import WAIT, RunningWorker, attempts, error, outcome, row_id
from tests.waiting import wait_until
from worker import Context, PostgresBroker, Refused, job

pytestmark = pytest.mark.usefixtures("worker", "note")

NOTES = "SELECT word FROM note ORDER BY word"
LOSE = "UPDATE worker.job SET token = token + 1 WHERE id = %s"
IN_TRANSACTION = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND state LIKE 'idle in transaction%%'"""


def declare(broker: PostgresBroker, db: psycopg.Connection, receipt: Any) -> dict[str, Any]:
    """The same job, plain and as a coroutine, and what goes wrong with it: each says in which attempts."""

    def fails(ctx: Context, fault: str, at: str) -> None:
        if fault == at and ctx.attempt == 1:
            raise ValueError(at)

    def loses(ctx: Context, fault: str) -> None:
        if fault == "lease" and scalar(db, "SELECT token FROM worker.job WHERE id = %s", ctx.job_id) < 2:
            db.execute(LOSE, [ctx.job_id])

    @job(broker=broker, min_backoff=1, max_backoff=1)
    def plain(ctx: Context, fault: str = "") -> None:
        assert scalar(db, IN_TRANSACTION) == 0
        with ctx.finish() as conn:
            conn.execute("INSERT INTO note VALUES ('booked')")
            receipt.send_with_options(delay=3_600_000)
            loses(ctx, fault)
            fails(ctx, fault, "within")
        fails(ctx, fault, "after")

    @job(broker=broker, min_backoff=1, max_backoff=1)
    async def coroutine(ctx: Context, fault: str = "") -> None:
        async with ctx.finish() as conn:
            await conn.execute("INSERT INTO note VALUES ('booked')")
            receipt.send_with_options(delay=3_600_000)
            loses(ctx, fault)
            fails(ctx, fault, "within")
        fails(ctx, fault, "after")

    return {"plain": plain, "coroutine": coroutine}


@pytest.fixture
def receipt(broker: PostgresBroker) -> Any:
    @job(broker=broker)
    def receipt() -> None: ...

    return receipt


@pytest.fixture(params=["plain", "coroutine"])
def book(request: pytest.FixtureRequest, broker: PostgresBroker, db: psycopg.Connection, receipt: Any) -> Any:
    return declare(broker, db, receipt)[request.param]


def test_its_writes_and_sends_commit_with_the_jobs_completion(book: Any, db: psycopg.Connection) -> None:
    assert outcome(db, book.send()) == "done"
    assert column(db, NOTES) == ["booked"]
    assert column(db, "SELECT actor FROM worker.job") == ["receipt"]
    assert scalar(db, IN_TRANSACTION) == 0


@pytest.mark.parametrize("fault", ["within", "after"])
def test_what_a_job_raises_undoes_it_and_the_next_attempt_does_it_once(
    book: Any, db: psycopg.Connection, fault: str
) -> None:
    message = book.send(fault=fault)

    assert (outcome(db, message), attempts(db, message)) == ("done", 2)
    assert column(db, NOTES) == ["booked"]
    assert column(db, "SELECT actor FROM worker.job") == ["receipt"]


def test_a_run_that_has_lost_its_lease_leaves_nothing(book: Any, worker: RunningWorker, db: psycopg.Connection) -> None:
    message = book.send(fault="lease")
    lost = "SELECT count(*) FROM worker.job WHERE id = %s AND token >= 2"
    wait_until(lambda: scalar(db, lost, row_id(message)) and not worker.feed.num_running, WAIT, "the end of the run")

    assert column(db, NOTES) == []
    assert column(db, "SELECT actor FROM worker.job") == [book.actor_name]
    assert column(db, "SELECT outcome FROM worker.job_history WHERE id = %s", row_id(message)) == []


def test_a_job_that_goes_on_after_its_block_failed_is_not_done(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, max_retries=0)
    def careless(ctx: Context) -> None:
        try:
            with ctx.finish() as conn:
                conn.execute("INSERT INTO note VALUES ('booked')")
                raise ValueError
        except ValueError:
            pass

    message = careless.send()

    assert outcome(db, message) == "dead"
    assert "its block of `ctx.finish()` failed" in error(db, message)
    assert column(db, NOTES) == []


def test_a_run_has_one_transaction(broker: PostgresBroker, db: psycopg.Connection) -> None:
    refused: list[str] = []

    @job(broker=broker, max_retries=0)
    def twice(ctx: Context) -> None:
        with ctx.finish():
            pass
        with pytest.raises(Refused) as exc_info:
            ctx.finish()
        refused.append(str(exc_info.value))

    @job(broker=broker, max_retries=0)
    def beside(conn: Connection, ctx: Context) -> None:
        with pytest.raises(Refused) as exc_info:
            ctx.finish()
        refused.append(str(exc_info.value))

    assert [outcome(db, message) for message in (twice.send(), beside.send())] == ["done", "done"]
    assert all("begins the one transaction of a run" in text for text in refused)
