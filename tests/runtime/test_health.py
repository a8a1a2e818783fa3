"""What the probes and Prometheus are answered, and by which facts."""

from __future__ import annotations

import json
import re
import threading
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

import psycopg
import pytest

from tests.factories import column, terminate
from tests.running import WAIT, RunningWorker, outcome, running_worker
from tests.schedule.standins import schedule
from tests.waiting import wait_until
from worker import Limit, PostgresBroker, Queues, Rate, job
from worker.observe import Page, render
from worker.queue.identity import uuid7
from worker.queue.lease import Lease
from worker.queue.schema import Schema
from worker.runtime.health import _Count
from worker.runtime.tally import Tally
from worker.runtime.vitals import Stage, Vitals, dead_unless
from worker.schedule.backlog import Entry


def told(page: Page) -> tuple[int, dict[str, Any]]:
    return page.status, json.loads(page.body)


def ready(worker: RunningWorker) -> dict[str, Any]:
    """The page once the worker is ready."""
    wait_until(lambda: worker.health.ready().status == 200, WAIT, "readiness")
    return told(worker.health.ready())[1]


def metric(worker: RunningWorker, name: str, **labels: str) -> float | None:
    """The value of a line of the metrics, None when there is no such line."""
    shown = ",".join(f'{label}="{value}"' for label, value in labels.items())
    line = f"{name}{{{shown}}}" if shown else name
    found = re.search(rf"^{re.escape(line)} (\S+)$", worker.health.metrics().body, re.MULTILINE)
    return None if found is None else float(found[1])


# Live


def test_a_worker_lives_without_a_reason(worker: RunningWorker) -> None:
    status, body = told(worker.health.live())

    assert (status, body["ok"], body["reasons"], body["stage"]) == (200, True, {}, "running")


def test_a_thread_that_ended_is_named() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    vitals = Vitals()

    with vitals.watching(dispatcher=dead_unless(thread.is_alive), watchdog=dead_unless(lambda: True)):
        assert vitals.troubles() == {"dispatcher": "its thread has ended"}
    assert vitals.troubles() == {}


def test_a_main_thread_without_rounds_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    vitals = Vitals()
    monkeypatch.setattr("worker.runtime.vitals._MAX_SILENCE", -1.0)

    assert list(vitals.troubles()) == ["main"]


