"""Limits in a running worker: never more at once than allowed, and the next begins as soon as one is over."""

from __future__ import annotations

import threading

import psycopg

from tests.running import outcome, running_worker
from worker import Limit, PostgresBroker, clock, job


class Crowd:
    """Counts who is inside at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self.most = 0
        self.order: list[int] = []

    def visit(self, number: int) -> None:
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)
            self.order.append(number)
        threading.Event().wait(0.02)
        with self._lock:
            self._inside -= 1


def test_jobs_in_order_follow_each_other_without_waiting_for_polls(
    broker: PostgresBroker, database: str, db: psycopg.Connection
) -> None:
    crowd = Crowd()

    @job(broker=broker, limit=Limit(by="customer", in_order=True))
    def visit(customer: int, number: int) -> None:
        crowd.visit(number)

    with running_worker(broker, database, pool_size=5) as _:
        started = clock.monotonic()
        sent = [visit.send(7, number) for number in range(15)]
        assert [outcome(db, one) for one in sent] == ["done"] * 15
        took = clock.monotonic() - started

    assert (crowd.most, crowd.order) == (1, list(range(15)))
    # By polls alone it would be 2 s for each after the first.
    assert took < 10.0


def test_jobs_with_a_connection_give_their_place_up_too(
    broker: PostgresBroker, database: str, db: psycopg.Connection
) -> None:
    crowd = Crowd()

    @job(broker=broker, limit=Limit(2))
    def visit(conn: psycopg.Connection, number: int) -> None:
        crowd.visit(number)

    with running_worker(broker, database, pool_size=5) as _:
        started = clock.monotonic()
        sent = [visit.send(number) for number in range(15)]
        assert [outcome(db, one) for one in sent] == ["done"] * 15

        assert clock.monotonic() - started < 10.0
    assert crowd.most == 2
