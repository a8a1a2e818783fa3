"""Sends of running jobs, and jobs that were sent by another version."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest
from dramatiq import Message

from tests.factories import InThread, column, scalar
from tests.running import WAIT, RunningWorker, attempts, dead_error, outcome, running_worker
from tests.waiting import wait_until
from worker import Context, Pool, PostgresBroker, Unique, job
from worker.queue.identity import job_id

# Whatever becomes of its job, which runs at once.
HELD = Unique("k", scope=timedelta(hours=1))


def sent_by(db: psycopg.Connection, actor: str) -> list[Any]:
    """Arguments of the jobs of *actor*, wherever they are."""
    query = (
        "SELECT args FROM worker.job WHERE actor = %s UNION ALL"
        " SELECT args FROM worker.job_history WHERE actor = %s AND outcome = 'done'"
    )
    return column(db, query, actor, actor)


def by_hand(db: psycopg.Connection, actor: str, args: str) -> Message[None]:
    """A row that no send of ours has checked."""
    sent = scalar(db, "INSERT INTO worker.job (actor, args) VALUES (%s, %s) RETURNING id", actor, args)
    return Message("default", actor, (), {}, {}, message_id=str(sent))


@pytest.fixture
def receipt(broker: PostgresBroker) -> Any:
    @job(broker=broker, name="receipt")
    def receipt(number: int) -> None: ...

    return receipt


@pytest.mark.parametrize("fails", [False, True])
def test_a_send_of_an_async_job_with_a_connection_joins_its_transaction(
    broker: PostgresBroker, receipt: Any, database: str, db: psycopg.Connection, fails: bool
) -> None:
    @job(broker=broker, max_retries=0)
    async def charge(conn: psycopg.AsyncConnection) -> None:
        await receipt.send_async(1)
        receipt.send(2)
        await receipt.send_with_options_async(args=(3,), unique=HELD, tags=["t"])
        receipt.send_with_options(args=(4,), unique="l", tags=["t"])
        receipt.send_with_options(args=(5,), unique="l")
        await conn.execute("SELECT 1")
        if fails:
            raise ValueError("no")

    with running_worker(broker, database):
        message = charge.send()
        assert outcome(db, message) == ("dead" if fails else "done")

    expected = [] if fails else [1, 2, 3, 4]
    assert sorted(args["number"] for args in sent_by(db, "receipt")) == expected
    assert scalar(db, "SELECT count(*) FROM worker.job_tag") == (0 if fails else 2)


def test_a_send_of_an_async_job_without_a_connection_is_durable_at_once(
    broker: PostgresBroker, receipt: Any, database: str, db: psycopg.Connection
) -> None:
    @job(broker=broker, max_retries=0)
    async def charge() -> None:
        await receipt.send_async(1)
        await receipt.send_with_options_async(args=(2,), unique=HELD)
        again = await receipt.send_with_options_async(args=(3,), unique=HELD)
        raise ValueError(again.is_new)

    with running_worker(broker, database):
        message = charge.send()
        assert outcome(db, message) == "dead"

    assert sorted(args["number"] for args in sent_by(db, "receipt")) == [1, 2]
    assert "ValueError: False" in dead_error(db, message)


def test_a_send_of_a_job_without_a_connection_has_keys_and_tags_too(
    broker: PostgresBroker, receipt: Any, database: str, db: psycopg.Connection
) -> None:
    @job(broker=broker, max_retries=0)
    def charge() -> None:
        sent = [receipt.send_with_options(args=(n,), unique=HELD, tags=["t"]) for n in range(2)]
        raise ValueError([message.is_new for message in sent])

    with running_worker(broker, database):
        message = charge.send()
        assert outcome(db, message) == "dead"

    assert "ValueError: [True, False]" in dead_error(db, message)


def test_a_send_in_a_pipeline_of_a_job_has_keys_and_tags_too(
    broker: PostgresBroker, receipt: Any, database: str, db: psycopg.Connection
) -> None:
    @job(broker=broker, max_retries=0)
    def charge(conn: psycopg.Connection) -> None:
        with conn.pipeline():
            for number in (1, 2):
                receipt.send_with_options(args=(number,), unique=HELD, tags=["t"])

    @job(broker=broker, max_retries=0)
    async def charge_async(conn: psycopg.AsyncConnection) -> None:
        async with conn.pipeline():
            for number in (3, 4):
                await receipt.send_with_options_async(args=(number,), unique="l", tags=["t"])

    with running_worker(broker, database):
        sent = [charge.send(), charge_async.send()]
        assert [outcome(db, message) for message in sent] == ["done", "done"]

    assert sorted(args["number"] for args in sent_by(db, "receipt")) == [1, 3]


def test_a_key_in_somebodys_open_transaction_keeps_no_worker_from_its_heartbeat(
    broker: PostgresBroker, receipt: Any, database: str, db: psycopg.Connection
) -> None:
    @job(broker=broker)
    def charge() -> None:
        receipt.send_with_options(args=(2,), unique=HELD)

    with running_worker(broker, database), psycopg.connect(database) as holder:
        receipt.send_with_options(args=(1,), unique=HELD, connection=holder)
        message = charge.send()
        wait_until(lambda: scalar(db, "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"), WAIT, "a wait")
        other = charge.send_with_options(unique=False)
        holder.commit()
        assert (outcome(db, message), outcome(db, other)) == ("done", "done")

    assert [args["number"] for args in sent_by(db, "receipt")] == [1]


def test_a_large_bulk_in_a_job_without_a_connection_goes_through_the_pool(
    broker: PostgresBroker, receipt: Any, database: str, db: psycopg.Connection
) -> None:
    @job(broker=broker)
    def charge(pool: Pool) -> None:
        receipt.send_many([(n,) for n in range(1500)])

    with running_worker(broker, database):
        assert outcome(db, charge.send()) == "done"

    assert len(sent_by(db, "receipt")) == 1500


def test_a_job_of_a_newer_version_is_quarantined_with_the_argument_named(
    broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    @job(broker=broker)
    def charge(invoice_id: int) -> None: ...

    newer = by_hand(db, "charge", '{"invoice_id": 1, "express": true}')

    assert outcome(db, newer) == "dead"
    assert attempts(db, newer) == 1
    assert "quarantined: job 'charge': got an unexpected keyword argument 'express'" in dead_error(db, newer)
    assert "it takes (invoice_id: 'int')" in dead_error(db, newer)


@pytest.mark.parametrize("args", ['{"invoice_id": "x"}', "{}"])
def test_a_row_that_was_edited_by_hand_is_quarantined(
    broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection, args: str
) -> None:
    @job(broker=broker)
    def charge(invoice_id: int) -> None: ...

    message = by_hand(db, "charge", args)

    assert outcome(db, message) == "dead"
    assert "quarantined: job 'charge'" in dead_error(db, message)


def test_a_job_sent_before_a_parameter_was_renamed_or_added_still_runs(
    broker: PostgresBroker, worker: RunningWorker, note: None, db: psycopg.Connection
) -> None:
    @job(broker=broker, aliases={"invoice": "invoice_id"})
    def charge(conn: psycopg.Connection, invoice_id: int, currency: str = "EUR") -> None:
        conn.execute("INSERT INTO note VALUES (%s)", [f"{invoice_id} {currency}"])

    outcome(db, by_hand(db, "charge", '{"invoice": 7}'))

    assert column(db, "SELECT word FROM note") == ["7 EUR"]


def test_a_job_sent_under_a_former_name_still_runs(
    broker: PostgresBroker, worker: RunningWorker, note: None, db: psycopg.Connection
) -> None:
    @job(broker=broker, former_names=["bill"])
    def charge(conn: psycopg.Connection, ctx: Context, invoice_id: int) -> None:
        conn.execute("INSERT INTO note VALUES (%s)", [f"{ctx.actor} {invoice_id}"])

    outcome(db, by_hand(db, "bill", '{"invoice_id": 7}'))

    assert column(db, "SELECT word FROM note") == ["bill 7"]


def test_a_job_unique_while_it_runs_can_be_sent_again_when_it_is_over(
    broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    @job(broker=broker, unique=Unique(scope="running"))
    def charge(invoice_id: int) -> None: ...

    first = charge.send(1)
    outcome(db, first)

    second = charge.send(1)

    assert second.is_new
    assert job_id(second.message_id) != job_id(first.message_id)


def test_a_job_may_send_itself_while_its_key_is_only_for_waiting_jobs(
    broker: PostgresBroker, database: str, db: psycopg.Connection
) -> None:
    @job(broker=broker, unique=Unique("again"))
    def charge(conn: psycopg.Connection, left: int) -> None:
        if left:
            charge.send(left - 1)

    with running_worker(broker, database):
        charge.send(2)
        wait_until(lambda: len(sent_by(db, "charge")) == 3, WAIT, "three runs")


def test_senders_in_threads_and_a_worker_share_one_key(
    broker: PostgresBroker, worker: RunningWorker, receipt: Any, db: psycopg.Connection
) -> None:
    def send() -> bool:
        return bool(receipt.send_with_options(args=(1,), unique=HELD).is_new)

    senders = [InThread(send) for _ in range(8)]

    assert sum(sender.result() for sender in senders) == 1
