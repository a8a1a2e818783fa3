"""The history's partitions: made ahead, dropped by age, by any number of workers at once."""

from __future__ import annotations

import threading
from datetime import UTC, date, datetime, timedelta

import psycopg
import pytest
from psycopg import sql

from tests.factories import InThread, column
from tests.queue.conftest import SCHEMA
from worker import SchemaError, clock
from worker.queue.history import History

TODAY = date(2024, 2, 28)

INSERT = """
    INSERT INTO worker.job_history (
        id, queue, actor, outcome, attempt, priority, due_at, enqueued_at, finished_at
    )
    VALUES (gen_random_uuid(), 'default', 'charge', 'done', 1, 0, %(at)s, %(at)s, %(at)s)"""


def partitions(db: psycopg.Connection) -> list[str]:
    return column(
        db, "SELECT relname FROM pg_class WHERE relname ~ '^job_history_2' AND relkind = 'r' ORDER BY relname"
    )


def names(first: date, days: int) -> list[str]:
    return [f"job_history_{first + timedelta(days=n):%Y%m%d}" for n in range(days)]


def test_today_and_the_week_ahead_are_made(db: psycopg.Connection) -> None:
    History(SCHEMA).maintain(db, TODAY)

    assert partitions(db) == names(TODAY, 8)


