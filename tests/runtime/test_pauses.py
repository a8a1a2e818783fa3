"""A pause in a running worker: what runs finishes, what is sent waits, and what is resumed runs."""

from __future__ import annotations

import threading

import psycopg

from tests.running import RunningWorker, outcome, waiting_row
from tests.waiting import wait_until
from worker import PostgresBroker, Queues, job
from worker.runtime.run import _is_empty

WAIT = 20.0


def test_a_paused_queue_finishes_what_runs_and_keeps_what_is_sent(
    broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    started, go_on = threading.Event(), threading.Event()

    @job(broker=broker)
    def hold() -> None:
        started.set()
        go_on.wait(WAIT)

    @job(broker=broker)
    def follow() -> None: ...

    held = hold.send()
    assert started.wait(WAIT)
    Queues(db).pause("default")
    wait_until(lambda: worker.dispatcher._pauses.queues, WAIT, "the worker to know of the pause")
    go_on.set()

    assert outcome(db, held) == "done"
    sent = follow.send()
    waiting_row(db, sent, "available")
    Queues(db).resume("default")
    assert outcome(db, sent) == "done"


def test_until_empty_does_not_wait_for_the_end_of_a_pause(
    broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    @job(broker=broker)
    def wait_here() -> None: ...

    Queues(db).pause("default", force=True)
    wait_until(lambda: worker.dispatcher._pauses.queues, WAIT, "the worker to know of the pause")
    waiting_row(db, wait_here.send(), "available")

    assert _is_empty(worker.dispatcher, worker.feed)
