"""Sending: a job is a row, in the transaction of whoever sends it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import dramatiq
import psycopg
import pytest
from dramatiq import Message
from dramatiq.errors import QueueNotFound

from tests.factories import column, scalar
from worker import ArgumentError, PostgresBroker, SchemaError, bind, job
from worker.queue.schema import Schema
from worker.queue.statements import HAS_WORK


@pytest.fixture
def charge(broker: PostgresBroker) -> Any:
    @job(broker=broker, name="charge")
    def charge(invoice_id: int) -> None: ...

    return charge


@pytest.fixture
def caller(database: str) -> Any:
    """The caller's own connection, not in autocommit."""
    with psycopg.connect(database) as conn:
        yield conn


def num_jobs(db: psycopg.Connection) -> int:
    return int(scalar(db, "SELECT count(*) FROM worker.job"))


def test_a_job_exists_when_send_returns(charge: Any, db: psycopg.Connection) -> None:
    message = charge.send(42)

    assert column(db, "SELECT id FROM worker.job") == [UUID(message.message_id)]


def test_the_arguments_of_a_job_can_be_read_in_the_table(charge: Any, db: psycopg.Connection) -> None:
    charge.send(42)

    assert scalar(db, "SELECT args FROM worker.job") == {"invoice_id": 42}


def test_ids_of_jobs_sort_by_time(charge: Any) -> None:
    sent = [charge.message(n).message_id for n in range(3)]

    assert [UUID(message_id).version for message_id in sent] == [7, 7, 7]


def test_a_job_sent_in_a_transaction_exists_when_it_commits(
    charge: Any, caller: psycopg.Connection, db: psycopg.Connection
) -> None:
    with bind(caller):
        charge.send(42)
    before = num_jobs(db)

    caller.commit()

    assert (before, num_jobs(db)) == (0, 1)


def test_a_job_sent_in_a_transaction_vanishes_with_its_rollback(
    charge: Any, caller: psycopg.Connection, db: psycopg.Connection
) -> None:
    with bind(caller):
        charge.send(42)

    caller.rollback()

    assert num_jobs(db) == 0


def test_a_job_sent_in_a_savepoint_vanishes_with_it(
    charge: Any, caller: psycopg.Connection, db: psycopg.Connection
) -> None:
    with bind(caller):
        charge.send(1)
        with caller.transaction(force_rollback=True):
            charge.send(2)

    caller.commit()

    assert column(db, "SELECT args FROM worker.job") == [{"invoice_id": 1}]


def test_a_plain_actors_send_joins_the_transaction_too(
    broker: PostgresBroker, caller: psycopg.Connection, db: psycopg.Connection
) -> None:
    @dramatiq.actor(broker=broker)
    def plain() -> None: ...

    with bind(caller):
        plain.send()
    caller.rollback()

    assert num_jobs(db) == 0


def test_a_send_after_the_block_is_on_its_own_again(
    charge: Any, caller: psycopg.Connection, db: psycopg.Connection
) -> None:
    with bind(caller):
        pass
    charge.send(42)

    caller.rollback()

    assert num_jobs(db) == 1


def test_an_inner_binding_counts(
    charge: Any, caller: psycopg.Connection, database: str, db: psycopg.Connection
) -> None:
    with bind(caller), psycopg.connect(database) as inner, bind(inner):
        charge.send(42)

    caller.rollback()

    assert num_jobs(db) == 1


@pytest.mark.parametrize("wrong", [None, "postgresql://", object()], ids=["None", "str", "object"])
def test_binding_something_else_is_refused_with_its_type(wrong: Any) -> None:
    with pytest.raises(
        TypeError,
        match=rf"bind\(\) takes a psycopg\.Connection or AsyncConnection, not builtins\.{type(wrong).__name__}",
    ):
        bind(wrong).__enter__()


def test_a_send_wakes_workers_when_its_transaction_commits(
    charge: Any, caller: psycopg.Connection, db: psycopg.Connection
) -> None:
    db.execute("LISTEN worker_wake")
    with bind(caller):
        charge.send(1)
        charge.send(2)

    caller.commit()

    assert [told.payload for told in db.notifies(timeout=5, stop_after=1)] == [""]


def test_a_send_that_was_rolled_back_wakes_nobody(
    charge: Any, caller: psycopg.Connection, db: psycopg.Connection
) -> None:
    db.execute("LISTEN worker_wake")
    with bind(caller):
        charge.send(1)
    caller.rollback()
    db.execute("SELECT pg_notify('worker_wake', 'the next')")

    assert [told.payload for told in db.notifies(timeout=5, stop_after=1)] == ["the next"]


