"""The job threads: who takes which job, without a database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from tests.running import WAIT
from worker.runtime.job_threads import JobThreads

Started = Callable[[Callable[[], object]], None]


class Calling:
    """An execution whose claims are the bodies, and hooks that nobody has written."""

    def run(self, body: Callable[[], object]) -> None:
        body()

    def before(self, signal: str, *args: Any) -> None: ...

    def after(self, signal: str, *args: Any) -> None: ...


@pytest.fixture
def threads() -> Iterator[JobThreads]:
    with JobThreads(3, Calling(), lambda claim: None, Calling()) as threads:  # type: ignore[arg-type]
        yield threads
    assert not any(thread.is_alive() for thread in threads._threads)


@pytest.fixture
def start(threads: JobThreads) -> Started:
    return threads.start  # type: ignore[return-value]


def test_every_job_is_run_whoever_starts_it(start: Started) -> None:
    counted = threading.Semaphore(0)

    def count(more: int) -> None:
        if more:
            start(partial(count, more - 1))  # from a job's own thread, as the end of a job does
        counted.release()

    def feed() -> None:
        for _ in range(50):
            start(partial(count, 9))

    feeders = [threading.Thread(target=feed) for _ in range(4)]
    for feeder in feeders:
        feeder.start()

    assert all(counted.acquire(timeout=WAIT) for _ in range(4 * 50 * 10))


def test_what_waits_behind_a_long_job_is_run_by_another_thread(start: Started) -> None:
    """Quick jobs are left to the thread that is at them, until one of them turns out to be long."""
    for _ in range(50):
        enough, done = threading.Event(), threading.Event()
        for _ in range(20):
            start(lambda: None)
        start(partial(enough.wait, WAIT))
        start(done.set)

        assert done.wait(WAIT)
        enough.set()


def test_as_many_jobs_run_at_once_as_there_are_threads(start: Started) -> None:
    together = threading.Barrier(3, timeout=WAIT)
    over = threading.Semaphore(0)

    def meet() -> None:
        together.wait()
        over.release()

    for _ in range(3):
        start(meet)

    assert all(over.acquire(timeout=WAIT) for _ in range(3))


def test_what_no_thread_has_begun_is_taken_back(threads: JobThreads, start: Started) -> None:
    enough = threading.Event()
    begun = threading.Semaphore(0)

    def begin() -> None:
        begun.release()
        enough.wait(WAIT)

    for _ in range(3):
        start(begin)
    assert all(begun.acquire(timeout=WAIT) for _ in range(3))

    start(print)

    assert threads.take_back() == [print]  # type: ignore[comparison-overlap]
    enough.set()


def test_one_that_stands_by_joins_in_where_short_jobs_wait_rather_than_compute(
    threads: JobThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round trip to the database takes a fraction of a millisecond, in which nine others could be under way."""
    now, computed = 0.0, 0.0
    monkeypatch.setattr("worker.runtime.job_threads.clock.monotonic", lambda: now)
    monkeypatch.setattr("worker.runtime.job_threads.time.process_time", lambda: computed)
    threads._look()

    threads._num_taken, now = 5, 0.002
    assert not threads._are_quick()

    computed = 0.0018
    assert threads._are_quick()

    threads._num_taken = 3
    assert not threads._are_quick()  # two thirds of a millisecond each, in which a thread that waited would have slept

    threads._num_taken = 1
    assert not threads._are_quick()
