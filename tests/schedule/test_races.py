"""Many looks at the same tick at the same time: one decision."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import psycopg

from tests.schedule.standins import Book, schedule
from worker.schedule.declaration import Schedule
from worker.schedule.ledger import Pass
from worker.schedule.register import Declared

NOON = datetime(2026, 3, 31, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
PATIENCE = 20.0


class Rivals:
    """Some ledgers, each with its own connection and thread, as processes have."""

    def __init__(self, books: list[Book], threads: ThreadPoolExecutor) -> None:
        self.books = books
        self._threads = threads

    def advance(self, schedule: Schedule, *instants: datetime) -> list[Future[Pass]]:
        """One look each, the nth rival at the nth instant (all at the only one)."""
        nows = instants if len(instants) > 1 else instants * len(self.books)
        start = threading.Barrier(len(nows))

        def look(book: Book, now: datetime) -> Pass:
            start.wait(PATIENCE)
            return book.advance(schedule, now)

        return [self._threads.submit(look, book, now) for book, now in zip(self.books, nows, strict=False)]

    def declare(self, *schedules: Schedule) -> list[Future[list[Declared]]]:
        """All schedules by each rival, every one in a single transaction."""
        start = threading.Barrier(len(self.books))

        def declare(book: Book) -> list[Declared]:
            start.wait(PATIENCE)
            with book.db.transaction():
                return [book.register.declare(book.db, schedule) for schedule in schedules]

        return [self._threads.submit(declare, book) for book in self.books]


@contextmanager
def rivals(url: str, count: int) -> Iterator[Rivals]:
    connections = [psycopg.connect(url, autocommit=True) for _ in range(count)]
    try:
        with ThreadPoolExecutor(count) as threads:
            yield Rivals([Book(conn) for conn in connections], threads)
    finally:
        for conn in connections:
            conn.close()


def test_eight_looks_at_each_of_twenty_ticks_make_twenty_jobs(book: Book, database: str) -> None:
    book.declare(schedule(), NOON - SECOND)

    with rivals(database, 8) as group:
        for minute in range(20):
            done = [look.result(PATIENCE) for look in group.advance(schedule(), NOON + minute * MINUTE)]
            assert sum(len(one.entries) for one in done) == 1

    assert [outcome for _, outcome, _ in book.told()] == ["fired"] * 20
    assert len(set(book.job_ids())) == 20


def test_five_processes_that_start_after_a_downtime_make_up_for_it_once(book: Book, database: str) -> None:
    down = schedule(missed="all")
    book.declare(down, NOON - 5 * MINUTE - SECOND)

    with rivals(database, 5) as group:
        for look in group.advance(down, NOON):
            look.result(PATIENCE)

    assert [outcome for _, outcome, _ in book.told()] == ["late"] * 5 + ["fired"]
    assert len(book.job_ids()) == 6


def test_nobody_waits_for_a_row_that_somebody_else_holds(book: Book, database: str) -> None:
    book.declare(schedule(), NOON - SECOND)

    with rivals(database, 2) as group, book.db.transaction():
        book.db.execute("SELECT FROM worker.schedule FOR UPDATE")
        looks = [look.result(PATIENCE) for look in group.advance(schedule(), NOON)]

    assert [look.refused for look in looks] == ["locked", "locked"]
    assert book.told() == []


def test_two_looks_at_two_ticks_do_not_both_find_the_schedule_idle(book: Book, database: str) -> None:
    # Whichever look gets the row first: the earlier tick fires, the later one overlaps.
    mine = schedule(overlap="skip", missed="all")
    book.declare(mine, NOON - SECOND)

    with rivals(database, 2) as group:
        for look in group.advance(mine, NOON, NOON + MINUTE):
            look.result(PATIENCE)
    # Who met the row locked looks again.
    book.advance(mine, NOON + MINUTE)

    assert [(time, reason) for time, _, reason in book.told()] == [("12:00:00", None), ("12:01:00", "overlap")]
    assert len(book.job_ids()) == 1


def test_processes_that_declare_at_once_neither_fail_nor_reset_each_other(book: Book, database: str) -> None:
    schedules = [schedule(f"job {number}") for number in range(5)]

    with rivals(database, 6) as group:
        changes = [declared.result(PATIENCE) for declared in group.declare(*schedules)]

    every = [change for each in changes for change in each]
    assert every.count("added") == 5
    assert set(every) <= {"added", "confirmed", "locked"}
