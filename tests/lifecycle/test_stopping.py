"""Stopping is boring: running jobs finish or are given back, and nothing is left behind."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.factories import column, scalar
from tests.lifecycle.conftest import StartWorker, busy_in_sql, done, row, running_in, send
from worker.embedded import EmbeddedPostgres

SESSIONS = (
    "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'carpool%%' AND datname = current_database()"
)


@pytest.fixture
def logged_db(logged_database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(logged_database, autocommit=True) as db:
        db.execute("CREATE TABLE note (word text)")
        yield db


def said_by_server(server: EmbeddedPostgres, before: int) -> list[str]:
    """All but what it says anyway, and the cancels that were asked for."""
    said = Path(server.folder, "server.log").read_text()[before:].splitlines()
    usual = (" LOG:  checkpoint", "canceling statement due to user request", " STATEMENT: ")
    return [line for line in said if not any(each in line for each in usual)]


# Idle


def test_an_idle_worker_ends_at_once_with_success(start_worker: StartWorker, database: str) -> None:
    """Measured by the worker, from the signal to the end: how long Python takes to exit is not its doing."""

    def seconds() -> float:
        worker = start_worker(database).running()
        assert worker.end() == 0
        return float(worker.event("worker.stopped")["seconds"])

    # Of a grace of 25; the best of three, because a machine that is busy elsewhere may stop any of them for a while.
    assert any(seconds() < 0.5 for _ in range(3))


def test_an_idle_worker_with_schedules_and_health_ends_at_once_too(
    start_worker: StartWorker, database: str, tmp_path: Path
) -> None:
    def seconds() -> float:
        worker = start_worker(database, "--http", f"unix:{tmp_path}/http", jobs="jobs").running()
        assert worker.end() == 0
        return float(worker.event("worker.stopped")["seconds"])

    assert any(seconds() < 0.5 for _ in range(3))
    assert not Path(tmp_path, "http").exists()


def test_ctrl_c_ends_an_idle_worker_with_success(start_worker: StartWorker, database: str) -> None:
    worker = start_worker(database).running()

    assert worker.end(signal.SIGINT) == 0
    assert "Traceback" not in worker.said


def test_a_worker_that_stopped_leaves_no_session_and_no_row(
    start_worker: StartWorker, database: str, db: psycopg.Connection
) -> None:
    start_worker(database).running().end()

    assert scalar(db, SESSIONS) == 0
    assert column(db, "SELECT id FROM worker.worker") == []


def test_a_worker_that_stopped_gave_the_server_nothing_to_complain_about(
    start_worker: StartWorker, logged_server: EmbeddedPostgres, logged_database: str, logged_db: psycopg.Connection
) -> None:
    before = len(Path(logged_server.folder, "server.log").read_text())
    worker = start_worker(logged_database).running()
    for job_id in [send(logged_db, actor, word="hello") for actor in ("note", "note_async", "note_by_pool")]:
        done(logged_db, job_id)
    worker.end()

    assert said_by_server(logged_server, before) == []


def test_the_server_has_nothing_to_complain_about_a_worker_that_let_its_job_finish(
    start_worker: StartWorker, logged_server: EmbeddedPostgres, logged_database: str, logged_db: psycopg.Connection
) -> None:
    before = len(Path(logged_server.folder, "server.log").read_text())
    worker = start_worker(logged_database).running()
    job_id = send(logged_db, "work", word="hello", seconds=1)
    busy_in_sql(logged_db)

    assert worker.end() == 0

    assert done(logged_db, job_id) == "done"
    assert said_by_server(logged_server, before) == []


def test_the_server_sees_only_cancels_of_a_worker_that_was_asked_twice(
    start_worker: StartWorker, logged_server: EmbeddedPostgres, logged_database: str, logged_db: psycopg.Connection
) -> None:
    before = len(Path(logged_server.folder, "server.log").read_text())
    worker = start_worker(logged_database, "--grace", "600").running()
    job_id = send(logged_db, "work", word="hello", seconds=600)
    busy_in_sql(logged_db)
    worker.send(signal.SIGTERM)
    worker.event("worker.draining")

    assert worker.end() == 0

    assert row(logged_db, job_id) == ("available", 0)
    assert said_by_server(logged_server, before) == []


# Busy


def test_a_running_job_is_let_finish(start_worker: StartWorker, database: str, noted: psycopg.Connection) -> None:
    worker = start_worker(database).running()
    job_id = send(noted, "work", word="hello", seconds=1)
    busy_in_sql(noted)

    assert worker.end() == 0
    assert done(noted, job_id) == "done"


def test_a_draining_worker_takes_nothing_new(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    worker = start_worker(database).running()
    send(noted, "work", word="hello", seconds=1)
    busy_in_sql(noted)
    worker.send(signal.SIGTERM)
    worker.event("worker.draining")
    late = send(noted, "note", word="late")

    worker.wait()

    assert row(noted, late) == ("available", 0)


def test_a_job_that_outlasts_the_grace_is_cancelled_on_the_server(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    worker = start_worker(database, "--grace", "0.2").running()
    send(noted, "work", word="hello", seconds=600)
    busy_in_sql(noted)
    asked_at = time.monotonic()

    assert worker.end() == 0
    assert time.monotonic() - asked_at < 3


def test_a_job_that_outlasts_the_grace_is_given_back_with_its_attempt(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    worker = start_worker(database, "--grace", "0.2").running()
    in_sql, in_python = send(noted, "work", word="a", seconds=600), send(noted, "think", word="b", seconds=600)
    running_in(noted, in_python)
    busy_in_sql(noted)

    worker.end()

    assert (row(noted, in_sql), row(noted, in_python)) == (("available", 0), ("available", 0))


def test_a_job_that_was_cut_leaves_no_effect(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    worker = start_worker(database, "--grace", "0.2").running()
    send(noted, "work", word="hello", seconds=600)
    busy_in_sql(noted)

    worker.end()

    assert column(noted, "SELECT word FROM note") == []


def test_a_second_signal_shortens_the_grace(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    worker = start_worker(database, "--grace", "600").running()
    job_id = send(noted, "work", word="hello", seconds=600)
    busy_in_sql(noted)
    worker.send(signal.SIGTERM)
    worker.event("worker.draining")

    assert worker.end() == 0
    assert row(noted, job_id) == ("available", 0)


def test_a_third_signal_leaves_at_once(start_worker: StartWorker, database: str, db: psycopg.Connection) -> None:
    worker = start_worker(database, "--grace", "600").running()
    running_in(db, send(db, "hang", seconds=600))
    worker.send(signal.SIGTERM)
    worker.event("worker.draining")
    worker.send(signal.SIGTERM)
    worker.event("worker.cutting")

    assert worker.end() == 128 + signal.SIGTERM


def test_a_job_that_no_interrupt_reaches_is_given_back_all_the_same(
    start_worker: StartWorker, database: str, db: psycopg.Connection
) -> None:
    worker = start_worker(database, "--grace", "0.1").running()
    job_id = send(db, "hang", seconds=600)
    running_in(db, job_id)

    assert worker.end() == 0
    assert row(db, job_id) == ("available", 0)
