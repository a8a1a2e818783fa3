"""A transaction's BEGIN travels with its first statement, and nothing else is different from plain psycopg."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.pq import PipelineStatus, TransactionStatus

from tests.bench.protocol import Traffic, watched
from tests.factories import backend_pid, opened_pool, scalar, terminate
from tests.pool.conftest import OpenPool
from worker.pool import Pool


@pytest.fixture
def conn(pool: Pool) -> Iterator[psycopg.Connection]:
    """With a table of one row."""
    with pool.connection() as conn:
        conn.execute("CREATE TABLE price (amount int CHECK (amount > 0))")
        conn.execute("INSERT INTO price VALUES (1)")
        conn.commit()
        yield conn


def status(conn: psycopg.Connection) -> TransactionStatus:
    return conn.info.transaction_status


@pytest.mark.parametrize(
    ("query", "params", "trips"),
    [
        ("SELECT 1", None, 1),
        ("SELECT %s", [1], 1),
        ("SELECT 1; SELECT 2", None, 2),  # only the simple protocol takes several
    ],
)
def test_it_costs_no_round_trip_of_its_own(query: str, params: list[int] | None, trips: int, database: str) -> None:
    with watched() as wire, opened_pool(database) as pool, pool.connection() as conn:
        conn.execute("SELECT")
        conn.rollback()
        before = wire.traffic()
        conn.execute(query, params)
        spent = wire.traffic() - before

    assert spent.trips == trips


def test_a_transaction_of_one_statement_is_two_round_trips(database: str) -> None:
    with watched() as wire, opened_pool(database) as pool, pool.connection() as conn:
        conn.execute("SELECT")
        conn.rollback()
        before = wire.traffic()
        conn.execute("SELECT %s", [1])
        conn.commit()
        spent = wire.traffic() - before

    assert spent == Traffic(statements=3, trips=2, commits=1)


def test_what_it_prepares_travels_along_too(conn: psycopg.Connection) -> None:
    for number in range(10):
        assert conn.execute("SELECT amount + %s FROM price", [number]).fetchone() == (1 + number,)
        conn.commit()

    assert conn.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (1,)


def test_a_statement_that_cannot_be_prepared_is_told_of_and_leaves_nothing(conn: psycopg.Connection) -> None:
    for _ in range(3):
        with pytest.raises(psycopg.errors.UndefinedColumn, match="nothing"):
            conn.execute("SELECT nothing FROM price WHERE amount = %s", [1], prepare=True)
        assert status(conn) == TransactionStatus.INERROR
        conn.rollback()

    assert conn.execute("SELECT amount FROM price WHERE amount = %s", [1], prepare=True).fetchone() == (1,)


def test_a_statement_that_fails_leaves_a_failed_transaction(conn: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        conn.execute("INSERT INTO price VALUES (%s)", [-1])

    assert caught.value.diag.constraint_name == "price_amount_check"
    assert status(conn) == TransactionStatus.INERROR
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        conn.execute("SELECT 1")
    conn.rollback()
    assert conn.execute("SELECT count(*) FROM price").fetchone() == (1,)


def test_an_error_points_at_the_place_in_the_statement(conn: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.SyntaxError, match="LINE 1: SELEC 1") as caught:
        conn.execute("SELEC 1")

    assert caught.value.diag.statement_position == "1"


def test_arguments_that_cannot_be_sent_begin_nothing(conn: psycopg.Connection) -> None:
    with pytest.raises(psycopg.ProgrammingError):
        conn.execute("SELECT %s", [object()])
    assert status(conn) == TransactionStatus.IDLE

    assert conn.execute("SELECT 2").fetchone() == (2,)
    assert status(conn) == TransactionStatus.INTRANS


def test_several_statements_at_once_are_one_transaction(conn: psycopg.Connection) -> None:
    cursor = conn.execute("INSERT INTO price VALUES (2); SELECT count(*) FROM price")

    assert cursor.nextset()
    assert cursor.fetchone() == (2,)
    conn.rollback()
    assert conn.execute("SELECT count(*) FROM price").fetchone() == (1,)


def test_its_kind_is_as_the_connection_says(conn: psycopg.Connection) -> None:
    conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    conn.read_only = True

    assert conn.execute("SHOW transaction_isolation").fetchone() == ("serializable",)
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        conn.execute("DELETE FROM price")


def promise(conn: psycopg.Connection) -> None:
    conn._num_transactions += 1  # as the transaction of a job does


def begin(conn: psycopg.Connection) -> None:
    conn.execute("SELECT 1")


@pytest.mark.parametrize("start", [promise, begin])
def test_autocommit_does_not_change_once_a_transaction_is_promised(
    start: Callable[[psycopg.Connection], None], conn: psycopg.Connection
) -> None:
    start(conn)

    with pytest.raises(psycopg.ProgrammingError, match="can't change 'autocommit' now"):
        conn.autocommit = True

    conn._num_transactions = 0


def test_autocommit_does_not_change_in_a_pipeline_with_something_in_it(conn: psycopg.Connection) -> None:
    with conn.pipeline():
        conn.execute("SELECT 1")

        with pytest.raises(psycopg.ProgrammingError, match="can't change 'autocommit' now"):
            conn.autocommit = True


def test_autocommit_begins_nothing(conn: psycopg.Connection) -> None:
    conn.autocommit = True

    conn.execute("INSERT INTO price VALUES (%s)", [2])

    assert status(conn) == TransactionStatus.IDLE


def test_a_commit_is_refused_once_a_transaction_is_promised(conn: psycopg.Connection) -> None:
    promise(conn)

    with pytest.raises(psycopg.ProgrammingError, match="forbidden within a Transaction"):
        conn.commit()

    conn._num_transactions = 0


def test_a_commit_on_a_closed_connection_is_refused(conn: psycopg.Connection) -> None:
    conn.close()

    with pytest.raises(psycopg.OperationalError, match="closed"):
        conn.commit()


def test_a_commit_in_a_pipeline_has_it_sent(conn: psycopg.Connection, db: psycopg.Connection) -> None:
    conn.autocommit = True
    with conn.pipeline():
        conn.execute("INSERT INTO price VALUES (2)")
        conn.commit()

        assert scalar(db, "SELECT count(*) FROM price WHERE amount = 2") == 1


def with_a_cursor_of_the_server(conn: psycopg.Connection) -> None:
    with conn.cursor("named") as cursor:
        cursor.execute("SELECT * FROM price").fetchall()


USES: dict[str, Callable[[psycopg.Connection], Any]] = {
    "executemany": lambda conn: conn.cursor().executemany("INSERT INTO price VALUES (%s)", [[2], [3]]),
    "copy": lambda conn: list(conn.cursor().copy("COPY price TO STDOUT").__enter__()),
    "stream": lambda conn: list(conn.cursor().stream("SELECT * FROM price")),
    "a cursor of the server": with_a_cursor_of_the_server,
    "a cursor that merges": lambda conn: psycopg.ClientCursor(conn).execute("SELECT * FROM price WHERE 1 = %s", [1]),
    "nothing": lambda conn: conn.execute(""),
    "NOTIFY": lambda conn: conn.execute("NOTIFY somebody"),
}


@pytest.mark.parametrize("use", USES.values(), ids=list(USES))
def test_whatever_comes_first_begins_a_transaction(
    use: Callable[[psycopg.Connection], Any], conn: psycopg.Connection
) -> None:
    use(conn)

    assert status(conn) in (TransactionStatus.INTRANS, TransactionStatus.ACTIVE)


def test_blocks_of_psycopg_end_it_as_ever(conn: psycopg.Connection) -> None:
    with conn.transaction():
        conn.execute("INSERT INTO price VALUES (%s)", [2])
        assert status(conn) == TransactionStatus.INTRANS
    with conn.pipeline():
        conn.execute("INSERT INTO price VALUES (%s)", [3])
    conn.commit()

    assert conn.execute("SELECT sum(amount) FROM price").fetchone() == (6,)


@pytest.mark.parametrize("query", ["COPY price TO STDOUT", "/* all */ COPY price TO STDOUT"])
def test_a_copy_where_none_is_possible_is_refused_and_its_session_replaced(
    query: str, pool: Pool, conn: psycopg.Connection
) -> None:
    with pytest.raises(psycopg.Error), pool.connection() as other:
        other.execute(query)

    assert pool.num_out == 1
    with pool.connection() as other:
        assert other.execute("SELECT amount FROM price").fetchone() == (1,)


def test_a_session_that_ends_meanwhile_says_why(pool: Pool, db: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.AdminShutdown), pool.connection() as conn:
        conn.execute("SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(%s)", [60])


def test_a_session_that_has_ended_says_why(pool: Pool, db: psycopg.Connection) -> None:
    with pool.connection() as conn:
        pid = backend_pid(conn)
        conn.rollback()
        terminate(db, pid)
        with pytest.raises(psycopg.errors.AdminShutdown):
            conn.execute("SELECT %s", [1])


def test_one_left_in_the_middle_is_not_handed_on(pool: Pool) -> None:
    """As an interrupt between two steps of Python leaves it."""
    with pool.connection() as conn:
        pid = backend_pid(conn)
        conn.rollback()
        conn.pgconn.enter_pipeline_mode()

    with pool.connection() as conn:
        assert conn.pgconn.pipeline_status == PipelineStatus.OFF
        assert backend_pid(conn) != pid


def test_coroutines_save_the_same_trip(open_pool: OpenPool, database: str) -> None:
    async def use(pool: Pool, wire: Any) -> Traffic:
        async with pool.connection() as conn:
            await conn.execute("SELECT")
            await conn.rollback()
            before = wire.traffic()
            await conn.execute("SELECT %s", [1])
            await conn.commit()
            traffic: Traffic = wire.traffic() - before
            return traffic

    with watched() as wire, opened_pool(database) as pool:
        assert asyncio.run(use(pool, wire)) == Traffic(statements=3, trips=2, commits=1)


def test_more_than_libpq_takes_is_refused_and_leaves_a_transaction(conn: psycopg.Connection) -> None:
    with pytest.raises(psycopg.OperationalError, match="parameters"):
        conn.execute(f"SELECT {', '.join(['%s'] * 70_000)}".encode(), [1] * 70_000)

    assert status(conn) == TransactionStatus.INTRANS
    assert conn.execute("SELECT 2").fetchone() == (2,)


def test_one_left_in_a_two_phase_transaction_is_not_handed_on(pool: Pool) -> None:
    conn = pool.acquire()
    conn.tpc_begin("left")
    pool.release(conn)

    with pool.connection() as other:
        other.execute("SELECT 1")
    assert conn.closed


def test_one_left_in_a_pipeline_block_is_not_handed_on(pool: Pool) -> None:
    """As an interrupt within psycopg's own block leaves it."""
    conn = pool.acquire()
    conn._pipeline = psycopg.Pipeline(conn)
    pool.release(conn)

    with pool.connection() as other:
        assert other._pipeline is None
