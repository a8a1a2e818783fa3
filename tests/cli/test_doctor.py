"""The doctor finds what could keep jobs from running, and names the remedy."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tests.cli.conftest import Worker
from tests.cli.pooler import Pooler
from tests.factories import scalar
from tests.waiting import wait_until
from worker import clock
from worker.queue.identity import uuid7
from worker.queue.insertion import insert
from worker.queue.lease import Lease
from worker.queue.new_job import NewJob
from worker.queue.schema import Schema

JOBS = "tests.lifecycle.sample_jobs"


def findings(worker: Worker, url: str, *arguments: str) -> dict[str, dict[str, Any]]:
    """What the doctor says, by check."""
    ended = worker("doctor", "--json", "--jobs", JOBS, *arguments, WORKER_DATABASE_URL=url)
    found = {row["check"]: row for row in json.loads(ended.stdout)}
    assert ended.exit_code == int(any(row["state"] == "fail" for row in found.values()))
    return found


def enqueue(db: psycopg.Connection, actor: str) -> None:
    insert(db, Schema(), [NewJob(uuid7(), "default", actor, 0, 0.0, clock.now().timestamp(), "{}", "{}", None)])


def alive(db: psycopg.Connection, *, pool_size: int = 2) -> Lease:
    lease = Lease(Schema(), duration=60.0, slots=1, pool_size=pool_size)
    lease.register(db)
    return lease


def test_where_all_is_well_every_line_says_so(worker: Worker, database: str, db: psycopg.Connection) -> None:
    alive(db)

    found = findings(worker, database)

    assert {name: row["says"] for name, row in found.items() if row["state"] != "ok"} == {}
    assert list(found) == [
        "settings", "jobs", "database", "version", "pooler", "listen", "clock", "schema", "horizon", "rights",
        "budget", "workers", "bloat", "orphans", "actors", "schedules",
    ]  # fmt: skip


def test_each_check_is_one_line_with_its_remedy(worker: Worker, database: str) -> None:
    ended = worker("doctor", "--jobs", JOBS, WORKER_DATABASE_URL=database)

    lines = ended.stdout.splitlines()
    assert len(lines) == 16
    assert "warn  workers     no worker is alive  ->  start one with 'worker run'" in lines
    assert ended.exit_code == 0


def test_the_settings_are_told_with_their_origin_and_without_the_password(worker: Worker, server: str) -> None:
    ended = worker("doctor", "--pool-size", "7", WORKER_DATABASE_URL="postgresql://u:sesame@127.0.0.1:1/d")

    assert "user=u dbname=d host=127.0.0.1 port=1 (the variable WORKER_DATABASE_URL)" in ended.stdout
    assert "pool_size = 7 (the flag --pool-size)" in ended.stdout
    assert "sesame" not in ended.output


def test_a_database_out_of_reach_is_a_finding_and_the_last(worker: Worker) -> None:
    found = findings(worker, "postgresql://u@127.0.0.1:1/d")

    assert list(found)[-1] == "database"
    assert found["database"]["state"] == "fail"
    assert "Connection refused" in found["database"]["says"]


def test_a_module_that_cannot_be_imported_is_a_finding(worker: Worker, database: str) -> None:
    found = findings(worker, database, "--jobs", "tests.lifecycle.broken_jobs")

    assert found["jobs"]["state"] == "fail"
    assert "ZeroDivisionError" in found["jobs"]["says"]


def test_a_missing_schema_is_a_finding_with_the_command(worker: Worker, database: str) -> None:
    found = findings(worker, database, "--schema", "other")

    assert (found["schema"]["state"], "worker migrate" in found["schema"]["remedy"]) == ("fail", True)
    assert "rights" not in found


@pytest.fixture
def stranger(db: psycopg.Connection, database: str) -> Iterator[str]:
    """URL of a role that may read the tables and owns none of them."""
    name = f"stranger_{os.getpid()}"
    role = sql.Identifier(name)
    db.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
    db.execute(sql.SQL("GRANT USAGE, CREATE ON SCHEMA worker TO {}").format(role))
    db.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA worker TO {}").format(role))
    yield make_conninfo(database, user=name)
    db.execute(sql.SQL("DROP OWNED BY {}").format(role))
    db.execute(sql.SQL("DROP ROLE {}").format(role))


def test_a_role_that_does_not_own_the_tables_is_a_finding(
    worker: Worker, db: psycopg.Connection, stranger: str
) -> None:
    found = findings(worker, stranger)
    assert "does not own" in found["rights"]["says"]

    db.execute("REVOKE CREATE ON SCHEMA worker FROM " + f"stranger_{os.getpid()}")
    assert "lacks CREATE on schema 'worker'" in findings(worker, stranger)["rights"]["says"]


def test_a_fleet_that_does_not_fit_the_server_is_told_with_the_sum(
    worker: Worker, database: str, db: psycopg.Connection
) -> None:
    alive(db, pool_size=10_000)
    budget = findings(worker, database)["budget"]

    assert budget["state"] == "warn"
    assert "1 live workers hold up to 10000 sessions" in budget["says"]


def test_a_pool_larger_than_the_server_is_a_failure(worker: Worker, database: str) -> None:
    assert findings(worker, database, "--pool-size", "10000")["budget"]["state"] == "fail"


def test_whoever_holds_the_vacuum_horizon_is_named(
    worker: Worker, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.cli.doctor.checks._LONG", -1.0)
    with psycopg.connect(database, application_name="a report") as other:
        other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        pid = scalar(other, "SELECT pg_backend_pid()")

        horizon = findings(worker, database)["horizon"]

    assert horizon["state"] == "warn"
    assert horizon["says"].startswith(f"session {pid} of ")
    assert "(a report, idle in transaction) keeps dead rows from being vacuumed for 0 s" in horizon["says"]
    assert f"pg_terminate_backend({pid})" in horizon["remedy"]


def test_a_transaction_that_sees_no_rows_is_not_taken_for_a_holder(
    worker: Worker, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.cli.doctor.checks._LONG", -1.0)
    with psycopg.connect(database) as other:
        other.execute("SELECT")

        assert findings(worker, database)["horizon"]["state"] == "ok"


def test_jobs_of_workers_that_are_gone_are_told(worker: Worker, database: str, db: psycopg.Connection) -> None:
    enqueue(db, "note")
    db.execute("UPDATE worker.job SET state = 'running', claimed_by = %s, claimed_at = now()", [uuid7()])
    alone = findings(worker, database)["orphans"]
    alive(db)
    watched = findings(worker, database)["orphans"]

    assert (alone["state"], watched["state"]) == ("warn", "fail")
    assert "1 running jobs" in alone["says"]
    assert "start a worker" in alone["remedy"]


def test_jobs_that_nobody_here_declares_are_told_by_name(worker: Worker, database: str, db: psycopg.Connection) -> None:
    enqueue(db, "note")
    enqueue(db, "of_the_next_version")

    actors = findings(worker, database)["actors"]

    assert actors["state"] == "warn"
    assert "of_the_next_version (1)" in actors["says"]
    assert "note (" not in actors["says"]


def test_schedules_that_do_not_tick_are_told_with_the_reason(
    worker: Worker, database: str, db: psycopg.Connection
) -> None:
    declare = """
        INSERT INTO worker.schedule (
            name, spec, tz, actor, missed, overlap, grace, last_tick, paused_at, declared_at, confirmed_at
        ) VALUES (
            %s, '0 3 * * *', 'UTC', 'note', 'skip', 'skip', 60, now(), CASE WHEN %s THEN now() END, now(),
            now() - make_interval(secs => %s)
        )"""
    db.execute(declare, ["report", True, 0])
    db.execute(declare, ["purge", False, 3600])

    schedules = findings(worker, database)["schedules"]

    assert schedules["state"] == "warn"
    assert "purge (for 3600 s), report (paused)" in schedules["says"]


def test_a_bloated_table_is_told(
    worker: Worker, database: str, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.cli.doctor.checks._DEAD_ROWS", 10)
    db.execute("ALTER TABLE worker.job SET (autovacuum_enabled = off)")
    for _ in range(20):
        enqueue(db, "note")
    db.execute("DELETE FROM worker.job")

    def told() -> dict[str, Any]:
        # The server counts in its own time; this session's share is told at its next idle moment.
        db.execute("SELECT pg_stat_force_next_flush()")
        return findings(worker, database)["bloat"]

    wait_until(lambda: told()["state"] == "warn", 20, "the statistics")
    assert told()["says"].startswith("0 live and 20 dead rows in 0.")


@pytest.mark.parametrize(("seconds", "state"), [(0.5, "ok"), (5.0, "warn"), (-5.0, "warn"), (120.0, "fail")])
def test_a_clock_that_is_off_is_told(
    worker: Worker, database: str, monkeypatch: pytest.MonkeyPatch, seconds: float, state: str
) -> None:
    now = clock.now
    monkeypatch.setattr(clock, "now", lambda: now() + timedelta(seconds=seconds))

    found = findings(worker, database)["clock"]

    assert found["state"] == state
    if state != "ok":
        assert ("behind" if seconds > 0 else "ahead of") in found["says"]


def test_a_pooler_in_transaction_mode_is_recognised(worker: Worker, database: str) -> None:
    with Pooler(database) as pooler:
        found = findings(worker, pooler.url)

    assert found["pooler"]["state"] == "fail"
    assert "transaction mode" in found["pooler"]["says"]


def test_a_server_without_a_pooler_is_not_taken_for_one(worker: Worker, database: str) -> None:
    assert findings(worker, database)["pooler"]["state"] == "ok"
