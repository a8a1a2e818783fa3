"""What no process can prepare for: it is killed, or its database goes away."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import psycopg
import pytest

from tests.factories import column, scalar
from tests.lifecycle.conftest import (
    WAIT,
    RestartableServer,
    StartWorker,
    WorkerProcess,
    busy_in_sql,
    done,
    running_in,
    send,
)
from tests.waiting import wait_until
from worker.queue.schema import Schema

# Two polls and the countdown make about three; the rest is for a slow machine.
SECONDS = 6.0


# Killed


def test_the_jobs_of_a_killed_worker_run_on_another_within_seconds(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    job_id = send(noted, "think", word="hello", seconds=600)
    first = start_worker(database).running()
    assert running_in(noted, job_id) == first.id
    second = start_worker(database).running()

    first.end(signal.SIGKILL)

    wait_until(lambda: running_in(noted, job_id) == second.id, SECONDS, "the other worker to run it")


def test_all_jobs_of_a_killed_worker_run_at_once_on_one_that_is_busy(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    first = start_worker(database).running()
    lost = [send(noted, "think", word="lost", seconds=600) for _ in range(3)]
    assert {running_in(noted, job_id) for job_id in lost} == {first.id}
    first.send(signal.SIGTSTP)
    second = start_worker(database).running()
    assert running_in(noted, send(noted, "think", word="own", seconds=600)) == second.id

    first.end(signal.SIGKILL)

    wait_until(lambda: {running_in(noted, job_id) for job_id in lost} == {second.id}, SECONDS, "the other to run them")


def test_the_effect_of_a_job_whose_worker_was_killed_counts_once(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    first = start_worker(database).running()
    jobs = [send(noted, "work", word=str(number), seconds=0.3) for number in range(12)]
    busy_in_sql(noted)
    start_worker(database).running()

    first.end(signal.SIGKILL)
    for job_id in jobs:
        done(noted, job_id)

    assert sorted(column(noted, "SELECT word::int FROM note")) == list(range(12))
    assert scalar(noted, "SELECT count(*) FROM worker.job_history") == 12


def test_a_job_that_kills_its_third_worker_is_quarantined(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    job_id = send(noted, "crash")
    noted.execute("UPDATE worker.job SET crashes = 2")
    assert start_worker(database).wait() == 9

    start_worker(database).running()

    assert done(noted, job_id) == "dead"
    reason = scalar(noted, "SELECT error FROM worker.job_dead")
    assert reason.startswith("quarantined: 3 workers died while they ran it; ")


def test_what_a_killed_worker_said_last_is_known_of_its_job(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    job_id = send(noted, "work", word="hello", seconds=600)
    noted.execute("UPDATE worker.job SET crashes = 2")
    first = start_worker(database).running()
    busy_in_sql(noted)
    wait_until(lambda: scalar(noted, "SELECT statements IS NOT NULL FROM worker.worker"), SECONDS, "a heartbeat")
    start_worker(database).running()

    first.end(signal.SIGKILL)

    assert done(noted, job_id) == "dead"
    reason = scalar(noted, "SELECT error FROM worker.job_dead")
    assert re.fullmatch(
        r"quarantined: 3 workers died while they ran it; \d+ MB in memory at its heartbeat of 20[0-9TZ:.-]+;"
        r" the job's last statement by then: SELECT pg_sleep\(%s\)",
        reason,
    ), reason


# Stopped for longer than its lease


def has_come_back(worker: WorkerProcess) -> bool:
    return [event["event"] for event in worker.events].count("dispatcher.connected") > 1


def test_a_worker_that_was_stopped_and_wakes_writes_nothing_for_the_jobs_that_it_has_lost(
    start_worker: StartWorker, database: str, noted: psycopg.Connection, tmp_path: Path
) -> None:
    """Neither through a job's connection nor to the queue, although it wakes in the middle of both."""
    gate = tmp_path / "gate"
    stopped = start_worker(database, WORKER_LEASE="2").running()
    jobs = [send(noted, actor, word=actor, gate=str(gate)) for actor in ("write_behind", "send_behind")]
    for job_id in jobs:
        assert running_in(noted, job_id) == stopped.id
    stopped.send(signal.SIGSTOP)
    start_worker(database, WORKER_LEASE="2").running()
    gate.touch()
    for job_id in jobs:
        assert done(noted, job_id) == "done"

    stopped.send(signal.SIGCONT)

    wait_until(lambda: has_come_back(stopped), WAIT, "the woken worker to notice")
    assert stopped.end() == 0
    wait_until(lambda: scalar(noted, "SELECT count(*) FROM worker.job") == 0, WAIT, "the end of what was sent")
    assert sorted(column(noted, "SELECT word FROM note")) == ["send_behind", "write_behind"]


