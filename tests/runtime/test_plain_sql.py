"""What the README shows for psql and triggers, run as it stands there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from tests.factories import column, scalar
from tests.running import WAIT, running_worker
from tests.waiting import wait_until
from worker import PostgresBroker, job

README = Path(__file__).parents[2] / "README.md"
NOW, LATER, TRIGGER = re.findall(r"```sql\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.fixture
def served(broker: PostgresBroker, database: str, db: psycopg.Connection) -> Iterator[None]:
    db.execute("CREATE TABLE invoice (id int, paid_at timestamptz)")

    @job(broker=broker, queue="billing", name="charge")
    def charge(conn: psycopg.Connection, invoice_id: int) -> None:
        conn.execute("UPDATE invoice SET paid_at = now() WHERE id = %s", [invoice_id])

    with running_worker(broker, database):
        yield


def is_paid(db: psycopg.Connection, invoice_id: int) -> bool:
    return bool(scalar(db, "SELECT count(paid_at) FROM invoice WHERE id = %s", invoice_id))


@pytest.mark.usefixtures("served")
def test_a_plain_insert_runs_a_job(db: psycopg.Connection) -> None:
    db.execute("INSERT INTO invoice VALUES (42)")

    db.execute(NOW.encode())

    wait_until(lambda: is_paid(db, 42), WAIT, "the invoice to be paid")


def test_a_plain_insert_wakes_workers(db: psycopg.Connection) -> None:
    db.execute("LISTEN worker_wake")

    db.execute(NOW.encode())

    assert len(list(db.notifies(timeout=5, stop_after=1))) == 1


def test_a_plain_insert_for_later_waits_and_workers_are_told(db: psycopg.Connection) -> None:
    db.execute("LISTEN worker_later")

    db.execute(LATER.encode())

    assert column(db, "SELECT state FROM worker.job WHERE due_at > now() + interval '59 min'") == ["scheduled"]
    assert len(list(db.notifies(timeout=5, stop_after=1))) == 1


@pytest.mark.usefixtures("served")
def test_a_trigger_runs_a_job_for_each_row(db: psycopg.Connection) -> None:
    db.execute(TRIGGER.encode())

    db.execute("INSERT INTO invoice VALUES (1), (2)")

    wait_until(lambda: is_paid(db, 1) and is_paid(db, 2), WAIT, "both invoices to be paid")


def test_the_id_of_a_plain_insert_sorts_by_time_as_ours_do(db: psycopg.Connection) -> None:
    for _ in range(3):
        db.execute(NOW.encode())
        db.execute("SELECT pg_sleep(0.002)")

    ids = column(db, "SELECT id FROM worker.job ORDER BY enqueued_at")

    assert ids == sorted(ids)
    assert {(found.version, found.variant) for found in ids} == {(7, UUID(int=ids[0].int).variant)}
    assert abs((ids[0].int >> 80) / 1000 - scalar(db, "SELECT extract(epoch FROM now())::float8")) < 60


@pytest.mark.parametrize("args", ["[42]", "42", "null"])
def test_arguments_without_names_are_refused_by_a_rule_that_says_so(db: psycopg.Connection, args: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match="job_args_are_named"):
        db.execute("INSERT INTO worker.job (actor, args) VALUES ('charge', %s)", [args])
