"""Whoever keeps dead rows from being vacuumed is named, whatever it is, and nobody else."""

from __future__ import annotations

import psycopg
import pytest

from tests.factories import backend_pid
from tests.pool.outage import stoppable_server
from worker.queue.horizon import Holder, find_holders

HOLDING = ["BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1", "BEGIN; CREATE TABLE note ()"]


@pytest.mark.parametrize("statements", HOLDING, ids=["a snapshot", "writes"])
def test_a_session_is_named_by_its_pid_its_role_its_application_and_what_it_does(
    database: str, db: psycopg.Connection, statements: str
) -> None:
    with psycopg.connect(database, application_name="a report", autocommit=True) as other:
        other.execute(statements.encode())

        [holder] = find_holders(db)
        pid = backend_pid(other)

    assert (holder.kind, holder.pid, holder.application) == ("session", pid, "a report")
    assert str(holder) == f"session {holder.pid} of {db.info.user} (a report, idle in transaction)"
    assert holder.seconds is not None
    assert holder.seconds >= 0


def test_a_transaction_without_a_snapshot_holds_nothing(database: str, db: psycopg.Connection) -> None:
    with psycopg.connect(database) as other:
        other.execute("SELECT")

        assert find_holders(db) == []


def test_who_began_first_is_named_first(database: str, db: psycopg.Connection) -> None:
    with psycopg.connect(database, autocommit=True) as old, psycopg.connect(database, autocommit=True) as young:
        old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT")
        db.execute("CREATE TABLE between ()")
        young.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        young.execute("SELECT")

        assert [holder.pid for holder in find_holders(db)] == [backend_pid(old), backend_pid(young)]


def test_a_prepared_transaction_that_was_forgotten_is_named() -> None:
    with stoppable_server() as server:
        with psycopg.connect(server.url, autocommit=True) as conn:
            conn.execute("ALTER SYSTEM SET max_prepared_transactions = 1")
        server.stop()
        server.start()
        with psycopg.connect(server.url, autocommit=True) as conn:
            conn.execute("BEGIN")
            conn.execute("CREATE TABLE note ()")
            conn.execute("PREPARE TRANSACTION 'forgotten'")

            [holder] = find_holders(conn)

            conn.execute("ROLLBACK PREPARED 'forgotten'")
            assert find_holders(conn) == []
    assert str(holder) == f"prepared transaction forgotten of {holder.role} (prepared)"
    assert "ROLLBACK PREPARED 'forgotten'" in holder.remedy


def test_a_slot_whose_reader_is_behind_is_named() -> None:
    holder = Holder(
        kind="replication slot", name="copy", pid=None, role=None, application=None, state="unused", seconds=None,
        transactions=5000,
    )  # fmt: skip

    assert str(holder) == "replication slot copy (unused)"
    assert "pg_drop_replication_slot('copy')" in holder.remedy
