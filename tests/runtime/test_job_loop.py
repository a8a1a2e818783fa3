"""The event loop of `async def` jobs: its one thread, and who keeps it from all others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import psycopg
import pytest
from structlog.testing import capture_logs

from tests.factories import column
from tests.running import WAIT, RunningWorker, outcome, running_worker
from tests.waiting import wait_until
from worker import PostgresBroker, clock, job
from worker.queue.claim import Claim
from worker.runtime.job_loop import JobLoop
from worker.runtime.loop_watch import LoopWatch


@pytest.fixture
def ended() -> list[Claim]:
    return []


@pytest.fixture
def loop(ended: list[Claim]) -> Iterator[JobLoop]:
    """A loop whose jobs are over as soon as they begin."""
    execution: Any = SimpleNamespace(deliver=lambda claim: None)
    with JobLoop(execution, ended.append) as loop:
        yield loop


def claim(number: int) -> Claim:
    return Claim(UUID(int=number), 1, "default", "any", 1, None, "{}", None, None)  # type: ignore[arg-type]


# Its thread


def test_two_threads_that_bring_its_first_jobs_at_once_make_one_loop(
    loop: JobLoop, ended: list[Claim], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = asyncio.new_event_loop
    made: list[asyncio.AbstractEventLoop] = []
    another = threading.Thread(target=loop.start, args=[claim(2)])

    def make_while_another_comes() -> asyncio.AbstractEventLoop:
        if another.ident is None:
            another.start()
            another.join(0.1)  # it comes here, too, or waits
        made.append(make())
        return made[-1]

    monkeypatch.setattr(asyncio, "new_event_loop", make_while_another_comes)
    loop.start(claim(1))
    another.join(WAIT)

    wait_until(lambda: len(ended) == 2, WAIT, "both jobs")
    assert len(made) == 1


def test_a_loop_that_is_about_to_start_is_not_taken_for_one_that_has_ended(
    loop: JobLoop, ended: list[Claim], monkeypatch: pytest.MonkeyPatch
) -> None:
    start, said = threading.Thread.start, []

    def start_after_a_look(thread: threading.Thread) -> None:
        said.append(loop.is_alive)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_after_a_look)
    loop.start(claim(1))

    wait_until(lambda: ended, WAIT, "the job")
    assert (said, loop.is_alive) == ([True], True)


# Who keeps it


class Clock:
    """Of a loop that comes to nothing by itself."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.sent: list[Any] = []
        loop: Any = SimpleNamespace(has_jobs=True, thread=None, call_soon=self.sent.append)
        self.loop = loop
        self.told: list[str] = []
        feed: Any = SimpleNamespace(
            leave_loop=lambda: self.told.append("leave"), return_to_loop=lambda: self.told.append("return")
        )
        self.watch = LoopWatch(loop, feed)
        monkeypatch.setattr(clock, "monotonic", lambda: self.now)

    def look(self, *, after: float = 0.5) -> list[str]:
        self.now += after
        with capture_logs() as logs:
            self.watch.look()
        return [entry["event"] for entry in logs]

    def come(self) -> None:
        self.sent.pop()()


