"""A job's transaction begins with the job's first statement, whatever that is, and stays the job's only one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection, Connection
from psycopg.pq import TransactionStatus

from tests.factories import column, scalar
from tests.running import error, outcome
from worker import PostgresBroker, job

pytestmark = pytest.mark.usefixtures("worker", "note")

NOTES = "SELECT word FROM note ORDER BY word"
HELLO = "INSERT INTO note VALUES ('hello')"


def nested(conn: Connection) -> None:
    with conn.transaction():
        conn.execute(HELLO)


def nested_in_a_pipeline(conn: Connection) -> None:
    with conn.pipeline(), conn.transaction():
        conn.execute(HELLO)


def pipelined(conn: Connection) -> None:
    with conn.pipeline():
        conn.execute(HELLO)


def copied(conn: Connection) -> None:
    with conn.cursor().copy("COPY note FROM STDIN") as copy:
        copy.write_row(["hello"])


def written_by_many(conn: Connection) -> None:
    conn.cursor().executemany("INSERT INTO note VALUES (%s)", [["hello"]])


def written_at_once(conn: Connection) -> None:
    conn.execute("SELECT 1; " + HELLO)


FIRST: list[Callable[[Connection], None]] = [
    nested, nested_in_a_pipeline, pipelined, copied, written_by_many, written_at_once,
]  # fmt: skip


@pytest.mark.parametrize("write", FIRST)
def test_whatever_comes_first_is_in_it(
    write: Callable[[Connection], None], broker: PostgresBroker, db: psycopg.Connection
) -> None:
    @job(broker=broker, max_retries=0)
    def fail(conn: Connection) -> None:
        write(conn)
        raise ValueError("undone")

    @job(broker=broker)
    def succeed(conn: Connection) -> None:
        write(conn)

    assert outcome(db, fail.send()) == "dead"
    assert column(db, NOTES) == []
    assert outcome(db, succeed.send()) == "done"
    assert column(db, NOTES) == ["hello"]


async def async_nested(conn: AsyncConnection) -> None:
    async with conn.transaction():
        await conn.execute(HELLO)


async def async_nested_in_a_pipeline(conn: AsyncConnection) -> None:
    async with conn.pipeline(), conn.transaction():
        await conn.execute(HELLO)


async def async_copied(conn: AsyncConnection) -> None:
    async with conn.cursor().copy("COPY note FROM STDIN") as copy:
        await copy.write_row(["hello"])


ASYNC_FIRST: list[Callable[[AsyncConnection], Awaitable[None]]] = [
    async_nested, async_nested_in_a_pipeline, async_copied,
]  # fmt: skip


@pytest.mark.parametrize("write", ASYNC_FIRST)
def test_whatever_comes_first_in_a_coroutine_is_in_it(
    write: Callable[[AsyncConnection], Awaitable[None]], broker: PostgresBroker, db: psycopg.Connection
) -> None:
    @job(broker=broker, max_retries=0)
    async def fail(conn: AsyncConnection) -> None:
        await write(conn)
        raise ValueError("undone")

    @job(broker=broker)
    async def succeed(conn: AsyncConnection) -> None:
        await write(conn)

    assert outcome(db, fail.send()) == "dead"
    assert column(db, NOTES) == []
    assert outcome(db, succeed.send()) == "done"
    assert column(db, NOTES) == ["hello"]


def test_until_then_the_server_sees_none(broker: PostgresBroker, db: psycopg.Connection) -> None:
    """So a job that first computes, or talks to the network, does not hold back the server's cleaning."""
    seen: list[Any] = []

    @job(broker=broker)
    def look(conn: Connection) -> None:
        seen.append(conn.info.transaction_status)

    assert outcome(db, look.send()) == "done"
    assert seen == [TransactionStatus.IDLE]


@pytest.mark.parametrize("attempt", ["COMMIT", "ROLLBACK"])
def test_a_job_that_ends_it_and_begins_another_is_found_out(
    attempt: str, broker: PostgresBroker, db: psycopg.Connection
) -> None:
    @job(broker=broker, max_retries=0)
    def sly(conn: Connection) -> None:
        conn.execute(HELLO)
        conn.execute(attempt)
        conn.execute("INSERT INTO note VALUES ('again')")

    message = sly.send()

    assert outcome(db, message) == "dead"
    assert "TransactionEnded: the job ended its own transaction" in error(db, message)
    assert "again" not in column(db, NOTES)


def change_autocommit(conn: Connection) -> None:
    conn.autocommit = True


def change_isolation(conn: Connection) -> None:
    conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE


@pytest.mark.parametrize("change", [change_autocommit, change_isolation, Connection.commit, Connection.rollback])
def test_before_it_has_begun_it_cannot_be_left_either(
    change: Callable[[Connection], None], broker: PostgresBroker, db: psycopg.Connection
) -> None:
    @job(broker=broker, max_retries=0)
    def sly(conn: Connection) -> None:
        change(conn)

    message = sly.send()

    assert outcome(db, message) == "dead"
    assert "ProgrammingError" in error(db, message)
    assert scalar(db, "SELECT count(*) FROM note") == 0


def test_before_it_has_begun_no_other_kind_can_begin(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, max_retries=0)
    def sly(conn: Connection) -> None:
        conn.tpc_begin("sly")

    message = sly.send()

    assert outcome(db, message) == "dead"
    assert "can't start a two-phase transaction now" in error(db, message)


def test_what_could_not_be_prepared_is_not_believed_prepared(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, max_retries=0)
    def write(conn: Connection) -> None:
        conn.execute("INSERT INTO note VALUES (%s)", ["hello"], prepare=True)

    db.execute("ALTER TABLE note RENAME TO gone")
    assert {outcome(db, write.send()) for _ in range(4)} == {"dead"}
    db.execute("ALTER TABLE gone RENAME TO note")

    assert {outcome(db, write.send()) for _ in range(8)} == {"done"}