def test_a_worker_that_was_stopped_and_wakes_fires_no_tick_again(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    def ticks() -> list[int]:
        return column(noted, "SELECT word::bigint FROM note ORDER BY 1")

    def two_more() -> None:
        seen = len(ticks())
        wait_until(lambda: len(ticks()) > seen + 1, WAIT, "more ticks")

    stopped = start_worker(database, jobs="tests.lifecycle.ticking_jobs", WORKER_LEASE="2").running()
    two_more()
    stopped.send(signal.SIGSTOP)
    awake = start_worker(database, jobs="tests.lifecycle.ticking_jobs", WORKER_LEASE="2").running()
    awake.event("worker.rescued")
    two_more()

    stopped.send(signal.SIGCONT)

    wait_until(lambda: has_come_back(stopped), WAIT, "the woken worker to notice")
    two_more()
    assert (stopped.end(), awake.end()) == (0, 0)
    assert ticks() == list(range(ticks()[0], ticks()[-1] + 1))


# The database goes


@pytest.fixture
def restartable_db(restartable: RestartableServer) -> None:
    with psycopg.connect(restartable.url, autocommit=True) as db:
        Schema().migrate(db)
        db.execute("CREATE TABLE note (word text)")


@pytest.mark.usefixtures("restartable_db")
def test_a_worker_survives_a_restart_of_its_database(start_worker: StartWorker, restartable: RestartableServer) -> None:
    worker = start_worker(restartable.url).running()
    restartable.stop()
    worker.event("dispatcher.disconnected")

    restartable.start()

    with psycopg.connect(restartable.url, autocommit=True) as db:
        assert done(db, send(db, "note", word="after")) == "done"
    assert worker.end() == 0


@pytest.mark.usefixtures("restartable_db")
def test_a_restart_of_the_database_under_load_runs_no_jobs_effect_twice_and_loses_none(
    start_worker: StartWorker, restartable: RestartableServer
) -> None:
    with psycopg.connect(restartable.url, autocommit=True) as db:
        for number in range(400):
            send(db, ("note", "note_async")[number % 2], word=str(number))
    worker = start_worker(restartable.url, "--pool-size", "4").running()
    with psycopg.connect(restartable.url, autocommit=True) as db:
        wait_until(lambda: scalar(db, "SELECT count(*) FROM note") > 20, 30, "the first jobs")

    restartable.stop()
    restartable.start()

    with psycopg.connect(restartable.url, autocommit=True) as db:
        wait_until(lambda: scalar(db, "SELECT count(*) FROM worker.job") == 0, 60, "the end of all jobs")
        assert sorted(column(db, "SELECT word::int FROM note")) == list(range(400))
    assert worker.end() == 0


@pytest.mark.usefixtures("restartable_db")
def test_a_database_that_goes_while_a_worker_drains_keeps_it_no_longer_than_its_grace(
    start_worker: StartWorker, restartable: RestartableServer
) -> None:
    with psycopg.connect(restartable.url, autocommit=True) as db:
        job_id = send(db, "work", word="hello", seconds=600)
        worker = start_worker(restartable.url, "--grace", "1").running()
        busy_in_sql(db)
    worker.send(signal.SIGTERM)
    worker.event("worker.draining")

    restartable.stop()

    assert worker.wait() == 0
    assert worker.event("worker.stopped")["seconds"] < 1 + 10
    restartable.start()
    with psycopg.connect(restartable.url, autocommit=True) as db:
        assert column(db, "SELECT word FROM note") == []
        assert column(db, "SELECT attempt FROM worker.job WHERE id = %s", job_id) == [1]


@pytest.mark.usefixtures("restartable_db")
def test_a_worker_whose_database_is_away_can_be_stopped(
    start_worker: StartWorker, restartable: RestartableServer
) -> None:
    worker = start_worker(restartable.url).running()
    restartable.stop()
    worker.event("dispatcher.disconnected")

    worker.send(signal.SIGTERM)

    assert worker.wait(15) == 0
