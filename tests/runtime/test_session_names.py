"""`pg_stat_activity` shows the worker of a session, and while a job uses it, the job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from dramatiq import Message
from psycopg import AsyncConnection, Connection

from tests.factories import column
from tests.running import RunningWorker, outcome
from worker import Context, Pool, PostgresBroker, job
from worker.queue.lease import application_name

OWN_NAME = "SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()"
ALL_NAMES = "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'carpool %%'"


def own_name(conn: psycopg.Connection) -> str:
    [(name,)] = conn.execute(OWN_NAME).fetchall()
    return str(name)


async def own_name_async(conn: psycopg.AsyncConnection) -> str:
    [(name,)] = await (await conn.execute(OWN_NAME)).fetchall()
    return str(name)


Declare = Callable[[PostgresBroker, list[str]], Any]


def with_a_connection(broker: PostgresBroker, names: list[str]) -> Any:
    @job(broker=broker)
    def look(conn: Connection) -> None:
        names.append(own_name(conn))

    return look


def in_a_block(broker: PostgresBroker, names: list[str]) -> Any:
    @job(broker=broker)
    def look(conn: Connection) -> None:
        with conn.transaction():
            names.append(own_name(conn))

    return look


def with_a_statement_that_cannot_travel(broker: PostgresBroker, names: list[str]) -> Any:
    @job(broker=broker)
    def look(conn: Connection) -> None:
        conn.execute("SELECT 1; SELECT 2")
        names.append(own_name(conn))

    return look


def in_a_pipeline(broker: PostgresBroker, names: list[str]) -> Any:
    @job(broker=broker)
    def look(conn: Connection) -> None:
        conn.execute("SELECT 1")
        with conn.pipeline():
            names.append(own_name(conn))

    return look


def by_itself(broker: PostgresBroker, names: list[str]) -> Any:
    @job(broker=broker, transaction=False)
    def look(conn: Connection) -> None:
        names.append(own_name(conn))

    return look


def by_itself_in_a_block(broker: PostgresBroker, names: list[str]) -> Any:
    @job(broker=broker, transaction=False)
    def look(conn: Connection) -> None:
        with conn.transaction():
            names.append(own_name(conn))

    return look


def from_the_pool(broker: PostgresBroker, names: list[str]) -> Any:
    @job(broker=broker)
    def look(pool: Pool) -> None:
        with pool.connection() as conn:
            names.append(own_name(conn))

    return look


def in_a_step(broker: PostgresBroker, names: list[str]) -> Any:
    @job(broker=broker)
    def look(ctx: Context) -> None:
        with ctx.step("look") as step:
            names.append(own_name(step.conn))

    return look


def at_its_finish(broker: PostgresBroker, names: list[str]) -> Any:
    @job(broker=broker)
    def look(ctx: Context) -> None:
        with ctx.finish() as conn:
            names.append(own_name(conn))

    return look


def in_a_coroutine(broker: PostgresBroker, names: list[str]) -> Any:
    @job(broker=broker)
    async def look(conn: AsyncConnection) -> None:
        names.append(await own_name_async(conn))

    return look


def in_a_coroutines_step(broker: PostgresBroker, names: list[str]) -> Any:
    @job(broker=broker)
    async def look(ctx: Context) -> None:
        async with ctx.step("look") as step:
            names.append(await own_name_async(step.conn))

    return look


@pytest.mark.parametrize(
    "declare",
    [
        with_a_connection, in_a_block, with_a_statement_that_cannot_travel, in_a_pipeline, by_itself,
        by_itself_in_a_block, from_the_pool, in_a_step, at_its_finish, in_a_coroutine, in_a_coroutines_step,
    ],
)  # fmt: skip
def test_a_session_shows_the_job_that_uses_it_and_afterwards_the_worker_only(
    declare: Declare, broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    names: list[str] = []
    sent: Message[Any] = declare(broker, names).send()

    assert outcome(db, sent) == "done"
    plain = application_name(worker.dispatcher.lease.worker_id)
    assert names == [f"{plain} {sent.message_id[-6:]} look"]
    assert set(column(db, ALL_NAMES)) == {plain}


def test_a_job_that_fails_leaves_no_name(broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection) -> None:
    @job(broker=broker, max_retries=0)
    def fail(conn: Connection) -> None:
        conn.execute("SELECT 1")
        raise ValueError

    @job(broker=broker, max_retries=0, transaction=False)
    def fail_in_autocommit(conn: Connection) -> None:
        conn.execute("SELECT nothing")

    assert [outcome(db, each.send()) for each in (fail, fail_in_autocommit)] == ["dead", "dead"]
    assert set(column(db, ALL_NAMES)) == {application_name(worker.dispatcher.lease.worker_id)}


@pytest.mark.parametrize(
    ("actor", "shown"),
    [
        ("send_invoice_email", "send_invoic"),
        ("it's", "it?s"),
        ("gr\u00fc\u00dfe", "gr??e"),
        ("'; SELECT 1; --", "?; SELECT 1"),
        ("back\\slash", "back?slash"),
    ],
)
def test_any_name_is_shown_as_far_as_postgres_has_room(
    actor: str, shown: str, broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    names: list[str] = []

    @job(broker=broker, name=actor)
    def look(conn: Connection) -> None:
        names.append(own_name(conn))

    sent = look.send()

    assert outcome(db, sent) == "done"
    assert names == [f"{application_name(worker.dispatcher.lease.worker_id)} {sent.message_id[-6:]} {shown}"]


def test_a_job_in_autocommit_leaves_its_connection_as_it_was(
    broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    @job(broker=broker, transaction=False)
    def tidy(conn: Connection) -> None:
        conn.execute("VACUUM worker.tick")

    assert outcome(db, tidy.send()) == "done"
    assert worker.pool.stats().dirty_total == 0


def test_a_transaction_may_still_choose_its_isolation(
    broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    levels: list[Any] = []

    @job(broker=broker)
    def read(conn: Connection) -> None:
        conn.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        levels.extend(conn.execute("SHOW transaction_isolation").fetchone() or ())

    assert outcome(db, read.send()) == "done"
    assert levels == ["serializable"]
