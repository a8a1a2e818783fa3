"""What a job costs on the wire, counted and not timed: statements, round trips, commits; and hooks that are called."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from dramatiq import Broker, Middleware
from psycopg import Connection

from tests.bench.protocol import Traffic, watched
from tests.factories import opened_pool, scalar
from tests.running import WAIT, running_worker
from tests.waiting import wait_until
from worker import PostgresBroker, job
from worker.queue.insertion import insert
from worker.queue.schema import Schema
from worker.runtime.hooks import Hooks
from worker.runtime.watchdog import Watchdog

JOBS = 300


def traffic_of(
    broker: PostgresBroker, database: str, db: psycopg.Connection, message: Callable[[], Any]
) -> tuple[Traffic, Traffic]:
    """What the dispatcher and the jobs of a worker with two slots say for `JOBS` jobs, its boot and end included."""
    with opened_pool(database) as pool, broker.on(pool, Schema()):
        insert(db, Schema(), [broker.encode(message(), None) for _ in range(JOBS)])
    with watched() as wire, running_worker(broker, database):
        wait_until(lambda: scalar(db, "SELECT count(*) FROM worker.job_history") == JOBS, WAIT, "the jobs")
        return wire.traffic(listening=True), wire.traffic(listening=False)


def test_jobs_without_a_connection_share_their_trips(
    broker: PostgresBroker, database: str, db: psycopg.Connection
) -> None:
    @job(broker=broker)
    def nothing() -> None: ...

    spent, _ = traffic_of(broker, database, db, nothing.message)

    # Boot and house-keeping take about sixty trips, and each exchange carries several jobs however slow the machine.
    assert spent.trips - 100 < JOBS / 2
    assert spent.commits - 100 < JOBS / 2


@pytest.mark.usefixtures("note")
def test_a_job_with_a_connection_takes_two_trips_and_one_commit(
    broker: PostgresBroker, database: str, db: psycopg.Connection
) -> None:
    @job(broker=broker)
    def write(conn: Connection) -> None:
        conn.execute("INSERT INTO note VALUES ('hello')")

    dispatcher, jobs = traffic_of(broker, database, db, write.message)

    # The job's own, with BEGIN; its outcome with COMMIT. Beside them the making of the connections.
    assert 2 * JOBS <= jobs.trips < 2.3 * JOBS
    assert JOBS <= jobs.commits < 1.3 * JOBS
    # At most one claim for each, on a machine so slow that every job waits for its own.
    assert dispatcher.trips < 1.5 * JOBS + 150


@pytest.mark.usefixtures("note")
def test_a_job_with_a_connection_takes_four_statements(
    broker: PostgresBroker, database: str, db: psycopg.Connection
) -> None:
    @job(broker=broker)
    def write(conn: Connection) -> None:
        conn.execute("INSERT INTO note VALUES ('hello')")

    _, jobs = traffic_of(broker, database, db, write.message)

    # BEGIN; its name; the job's own; its outcome with COMMIT, which are one text.
    assert 4 * JOBS <= jobs.statements < 4.3 * JOBS


def test_a_worker_opens_no_more_connections_than_it_has_slots_and_one(
    broker: PostgresBroker, database: str, db: psycopg.Connection
) -> None:
    @job(broker=broker)
    def read(conn: Connection) -> None:
        conn.execute("SELECT 1")

    with opened_pool(database) as pool, broker.on(pool, Schema()):
        insert(db, Schema(), [broker.encode(read.message(), None) for _ in range(JOBS)])
    with watched() as wire, running_worker(broker, database):
        wait_until(lambda: scalar(db, "SELECT count(*) FROM worker.job_history") == JOBS, WAIT, "the jobs")

        # Opened in all, not only at once: none is made anew from job to job.
        assert wire.num_connections <= 3


def test_a_job_calls_each_hook_once(broker: PostgresBroker, database: str, db: psycopg.Connection) -> None:
    called: Counter[str] = Counter()

    class Counting(Middleware):
        def before_process_message(self, broker: Broker, message: object) -> None:
            called["before_process_message"] += 1

        def after_process_message(self, broker: Broker, message: object, **_: object) -> None:
            called["after_process_message"] += 1

        def before_ack(self, broker: Broker, message: object) -> None:
            called["before_ack"] += 1

        def after_ack(self, broker: Broker, message: object) -> None:
            called["after_ack"] += 1

    broker.add_middleware(Counting())

    @job(broker=broker)
    def nothing() -> None: ...

    traffic_of(broker, database, db, nothing.message)

    hooks = ("before_process_message", "after_process_message", "before_ack", "after_ack")
    assert called == dict.fromkeys(hooks, JOBS)


def test_a_job_calls_only_hooks_that_somebody_wrote(broker: PostgresBroker) -> None:
    class Silent(Middleware): ...

    class Listening(Middleware):
        def after_ack(self, broker: Broker, message: object) -> None: ...

    silent, listening = Silent(), Listening()
    broker.add_middleware(silent)
    broker.add_middleware(listening)

    called = {hook.__self__ for hooks in Hooks(broker)._listeners.values() for hook in hooks}  # type: ignore[attr-defined]  # bound methods

    assert listening in called
    assert silent not in called


def test_a_job_leaves_nothing_to_the_garbage_collector(
    broker: PostgresBroker, database: str, db: psycopg.Connection
) -> None:
    """What refers to itself is found only by a search through everything that lives, at the cost of later jobs."""

    @job(broker=broker)
    def nothing() -> None: ...

    with opened_pool(database) as pool, broker.on(pool, Schema()):
        insert(db, Schema(), [broker.encode(nothing.message(), None) for _ in range(JOBS)])
    gc.collect()
    gc.disable()
    try:
        with running_worker(broker, database) as worker:
            wait_until(lambda: scalar(db, "SELECT count(*) FROM worker.job_history") == JOBS, WAIT, "the jobs")
            worker.dispatcher.submit(lambda conn: None).result(WAIT)

            assert gc.collect() < JOBS
    finally:
        gc.enable()


def test_a_job_with_time_enough_does_not_wake_the_watchdog(
    broker: PostgresBroker, database: str, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: Counter[str] = Counter()
    look = Watchdog._run_once

    def counting(watchdog: Watchdog) -> None:
        looks["look"] += 1
        look(watchdog)

    monkeypatch.setattr(Watchdog, "_run_once", counting)

    @job(broker=broker)
    def nothing() -> None: ...

    traffic_of(broker, database, db, nothing.message)

    assert looks["look"] < 10