@pytest.fixture
def standing(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_loop_that_does_not_come_to_its_callback_is_told_of_once_and_so_is_its_coming(standing: Clock) -> None:
    looks = [standing.look() for _ in range(5)]
    standing.come()

    # Within the half second before the first, it came to a standstill.
    assert looks == [[], [], ["job_loop.stuck"], [], []]
    assert standing.look() == ["job_loop.goes_on"]
    assert standing.look() == []


def test_the_feed_leaves_it_at_each_look_until_it_goes_on(standing: Clock) -> None:
    for _ in range(5):
        standing.look()
    standing.come()
    for _ in range(2):
        standing.look()

    assert standing.told == ["leave", "leave", "leave", "return"]


def test_one_callback_is_sent_at_a_time_and_none_while_no_job_runs(standing: Clock) -> None:
    for _ in range(3):
        standing.look()
    under_way = len(standing.sent)
    standing.come()
    standing.loop.has_jobs = False
    standing.look()

    assert (under_way, len(standing.sent)) == (1, 0)


def test_jobs_that_wait_and_that_it_has_not_begun_count_as_its_jobs(
    loop: JobLoop, ended: list[Claim], enough: threading.Event
) -> None:
    """What keeps it may be of a job that is over."""
    before = loop.has_jobs
    loop.start(claim(1))
    wait_until(lambda: ended, WAIT, "the job")
    between = loop.has_jobs
    loop.call_soon(enough.wait)
    loop.start(claim(2))

    assert (before, between, loop.has_jobs) == (False, False, True)
    enough.set()
    wait_until(lambda: len(ended) == 2, WAIT, "the other job")
    assert not loop.has_jobs


def test_what_is_taken_back_before_it_has_begun_does_not_begin(
    loop: JobLoop, ended: list[Claim], enough: threading.Event
) -> None:
    loop.start(claim(1))
    wait_until(lambda: ended, WAIT, "the job")
    loop.call_soon(enough.wait)
    loop.start(claim(2))

    assert (loop.take_back(), loop.take_back(), loop.has_jobs) == ([claim(2)], [], False)
    loop.start(claim(3))
    enough.set()
    wait_until(lambda: len(ended) == 2, WAIT, "the last")
    assert ended == [claim(1), claim(3)]


def test_nothing_is_sent_to_a_loop_that_has_ended(loop: JobLoop, ended: list[Claim]) -> None:
    loop.start(claim(1))
    wait_until(lambda: ended, WAIT, "the job")
    with loop:
        pass

    loop.call_soon(lambda: None)

    assert not loop.is_alive


@pytest.mark.parametrize("way", ["itself", "in a task of its own", "in a callback"])
def test_the_job_that_keeps_it_is_named(
    worker: RunningWorker, broker: PostgresBroker, db: psycopg.Connection, enough: threading.Event, way: str
) -> None:
    def keep() -> None:
        assert enough.wait(WAIT)

    async def keep_in_task() -> None:
        keep()

    @job(broker=broker)
    async def greedy() -> None:
        if way == "itself":
            keep()
        elif way == "in a task of its own":
            await asyncio.create_task(keep_in_task())
        else:
            asyncio.get_running_loop().call_soon(keep)
            await asyncio.sleep(0)

    with capture_logs() as logs:
        message = greedy.send()
        wait_until(lambda: [entry for entry in logs if entry["event"] == "job_loop.stuck"], WAIT, "the report")
        enough.set()
        wait_until(lambda: [entry for entry in logs if entry["event"] == "job_loop.goes_on"], WAIT, "the end")

    [event] = [entry for entry in logs if entry["event"] == "job_loop.stuck"]
    assert (event["job_id"], event["actor"]) == (message.message_id, "greedy")
    assert event["busy_for"] >= 1.0
    assert "in keep\n" in event["stack"]
    assert outcome(db, message) == "done"


def test_a_task_that_a_job_left_behind_does_not_write_in_the_next_jobs_transaction(
    broker: PostgresBroker, database: str, db: psycopg.Connection, note: None
) -> None:
    gave_back, tried = threading.Event(), threading.Event()
    refused: list[Exception] = []

    @job(broker=broker)
    async def careless(conn: psycopg.AsyncConnection) -> None:
        async def go_on() -> None:
            await asyncio.to_thread(gave_back.wait, WAIT)
            try:
                await conn.execute("INSERT INTO note VALUES ('careless')")
            except psycopg.OperationalError as exc:
                refused.append(exc)
            tried.set()

        left.append(asyncio.ensure_future(go_on()))

    @job(broker=broker)
    async def careful(conn: psycopg.AsyncConnection) -> None:
        await conn.execute("INSERT INTO note VALUES ('careful')")
        gave_back.set()
        await asyncio.to_thread(tried.wait, WAIT)

    left: list[asyncio.Future[None]] = []
    with running_worker(broker, database, pool_size=2):
        outcome(db, careless.send())
        outcome(db, careful.send())

    assert column(db, "SELECT * FROM note") == ["careful"]
    assert [str(each) for each in refused] == ["the connection was given back"]