def test_a_dispatcher_that_makes_no_pass_is_named(worker: RunningWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the database being away: connecting is a pass as well."""
    monkeypatch.setattr(import_module("worker.runtime.run"), "_STUCK", -1.0)

    assert "no pass for" in told(worker.health.live())[1]["reasons"]["dispatcher"]


def test_a_lost_database_is_no_reason_to_be_restarted(worker: RunningWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    ready(worker)
    monkeypatch.setattr(worker.dispatcher, "_connected", False)

    assert worker.health.live().status == 200


# Ready


def test_a_worker_is_ready_once_it_claims(worker: RunningWorker) -> None:
    assert ready(worker)["reasons"] == {}


def test_a_worker_without_a_connection_is_not_ready(worker: RunningWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    ready(worker)
    monkeypatch.setattr(worker.dispatcher, "_connected", False)

    assert told(worker.health.ready())[1]["reasons"] == {"database": "there is no connection to it"}


def test_a_worker_whose_heartbeat_does_not_come_through_is_not_ready(worker: RunningWorker) -> None:
    ready(worker)
    worker.dispatcher.lease._renewed_at -= 60

    assert "no heartbeat came through for 10 s" in worker.health.ready().body


def test_a_lost_session_is_healed(worker: RunningWorker, db: psycopg.Connection) -> None:
    ready(worker)
    query = "SELECT pid FROM worker.worker"
    [pid] = [row[0] for row in db.execute(query)]

    terminate(db, pid)

    wait_until(lambda: [row[0] for row in db.execute(query)] != [pid], WAIT, "another session")
    assert ready(worker)["ok"]


@pytest.mark.parametrize("stage", [Stage.STARTING, Stage.PAUSED, Stage.DRAINING, Stage.CUTTING, Stage.CLOSING])
def test_in_any_other_stage_a_worker_is_not_ready(worker: RunningWorker, stage: Stage) -> None:
    ready(worker)
    worker.health._vitals.stage = stage

    assert told(worker.health.ready())[1]["reasons"] == {"stage": f"{stage.value}: nothing is claimed"}


# Metrics


def test_jobs_are_counted_by_queue_actor_and_outcome(
    worker: RunningWorker, broker: PostgresBroker, db: psycopg.Connection
) -> None:
    @job(broker=broker)
    def well() -> None: ...

    @job(broker=broker, max_retries=0)
    def ill() -> None:
        raise ZeroDivisionError

    for message in (well.send(), well.send(), ill.send()):
        outcome(db, message)

    def counted(actor: str, end: str) -> float | None:
        return metric(worker, "worker_jobs_total", queue="default", actor=actor, outcome=end)

    wait_until(lambda: counted("well", "done") == 2 and counted("ill", "dead") == 1, WAIT, "the counts")
    assert metric(worker, "worker_job_duration_seconds_count", queue="default", actor="well") == 2
    assert metric(worker, "worker_job_wait_seconds_count", queue="default", actor="well") == 2


def test_what_runs_and_what_the_pool_does_is_told(worker: RunningWorker, broker: PostgresBroker) -> None:
    running, over = threading.Event(), threading.Event()

    @job(broker=broker)
    def busy() -> None:
        running.set()
        over.wait(WAIT)

    busy.send()
    assert running.wait(WAIT)

    try:
        assert metric(worker, "worker_jobs_in_progress", queue="default") == 1
        assert metric(worker, "worker_pool_connections", state="reserved") == 1
        assert metric(worker, "worker_pool_max_connections") == 3
    finally:
        over.set()


def test_the_queues_counts_come_from_the_database(
    broker: PostgresBroker, database: str, db: psycopg.Connection
) -> None:
    @job(broker=broker)
    def later() -> None: ...

    with running_worker(broker, database) as worker:
        ready(worker)
        for _ in range(3):
            later.send_with_options(delay=3_600_000)

        assert metric(worker, "worker_queue_jobs", queue="default", state="scheduled") == 3
        assert metric(worker, "worker_queue_jobs", queue="default", state="available") == 0
        assert metric(worker, "worker_queue_oldest_age_seconds", queue="default") == 0


def test_jobs_that_wait_for_a_limit_or_a_rate_are_counted_too(
    broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    over = threading.Event()

    @job(broker=broker, limit=Limit(1))
    def one_by_one() -> None:
        over.wait(WAIT)

    @job(broker=broker, rate=Rate(1, per=3600))
    def seldom() -> None: ...

    states = "SELECT state FROM worker.job ORDER BY state"
    try:
        one_by_one.send_many([(), (), ()])
        seldom.send_many([(), (), ()])
        waiting = ["held", "held", "running", "throttled", "throttled"]
        wait_until(lambda: column(db, states) == waiting, WAIT, "one of each kind to start")
        ready(worker)

        assert metric(worker, "worker_queue_jobs", queue="default", state="held") == 2
        assert metric(worker, "worker_queue_jobs", queue="default", state="throttled") == 2
    finally:
        over.set()


def test_the_limits_of_queues_are_told(worker: RunningWorker, db: psycopg.Connection) -> None:
    Queues(db).limit("mail", running=5, starts=30, per=60, force=True)
    ready(worker)

    assert metric(worker, "worker_queue_max_running", queue="mail") == 5
    assert metric(worker, "worker_queue_max_starts_per_second", queue="mail") == 0.5
    assert metric(worker, "worker_queue_jobs", queue="mail", state="available") == 0


def test_the_counts_are_read_once_however_many_ask(
    worker: RunningWorker, broker: PostgresBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = worker.health._counts
    reads = []

    def read(conn: psycopg.Connection[Any]) -> list[Any]:
        reads.append(conn)
        return []

    monkeypatch.setattr(counts, "_read", read)

    ready(worker)
    for _ in range(5):
        worker.health.metrics()

    assert len(reads) == 1


def test_only_the_oldest_worker_tells_the_counts(broker: PostgresBroker, database: str, db: psycopg.Connection) -> None:
    """Prometheus would add them up."""
    Lease(Schema(), duration=60.0, slots=1, pool_size=2, worker_id=uuid7()).register(db)

    @job(broker=broker)
    def later() -> None: ...

    with running_worker(broker, database) as worker:
        ready(worker)
        later.send_with_options(delay=3_600_000)

        assert metric(worker, "worker_queue_jobs", queue="default", state="scheduled") is None


def test_counts_that_cannot_be_had_in_time_are_given_up_and_the_last_ones_shown(
    worker: RunningWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(worker)
    monkeypatch.setattr("worker.runtime.health._COUNT_EVERY", 0.0)
    monkeypatch.setattr(worker.health._counts, "_read", lambda _: [_Count("mail", 1, 0, 0, 2, 3, 4.0, None, None)])
    assert metric(worker, "worker_queue_jobs", queue="mail", state="running") == 3

    monkeypatch.setattr("worker.runtime.health._COUNT_PATIENCE", 0.0)
    monkeypatch.setattr(worker.health._counts, "_read", lambda _: pytest.fail("nobody waits for it any more"))
    with monkeypatch.context() as held:
        held.setattr(worker.dispatcher, "wake", lambda: None)

        assert metric(worker, "worker_queue_jobs", queue="mail", state="running") == 3


def test_ticks_are_counted_by_what_became_of_them() -> None:
    report = schedule("report")
    tally, tick = Tally(), datetime(2026, 11, 22, tzinfo=UTC)
    fired = Entry(tick, "fired", 0.2, job_id=uuid7())

    tally.decided(report, (fired, fired, Entry(tick, "skipped", 9.0, "overlap")))

    page = render(tally.families())
    assert 'worker_schedule_fires_total{schedule="report",outcome="fired"} 2\n' in page
    assert 'worker_schedule_fires_total{schedule="report",outcome="skipped"} 1\n' in page
    assert 'worker_schedule_lag_seconds_count{schedule="report"} 2\n' in page
