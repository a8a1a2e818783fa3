"""A pause in a running worker: what runs finishes, what is sent waits, and what is resumed runs."""

from __future__ import annotations

import threading

import psycopg

from tests.running import RunningWorker, outcome, waiting_row
from tests.waiting import wait_until
from worker import PostgresBroker, Queues, job

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
    wait_until(lambda: worker.dispatcher._flow.paused_queues, WAIT, "the worker to know of the pause")
    go_on.set()

    assert outcome(db, held) == "done"
    sent = follow.send()
    waiting_row(db, sent, "available")
    Queues(db).resume("default")
    assert outcome(db, sent) == "done"