def test_today_is_the_databases(db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are dated by its clock; this machine's may be days off."""
    monkeypatch.setattr(clock, "now", lambda: datetime(2000, 1, 1, tzinfo=UTC))

    History(SCHEMA).maintain(db)

    db.execute(INSERT, {"at": column(db, "SELECT clock_timestamp()")[0]})
    assert names(date(2000, 1, 1), 1)[0] not in partitions(db)


def test_a_day_begins_and_ends_in_utc(db: psycopg.Connection) -> None:
    db.execute("SET timezone = 'Asia/Tokyo'")
    History(SCHEMA).maintain(db, TODAY)

    db.execute(INSERT, {"at": "2024-02-29 23:59:59.999999+00"})

    found = "SELECT relname FROM worker.job_history JOIN pg_class ON pg_class.oid = job_history.tableoid"
    assert column(db, found) == ["job_history_20240229"]


def test_a_second_call_the_same_day_changes_nothing(db: psycopg.Connection) -> None:
    History(SCHEMA).maintain(db, TODAY)
    History(SCHEMA).maintain(db, TODAY)

    assert partitions(db) == names(TODAY, 8)


def test_days_older_than_what_is_kept_are_dropped(db: psycopg.Connection) -> None:
    history = History(SCHEMA, keep=3)
    history.maintain(db, TODAY)

    history.maintain(db, TODAY + timedelta(days=5))

    assert partitions(db) == names(TODAY + timedelta(days=2), 11)


def test_who_does_not_know_what_is_kept_drops_nothing(db: psycopg.Connection) -> None:
    History(SCHEMA).maintain(db, TODAY)

    History(SCHEMA, keep=None).maintain(db, TODAY + timedelta(days=30))

    assert partitions(db) == names(TODAY, 8) + names(TODAY + timedelta(days=30), 8)


def test_workers_that_boot_together_make_each_day_once(db: psycopg.Connection, database: str) -> None:
    start = threading.Barrier(4, timeout=10)

    def maintain() -> None:
        with psycopg.connect(database, autocommit=True) as conn:
            start.wait()
            History(SCHEMA).maintain(conn, TODAY)

    for worker in [InThread(maintain) for _ in range(4)]:
        worker.result()

    assert partitions(db) == names(TODAY, 8)


def test_workers_that_clean_up_together_drop_each_day_once(db: psycopg.Connection, database: str) -> None:
    History(SCHEMA).maintain(db, TODAY)
    start = threading.Barrier(3, timeout=10)

    def maintain() -> None:
        with psycopg.connect(database, autocommit=True) as conn:
            start.wait()
            History(SCHEMA, keep=1).maintain(conn, TODAY + timedelta(days=9))

    for worker in [InThread(maintain) for _ in range(3)]:
        worker.result()
    History(SCHEMA, keep=1).maintain(db, TODAY + timedelta(days=9))

    assert partitions(db) == names(TODAY + timedelta(days=9), 8)


def test_days_are_made_while_a_jobs_outcome_is_not_committed(db: psycopg.Connection, database: str) -> None:
    History(SCHEMA).maintain(db, TODAY)
    with psycopg.connect(database) as writer:
        writer.execute(INSERT, {"at": "2024-02-28 12:00+00"})

        History(SCHEMA).maintain(db, TODAY + timedelta(days=1))

    assert partitions(db) == names(TODAY, 9)


def test_a_day_that_somebody_reads_is_left_to_a_later_call(db: psycopg.Connection, database: str) -> None:
    history = History(SCHEMA, keep=1)
    history.maintain(db, TODAY)
    with psycopg.connect(database) as reader:
        reader.execute("SELECT count(*) FROM worker.job_history")

        history.maintain(db, TODAY + timedelta(days=2))

        assert names(TODAY, 1)[0] in partitions(db)


def test_a_drop_that_was_given_up_is_completed_by_the_next_call(db: psycopg.Connection, database: str) -> None:
    """A detach that gave up waiting leaves the partition half detached, and refuses to begin again."""
    history = History(SCHEMA, keep=1)
    history.maintain(db, TODAY)
    with psycopg.connect(database) as reader:
        reader.execute("SELECT count(*) FROM worker.job_history")
        history.maintain(db, TODAY + timedelta(days=2))

    history.maintain(db, TODAY + timedelta(days=2))

    assert partitions(db) == names(TODAY + timedelta(days=1), 9)


def test_a_day_that_was_detached_and_not_dropped_is_dropped_by_the_next_call(db: psycopg.Connection) -> None:
    history = History(SCHEMA, keep=1)
    history.maintain(db, TODAY)
    db.execute("ALTER TABLE worker.job_history DETACH PARTITION worker.job_history_20240228")

    history.maintain(db, TODAY + timedelta(days=2))

    assert partitions(db) == names(TODAY + timedelta(days=1), 9)


def test_the_lock_timeout_of_the_house_keeping_ends_with_it(db: psycopg.Connection) -> None:
    History(SCHEMA).maintain(db, TODAY)

    assert column(db, "SHOW lock_timeout") == ["0"]


@pytest.mark.parametrize("day", [date(2024, 12, 31), date(2024, 2, 29)])
def test_the_calendar_has_no_gaps(db: psycopg.Connection, day: date) -> None:
    History(SCHEMA).maintain(db, day)

    for ahead in range(8):
        db.execute(INSERT, {"at": f"{day + timedelta(days=ahead)} 00:00+00"})


def test_house_keeping_waits_a_quarter_of_a_second_for_a_lock_and_not_longer(
    db: psycopg.Connection, database: str
) -> None:
    """It runs on the dispatcher, which has a heartbeat to send."""
    with psycopg.connect(database) as holder:
        holder.execute("LOCK TABLE worker.job_history IN ACCESS EXCLUSIVE MODE")
        began_at = clock.monotonic()

        again = History(SCHEMA).maintain(db, TODAY)

        waited = clock.monotonic() - began_at
    assert (again, partitions(db)) == (10.0, [])
    assert 0.25 <= waited < 2.0


def test_house_keeping_waits_no_longer_for_another_worker_that_keeps_house(
    db: psycopg.Connection, database: str
) -> None:
    with psycopg.connect(database) as other:
        other.execute("SELECT pg_advisory_lock(hashtextextended('worker.job_history', 0))")

        assert History(SCHEMA).maintain(db, TODAY) == 10.0

    assert History(SCHEMA).maintain(db, TODAY) == 3600.0


def test_house_keeping_that_takes_too_long_is_left_to_a_later_call(db: psycopg.Connection, database: str) -> None:
    """The dispatcher would take the error for the end of its session, and begin the next one with the same again."""
    with psycopg.connect(database) as holder:
        holder.execute("LOCK TABLE worker.job_history IN ACCESS EXCLUSIVE MODE")
        db.execute("SET statement_timeout = '100ms'")

        again = History(SCHEMA).maintain(db, TODAY)

    assert (again, partitions(db)) == (10.0, [])


def test_a_role_that_does_not_own_the_tables_is_told_so(db: psycopg.Connection) -> None:
    role = f"guest_{column(db, 'SELECT current_database()')[0]}"
    name = sql.Identifier(role)
    db.execute(sql.SQL("CREATE ROLE {}").format(name))
    try:
        db.execute(sql.SQL("GRANT USAGE ON SCHEMA worker TO {}").format(name))
        db.execute(sql.SQL("GRANT ALL ON ALL TABLES IN SCHEMA worker TO {}").format(name))
        db.execute(sql.SQL("SET ROLE {}").format(name))

        with pytest.raises(SchemaError, match=r"cannot keep house in schema 'worker'.*make it the owner"):
            History(SCHEMA).maintain(db, TODAY)
    finally:
        db.execute("RESET ROLE")
        db.execute(sql.SQL("DROP OWNED BY {}").format(name))
        db.execute(sql.SQL("DROP ROLE {}").format(name))


def test_no_check_is_read_anew_for_each_job_that_ends(db: psycopg.Connection) -> None:
    """The server does that for each statement, and a job with a connection has one of its own."""
    History(SCHEMA).maintain(db, TODAY)

    checks = """
        SELECT conname
        FROM pg_constraint
        WHERE contype = 'c' AND conrelid IN (SELECT relid FROM pg_partition_tree('worker.job_history'))"""
    assert column(db, checks) == []