def test_a_delayed_job_waits_for_its_time_by_the_databases_clock(charge: Any, db: psycopg.Connection) -> None:
    charge.send_with_options(args=(42,), delay=60_000)

    query = "SELECT state, due_at BETWEEN now() + interval '55 s' AND now() + interval '60 s' FROM worker.job"
    assert db.execute(query.encode()).fetchall() == [("scheduled", True)]


def test_a_delay_counts_from_the_send_and_not_from_the_beginning_of_its_transaction(
    charge: Any, caller: psycopg.Connection, db: psycopg.Connection
) -> None:
    began = scalar(caller, "SELECT now()")
    caller.execute("SELECT pg_sleep(0.2)")
    with bind(caller):
        charge.send_with_options(args=(42,), delay=1)
    caller.commit()

    assert scalar(db, "SELECT due_at > %s + interval '0.2 s' FROM worker.job", began)


def test_a_priority_is_a_minute_of_rank(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, priority=3)
    def charge() -> None: ...

    charge.send()

    assert scalar(db, "SELECT extract(epoch FROM rank - due_at)::int FROM worker.job") == 180


def test_a_message_sent_again_replaces_its_job(charge: Any, broker: PostgresBroker, db: psycopg.Connection) -> None:
    message = charge.send(1)

    broker.enqueue(message.copy(kwargs={"invoice_id": 2}, args=()))

    assert column(db, "SELECT args FROM worker.job") == [{"invoice_id": 2}]


def test_a_message_sent_again_begins_anew(charge: Any, broker: PostgresBroker, db: psycopg.Connection) -> None:
    message = charge.send(42)
    db.execute("UPDATE worker.job SET attempt = 5, crashes = 2, error = 'old'")

    broker.enqueue(message)

    assert db.execute("SELECT attempt, crashes, error FROM worker.job").fetchall() == [(0, 0, None)]


def test_a_delay_beyond_reason_is_refused(charge: Any) -> None:
    with pytest.raises(ArgumentError, match="job 'charge': a delay of 1e\\+12 s is more than the 100 years allowed"):
        charge.send_with_options(args=(42,), delay=10**15)


def test_a_send_before_the_migration_names_the_command(broker: PostgresBroker, charge: Any) -> None:
    with broker.on(broker.pool, Schema("elsewhere")), pytest.raises(SchemaError, match="run 'worker migrate'"):
        charge.send(42)


def test_what_nobody_here_can_run_does_not_keep_a_worker_from_being_done(
    charge: Any, broker: PostgresBroker, db: psycopg.Connection
) -> None:
    charge.send(42)

    def has_work(actor: str) -> bool:
        looked = {"queues": ["default"], "actors": [actor]}
        return bool(db.execute(broker.schema.render(HAS_WORK).encode(), looked).fetchall()[0][0])

    assert has_work("charge")
    assert not has_work("somebody_elses")


def test_a_message_sent_again_makes_a_running_delivery_of_it_void(
    charge: Any, broker: PostgresBroker, db: psycopg.Connection
) -> None:
    message = charge.send(1)

    broker.enqueue(message)

    assert scalar(db, "SELECT token FROM worker.job") == 1


def test_a_queue_that_nobody_declared_is_refused(broker: PostgresBroker) -> None:
    message: Message[None] = Message("nowhere", "charge", (), {}, {})

    with pytest.raises(QueueNotFound, match="nowhere"):
        broker.enqueue(message)


def test_a_plain_actors_message_is_kept_as_its_encoder_made_it(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @dramatiq.actor(broker=broker)
    def plain(amount: float) -> None: ...

    plain.send(1e22)

    assert Message.decode(scalar(db, "SELECT message FROM worker.job")).args == (1e22,)


@pytest.mark.parametrize("delay", ["x", float("nan"), -1, True])
def test_what_is_no_delay_is_refused_by_the_send(charge: Any, delay: object) -> None:
    with pytest.raises(ArgumentError, match=rf"job 'charge': delay={delay!r}: expected milliseconds"):
        charge.send_with_options(args=(42,), delay=delay)


def test_a_delay_may_be_a_timedelta(charge: Any, db: psycopg.Connection) -> None:
    charge.send_with_options(args=(42,), delay=timedelta(minutes=1))

    assert scalar(db, "SELECT due_at > now() + interval '50 s' FROM worker.job")
