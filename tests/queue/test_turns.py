"""Turns: a fleet looks as soon as it must, and none of it more often than it must."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import psycopg
import pytest

from tests.factories import opened_pool
from tests.queue.conftest import SCHEMA, NotingFeed
from tests.queue.test_lease import Clock
from worker import clock
from worker.queue.dispatcher import Dispatcher
from worker.queue.feed import Room
from worker.queue.history import History
from worker.queue.lease import _COUNTDOWN, Lease
from worker.queue.turns import period, until_turn

FLEETS = range(2, 65)
WITHIN = 3.0


@pytest.mark.parametrize("others_run", [True, False])
def test_one_of_a_large_fleet_has_a_heartbeat_in_two_seconds(others_run: bool) -> None:  # a parameter
    assert period(64, others_run=others_run) == period(1, others_run=False) == 2.0


@pytest.mark.parametrize("workers", FLEETS)
def test_somebody_looks_within_a_second_of_the_death_of_one_that_runs_jobs(workers: int) -> None:
    apart = period(workers, others_run=True) / workers

    assert 2 * apart <= 1.0


@pytest.mark.parametrize("others_run", [True, False])
@pytest.mark.parametrize("workers", FLEETS)
def test_three_in_four_may_die_at_once_and_what_they_ran_runs_again_within_three_seconds(
    workers: int,
    others_run: bool,  # a parameter
) -> None:
    apart, dead = period(workers, others_run=others_run) / workers, 3 * workers // 4

    assert (dead + 1) * apart + _COUNTDOWN <= WITHIN


def test_workers_that_were_told_at_the_same_moment_have_their_next_turns_at_even_distances() -> None:
    told_at = 1764540000.123

    turns = sorted(until_turn(told_at, nth, 5, 2.0) for nth in range(5))

    assert all(0.0 <= turn < 2.0 for turn in turns)
    assert [b - a for a, b in pairwise(turns)] == pytest.approx([0.4] * 4, abs=1e-5)


def test_a_turn_that_has_just_been_had_comes_again_after_the_whole_period() -> None:
    assert until_turn(1000.001, 0, 5, 2.0) == pytest.approx(1.999)


def test_each_of_a_fleet_is_told_another_place(db: psycopg.Connection) -> None:
    room = [Room(["default"], ["charge"], 0)]
    leases = [Lease(SCHEMA, duration=10.0, slots=1, pool_size=2) for _ in range(5)]
    for lease in leases:
        lease.register(db)

    looks = [lease.renew(db, room) for lease in leases]

    assert sorted(look.nth for look in looks if look is not None) == [0, 1, 2, 3, 4]


class Counting(psycopg.Connection[Any]):
    """A connection that counts what it is asked."""

    statements = 0

    def execute(self, *arguments: Any, **options: Any) -> psycopg.Cursor[Any]:
        self.statements += 1
        return super().execute(*arguments, **options)


def test_an_idle_worker_asks_once_in_two_seconds(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    time = Clock()
    monkeypatch.setattr(clock, "monotonic", time)
    lease = Lease(SCHEMA, duration=10.0, slots=1, pool_size=2)
    with opened_pool(database) as pool, Counting.connect(database, autocommit=True) as conn:
        dispatcher = Dispatcher(pool, SCHEMA, lease, NotingFeed(limit=1), history=History(SCHEMA))
        dispatcher._attach(conn)
        time.advance(dispatcher._run_once(conn))
        began, conn.statements = time.seconds, 0

        for _ in range(100):
            time.advance(dispatcher._run_once(conn))
        dispatcher.stop()

    assert conn.statements <= (time.seconds - began) / 2.0
