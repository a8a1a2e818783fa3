"""While something keeps the event loop, its jobs are left to other workers, and the others go on here."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection, Connection

from tests.factories import scalar
from tests.running import WAIT, RunningWorker, attempts, outcome, row_id, waiting_row
from tests.runtime.slots import Slots, claim
from tests.waiting import wait_until
from worker import PostgresBroker, job
from worker.queue.feed import names
from worker.queue.settlement import Outcome


@pytest.fixture
def plain(broker: PostgresBroker) -> Any:
    @job(broker=broker, name="plain")
    def plain() -> None: ...

    return plain


@pytest.fixture
def on_loop(broker: PostgresBroker) -> Any:
    @job(broker=broker, name="on_loop")
    async def on_loop() -> None: ...

    return on_loop


@pytest.fixture
def greedy(broker: PostgresBroker, enough: threading.Event) -> Any:
    @job(broker=broker, name="greedy", timeout=None)
    async def greedy() -> None:
        assert enough.wait(WAIT)

    return greedy


# In a worker


def test_what_the_loop_has_not_begun_is_given_back_and_claimed_again_when_it_goes_on(
    worker: RunningWorker, greedy: Any, on_loop: Any, plain: Any, db: psycopg.Connection, enough: threading.Event
) -> None:
    greedy.send()
    wait_until(lambda: worker.feed.num_running == 1, WAIT, "the job that keeps the loop")
    waiting = on_loop.send()
    wait_until(lambda: worker.feed.num_running == 2, WAIT, "the one behind it")
    row = waiting_row(db, waiting, "available")

    # Each of these is a claim, and takes the slot in which that one has waited.
    done = [outcome(db, plain.send()) for _ in range(3)]

    again = waiting_row(db, waiting, "available")
    assert (done, row["attempt"], again["token"]) == (["done"] * 3, 0, row["token"])
    enough.set()
    assert (outcome(db, waiting), attempts(db, waiting)) == ("done", 1)


def test_nothing_is_claimed_where_all_jobs_would_run_on_it(
    worker: RunningWorker, greedy: Any, db: psycopg.Connection, enough: threading.Event
) -> None:
    first = greedy.send()
    wait_until(lambda: [room.limit for room in worker.feed.rooms()] == [0], WAIT, "the end of claims")

    second = greedy.send()
    worker.dispatcher.submit(lambda conn: None).result(WAIT)

    assert scalar(db, "SELECT state FROM worker.job WHERE id = %s", row_id(second)) == "available"
    enough.set()
    assert [outcome(db, message) for message in (first, second)] == ["done", "done"]


# In a feed


@pytest.fixture
def slots(broker: PostgresBroker, plain: Any, on_loop: Any, monkeypatch: pytest.MonkeyPatch) -> Slots:
    @job(broker=broker)
    async def on_loop_with_conn(conn: AsyncConnection) -> None: ...

    @job(broker=broker)
    def with_conn(conn: Connection) -> None: ...

    return Slots(broker, monkeypatch, slots=2, checkouts=1)


def released(slots: Slots) -> list[int]:
    assert {one.outcome for one in slots.settled} <= {Outcome.RELEASED}
    return [one.id.int for one in slots.settled]


def test_only_jobs_of_threads_are_asked_for(slots: Slots) -> None:
    before = names(slots.feed.rooms())[1]
    slots.feed.leave_loop()
    meanwhile = slots.feed.rooms()
    slots.feed.return_to_loop()

    assert before == names(slots.feed.rooms())[1] == ["on_loop", "on_loop_with_conn", "plain", "with_conn"]
    assert [(room.actors, room.holding) for room in meanwhile] == [(["plain"], ["with_conn"])]


def test_what_waits_for_a_slot_is_given_back_too(slots: Slots) -> None:
    slots.feed.put([claim(actor, n) for n, actor in enumerate(["plain", "on_loop", "plain", "on_loop", "plain"])])

    slots.feed.leave_loop()

    assert released(slots) == [3, 1]
    assert [one.id.int for one in slots.started] == [0, 2]
    slots.feed.finished(claim("plain", 0))
    assert [one.id.int for one in slots.started] == [0, 2, 4]


def test_what_comes_of_a_claim_that_was_under_way_is_given_back_too(slots: Slots) -> None:
    slots.feed.leave_loop()

    slots.feed.put([claim("on_loop", 0), claim("plain", 1)])

    assert (released(slots), slots.on_loop) == ([0], [])
    assert [one.id.int for one in slots.started] == [1]


def test_a_job_that_was_on_its_way_there_is_given_back_at_the_next_look(slots: Slots) -> None:
    slots.feed.put([claim("on_loop", 0)])
    slots.on_loop.clear()
    slots.feed.leave_loop()
    slots.on_loop.append(claim("on_loop", 0))

    slots.feed.leave_loop()

    assert released(slots) == [0]
    assert slots.feed.idle.is_set()
