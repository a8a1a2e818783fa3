"""Slots and connections: two limits, and neither makes a job wait for the wrong one."""

from __future__ import annotations

import asyncio
import threading

import psycopg
import pytest
from dramatiq import Broker, MessageProxy, Middleware
from dramatiq.middleware import Interrupt
from psycopg import AsyncConnection, Connection

from tests.factories import column, scalar
from tests.running import WAIT, outcome, running_worker
from tests.waiting import wait_until
from worker import Pool, PostgresBroker, clock, job
from worker.runtime.watchdog import Watchdog

RUNNING = "SELECT count(*) FROM worker.job WHERE state = 'running'"


class Gate:
    """Holds jobs until it is opened, and knows how many are at it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = threading.Event()
        self.now = self.most = 0

    def __call__(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            assert self._open.wait(WAIT)
        finally:
            with self._lock:
                self.now -= 1

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate() -> Gate:
    return Gate()


def finish(db: psycopg.Connection, gate: Gate) -> None:
    gate.open()
    wait_until(lambda: scalar(db, "SELECT count(*) FROM worker.job") == 0, WAIT, "the end of all jobs")


def test_as_many_jobs_run_at_once_as_there_are_slots(
    broker: PostgresBroker, database: str, db: psycopg.Connection, gate: Gate
) -> None:
    @job(broker=broker)
    def wait() -> None:
        gate()

    with running_worker(broker, database, pool_size=2, slots=6):
        for _ in range(10):
            wait.send()
        wait_until(lambda: gate.now == 6, WAIT, "six jobs at once")
        finish(db, gate)

    assert gate.most == 6


def test_nothing_is_claimed_beyond_the_slots(
    broker: PostgresBroker, database: str, db: psycopg.Connection, gate: Gate
) -> None:
    """What one worker hoards, another that is idle cannot run."""

    @job(broker=broker)
    def wait() -> None:
        gate()

    with running_worker(broker, database, pool_size=3, slots=2) as worker:
        for _ in range(5):
            wait.send()
        wait_until(lambda: gate.now == 2, WAIT, "two jobs at once")
        worker.dispatcher.submit(lambda conn: None).result(WAIT)
        running = scalar(db, RUNNING)
        finish(db, gate)

    assert running == 2


def test_jobs_with_a_connection_are_claimed_only_when_one_is_free(
    broker: PostgresBroker, database: str, db: psycopg.Connection, gate: Gate
) -> None:
    @job(broker=broker)
    def wait(conn: Connection) -> None:
        gate()

    with running_worker(broker, database, pool_size=3, slots=6) as worker:
        for _ in range(5):
            wait.send()
        wait_until(lambda: gate.now == 2, WAIT, "two jobs at once")
        worker.dispatcher.submit(lambda conn: None).result(WAIT)
        running = scalar(db, RUNNING)
        finish(db, gate)

    assert (running, gate.most) == (2, 2)


def test_jobs_without_a_connection_pass_those_that_wait_for_one(
    broker: PostgresBroker, database: str, db: psycopg.Connection, gate: Gate
) -> None:
    @job(broker=broker)
    def wait(conn: Connection) -> None:
        gate()

    @job(broker=broker)
    def pass_by() -> None: ...

    with running_worker(broker, database, pool_size=2, slots=4):
        for _ in range(3):
            wait.send()
        wait_until(lambda: gate.now == 1, WAIT, "the one with the connection")

        assert outcome(db, pass_by.send()) == "done"

        finish(db, gate)


def test_more_jobs_than_connections_share_the_pool(
    broker: PostgresBroker, database: str, db: psycopg.Connection
) -> None:
    db.execute("CREATE TABLE note (word text)")

    @job(broker=broker)
    def write(pool: Pool, number: int) -> None:
        with pool.connection() as conn:
            conn.execute("INSERT INTO note VALUES (%s)", [str(number)])

    with running_worker(broker, database, pool_size=3, slots=12):
        messages = [write.send(number) for number in range(100)]
        outcomes = {outcome(db, message) for message in messages}

    assert outcomes == {"done"}
    assert scalar(db, "SELECT count(DISTINCT word) FROM note") == 100


def test_async_jobs_are_admitted_by_slots_too(broker: PostgresBroker, database: str, db: psycopg.Connection) -> None:
    now, most = 0, 0

    @job(broker=broker, timeout=WAIT, max_retries=0)
    async def wait() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        while most < 3:  # noqa: ASYNC110  # what it waits for is the admission of others, which no event tells
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        now -= 1

    with running_worker(broker, database, pool_size=2, slots=3):
        for message in [wait.send() for _ in range(20)]:
            outcome(db, message)

    assert most == 3


def test_async_jobs_never_wait_for_a_connection_on_their_loop(
    broker: PostgresBroker, database: str, db: psycopg.Connection
) -> None:
    """One that blocked the loop would wait for ever for another on the same loop."""
    db.execute("CREATE TABLE note (word text)")

    @job(broker=broker)
    async def write(conn: AsyncConnection, number: int) -> None:
        await conn.execute("INSERT INTO note VALUES (%s)", [str(number)])

    with running_worker(broker, database, pool_size=2, slots=8):
        for message in [write.send(number) for number in range(40)]:
            outcome(db, message)

    assert scalar(db, "SELECT count(DISTINCT word) FROM note") == 40


def test_a_worker_that_leaves_gives_back_what_its_slots_had_not_begun(
    broker: PostgresBroker, database: str, db: psycopg.Connection, gate: Gate
) -> None:
    @job(broker=broker, max_retries=0)
    def wait(conn: Connection) -> None:
        conn.execute("SELECT pg_sleep(600)")

    with running_worker(broker, database, pool_size=3, grace=0.1):
        for _ in range(4):
            wait.send()
        wait_until(lambda: scalar(db, RUNNING) == 2, WAIT, "two jobs at once")

    assert column(db, "SELECT DISTINCT (state, attempt)::text FROM worker.job") == ["(available,0)"]


def test_a_job_that_is_cut_on_the_way_to_its_body_is_given_back_at_once(
    broker: PostgresBroker, database: str, db: psycopg.Connection, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Doorman(Middleware):
        def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
            gate()

    cut = Watchdog.cut

    def cut_and_open(watchdog: Watchdog, reason: type[Interrupt]) -> int:
        met = cut(watchdog, reason)
        gate.open()
        return met

    monkeypatch.setattr(Watchdog, "cut", cut_and_open)
    broker.add_middleware(Doorman())

    @job(broker=broker, max_retries=0)
    def wait(conn: Connection) -> None:
        conn.execute("SELECT pg_sleep(600)")

    with running_worker(broker, database, grace=0.0):
        wait.send()
        wait_until(lambda: gate.now == 1, WAIT, "the job at its door")
        leaving_at = clock.monotonic()

    assert clock.monotonic() - leaving_at < 5  # `drain._CUT`, after which it would be left behind
    assert column(db, "SELECT (state, attempt)::text FROM worker.job") == ["(available,0)"]
