"""The job threads: who takes which job, without a database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.running import WAIT
from worker.runtime.job_threads import JobThreads

Started = Callable[[Callable[[], object]], None]


class Calling:
    """An execution whose claims are the bodies, and hooks that note which threads end."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def run(self, body: Callable[[], object]) -> None:
        body()

    def before(self, signal: str, *args: Any) -> None:
        if signal == "worker_thread_shutdown":
            self.ended.append(args[0].name)

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


# One that a job keeps


class Kept:
    """A job that keeps its thread until it is let go."""

    def __init__(self, start: Started) -> None:
        self._enough, begun = threading.Event(), threading.Event()
        self.then: Callable[[], object] = lambda: None

        def keep() -> None:
            self.thread = threading.current_thread()
            begun.set()
            assert self._enough.wait(WAIT)
            self.then()

        start(keep)
        assert begun.wait(WAIT)

    @property
    def ident(self) -> int:
        assert self.thread.ident is not None
        return self.thread.ident

    def let_go(self) -> None:
        self._enough.set()


def meeting(start: Started, number: int) -> bool:
    """Whether so many jobs run at once."""
    together = threading.Barrier(number + 1, timeout=WAIT)
    for _ in range(number):
        start(together.wait)
    together.wait()
    return True


def test_a_thread_that_a_job_keeps_is_replaced_by_one_whose_name_says_so(threads: JobThreads, start: Started) -> None:
    kept = Kept(start)

    lost, successor = threads.replace(kept.ident)

    assert (lost, successor) == (kept.thread.name, f"{kept.thread.name}.2")
    assert meeting(start, 3)
    kept.let_go()


def test_a_successor_that_is_kept_as_well_has_one_of_its_own(threads: JobThreads, start: Started) -> None:
    kept = [Kept(start) for _ in range(3)]
    names = {threads.replace(one.ident)[1] for one in kept}
    again = [Kept(start) for _ in range(3)]

    assert {one.thread.name for one in again} == names == {"job-1.2", "job-2.2", "job-3.2"}
    assert {threads.replace(one.ident)[1] for one in again} == {"job-1.3", "job-2.3", "job-3.3"}
    assert meeting(start, 3)
    for one in (*kept, *again):
        one.let_go()


def test_a_thread_that_was_replaced_ends_after_its_job_and_takes_no_other(threads: JobThreads, start: Started) -> None:
    kept = Kept(start)
    threads.replace(kept.ident)
    started, ran_on = threading.Event(), []

    def note() -> None:
        ran_on.append(threading.current_thread())
        started.set()

    # From the thread of the job that ends, as the feed does when a slot gets free.
    kept.then = lambda: start(note)
    kept.let_go()

    assert started.wait(WAIT)
    kept.thread.join(WAIT)
    assert not kept.thread.is_alive()
    assert kept.thread not in ran_on
    assert threads._hooks.ended == [kept.thread.name]  # type: ignore[attr-defined]
    assert (threads.dead, threads._retired) == ([], set())


def test_a_thread_that_was_replaced_is_named_at_the_end_when_its_job_never_returns() -> None:
    with capture_logs() as logs, JobThreads(1, Calling(), lambda claim: None, Calling()) as threads:  # type: ignore[arg-type]
        kept = Kept(threads.start)  # type: ignore[arg-type]
        threads.replace(kept.ident)

    assert [entry["thread"] for entry in logs if entry["event"] == "job_thread.left"] == ["job-1"]
    kept.let_go()
    kept.thread.join(WAIT)


def test_where_the_system_gives_no_more_threads_nothing_has_changed(
    threads: JobThreads, start: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(start)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            threads.replace(kept.ident)
    kept.let_go()

    assert meeting(start, 3)
    assert kept.thread.is_alive()
