"""Claiming ahead: only what will start within moments, in its order, and never behind a long job."""

from __future__ import annotations

import threading

import psycopg
import pytest

from tests.factories import column, opened_pool, scalar
from tests.running import WAIT, running_worker
from tests.waiting import wait_until
from worker import PostgresBroker, job
from worker.queue.schema import Schema
from worker.runtime.lookahead import Lookahead
from worker.runtime.slot_feed import SlotFeed

RUNNING = "SELECT count(*) FROM worker.job WHERE state = 'running'"


def after(*durations: float) -> Lookahead:
    lookahead = Lookahead()
    for duration in durations:
        lookahead.ran(duration)
    return lookahead


# How many


def test_nothing_is_claimed_ahead_before_any_job_has_run() -> None:
    assert after().size(10) == 0


def test_nothing_is_claimed_ahead_of_long_jobs() -> None:
    assert after(*[0.5] * 100).size(10) == 0


def test_what_starts_within_moments_is_claimed_ahead() -> None:
    assert after(*[0.004] * 200).size(10) == pytest.approx(50, abs=1)


def test_there_is_a_limit_however_short_the_jobs() -> None:
    assert after(*[0.0] * 1000).size(10) == 200


def test_slots_that_long_jobs_hold_count_for_nothing() -> None:
    assert after(*[0.004] * 200).size(0) == 0


def test_one_long_job_ends_it_for_a_while() -> None:
    lookahead = after(*[0.001] * 200, 3600.0)

    assert lookahead.size(10) == 0
    for _ in range(100):
        lookahead.ran(0.001)
    assert lookahead.size(10) > 0


def test_what_was_late_ends_it_for_a_while() -> None:
    lookahead = after(*[0.001] * 200)

    lookahead.was_late()

    assert lookahead.size(10) == 0


# In a worker


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-ahead that expects jobs of 4 ms, so that it claims five ahead of a slot."""

    def expect(lookahead: Lookahead) -> None:
        lookahead._expected = 0.004

    monkeypatch.setattr(Lookahead, "__init__", expect)


def held_job(broker: PostgresBroker, enough: threading.Event) -> None:
    @job(broker=broker, name="hold", max_retries=0)
    def hold() -> None:
        assert enough.wait(WAIT)


@pytest.mark.usefixtures("eager")
def test_what_waits_for_a_slot_too_long_is_given_back_with_its_attempt(
    broker: PostgresBroker, database: str, db: psycopg.Connection, enough: threading.Event
) -> None:
    held_job(broker, enough)
    with running_worker(broker, database, pool_size=2) as worker:
        for _ in range(4):
            broker.enqueue(broker.actors["hold"].message())
        wait_until(lambda: worker.feed.num_running == 1 and worker.dispatcher.num_outstanding == 1, WAIT, "the return")
        query = "SELECT count(*) FROM worker.job WHERE state = 'available' AND attempt = 0 AND crashes = 0"
        given_back = wait_until(lambda: scalar(db, query), WAIT, "the jobs that were given back")
        enough.set()

    assert given_back == 3


def test_a_long_job_ends_the_look_ahead(
    broker: PostgresBroker, database: str, db: psycopg.Connection, enough: threading.Event
) -> None:
    """What one worker hoards, another that is idle cannot run."""
    held_job(broker, enough)

    @job(broker=broker)
    def quick() -> None: ...

    with running_worker(broker, database, pool_size=2) as worker:
        for _ in range(200):
            quick.send()
        wait_until(lambda: scalar(db, "SELECT count(*) FROM worker.job") == 0, WAIT, "the short jobs")
        for _ in range(20):
            broker.enqueue(broker.actors["hold"].message())
        wait_until(lambda: worker.feed.num_running == 1, WAIT, "the long job")
        wait_until(lambda: worker.dispatcher.num_outstanding == 1, WAIT, "the return of what was claimed behind it")
        for _ in range(2):
            worker.dispatcher.submit(lambda conn: None).result(WAIT)
        held = scalar(db, RUNNING)
        enough.set()

    assert held == 1


@pytest.mark.usefixtures("eager")
def test_a_drain_gives_back_at_once_what_waits_for_a_slot(
    broker: PostgresBroker,
    database: str,
    db: psycopg.Connection,
    enough: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.runtime.slot_feed._PATIENCE", 3600.0)
    held_job(broker, enough)
    with running_worker(broker, database, pool_size=2) as worker:
        for _ in range(4):
            broker.enqueue(broker.actors["hold"].message())
        wait_until(lambda: scalar(db, RUNNING) == 4, WAIT, "the claims")
        worker.stop.ask()
        # The one that runs is not over: the others do not wait for it.
        releasing = threading.Thread(target=lambda: wait_for_release(db, enough))
        releasing.start()
    releasing.join(WAIT)

    assert column(db, "SELECT DISTINCT (state, attempt)::text FROM worker.job") == ["(available,0)"]
    assert scalar(db, "SELECT count(*) FROM worker.job_history") == 1


def wait_for_release(db: psycopg.Connection, enough: threading.Event) -> None:
    wait_until(lambda: scalar(db, RUNNING) == 1, WAIT, "the release")
    enough.set()


@pytest.mark.usefixtures("eager")
def test_what_is_claimed_ahead_runs_in_the_order_of_its_claim(
    broker: PostgresBroker, database: str, db: psycopg.Connection
) -> None:
    order: list[int] = []

    @job(broker=broker)
    def note(number: int) -> None:
        order.append(number)

    with opened_pool(database) as pool, broker.on(pool, Schema()):
        for number in range(30):
            note.send(number)
    with running_worker(broker, database, pool_size=2):
        wait_until(lambda: scalar(db, "SELECT count(*) FROM worker.job") == 0, WAIT, "the jobs")

    assert order == list(range(30))


@pytest.mark.usefixtures("eager")
def test_what_was_claimed_ahead_counts_as_running_once_it_runs(
    broker: PostgresBroker, database: str, db: psycopg.Connection, enough: threading.Event
) -> None:
    """By that a rescuer tells what may have taken its worker along from what merely waited."""
    second = threading.Event()

    @job(broker=broker, max_retries=0)
    def hold(number: int) -> None:
        if number:
            second.set()
            assert enough.wait(WAIT)

    with opened_pool(database) as pool, broker.on(pool, Schema()):
        for number in range(2):
            hold.send(number)
    with running_worker(broker, database, pool_size=2):
        assert second.wait(WAIT)
        query = "SELECT count(*) FROM worker.job WHERE state = 'running' AND NOT ahead"
        assert wait_until(lambda: scalar(db, query) == 1, WAIT, "the mark")
        enough.set()


@pytest.mark.parametrize(("waiting", "gathered"), [(0, False), (2, False), (3, True)])
def test_outcomes_are_gathered_only_while_more_than_half_of_the_line_is_left(
    broker: PostgresBroker, waiting: int, gathered: bool
) -> None:
    feed = SlotFeed(broker, slots=1, checkouts=1)
    feed._low = 2  # of a line of four or five
    feed._line.extend([(0.0, None)] * waiting)  # type: ignore[list-item]  # nobody asks for whom

    assert (feed.leisure > 0) is gathered
