"""Many schedules that tick in one instant: a handful of statements, and none that spoils the others."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from tests.factories import scalar
from tests.schedule.standins import SCHEMA, Book, counted, dispatcher, enqueue, schedule
from tests.waiting import wait_until
from worker import Context, PostgresBroker, bind, clock, cron, every, job
from worker.schedule import Schedule, Scheduler, registered
from worker.schedule.ledger import Ledger
from worker.schedule.sending import send
from worker.schedule.trigger import Every

NOON = datetime(2026, 3, 31, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
PATIENCE = 20.0
MANY = 200


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> PostgresBroker:
    """Jobs that schedules can send; nobody else's schedules."""
    monkeypatch.setattr("worker.schedule.declaration._registry", {})
    broker = PostgresBroker(schema="worker")

    @job(broker=broker, queue="reports")
    def report(ctx: Context, number: int) -> None: ...

    @job(broker=broker, unique=True)
    def once(ctx: Context) -> None: ...

    return broker


def declared(book: Book, *schedules: Schedule) -> list[Schedule]:
    for each in schedules:
        book.declare(each, NOON - SECOND)
    return [*schedules]


def test_two_hundred_that_fire_at_once_cost_five_statements(book: Book, broker: PostgresBroker) -> None:
    for number in range(MANY):
        cron("* * * * *", name=f"report {number}", args=[number])(broker.actors["report"])
    schedules = declared(book, *registered())
    statements: list[bytes] = []

    with counted(book.db, statements), book.db.transaction():
        Ledger(send, schema=SCHEMA).advance_all(book.db, schedules, now=NOON)

    assert len([each for each in statements if b"worker" in each]) <= 5
    assert scalar(book.db, "SELECT count(*) FROM worker.tick WHERE outcome = 'fired'") == MANY
    assert scalar(book.db, "SELECT count(DISTINCT args ->> 'number') FROM worker.job") == MANY
    assert scalar(book.db, "SELECT count(*) FROM worker.job JOIN worker.tick ON id = job_id") == MANY


def test_one_whose_arguments_cannot_be_computed_harms_no_other(book: Book, broker: PostgresBroker) -> None:
    def fail(tick: datetime) -> list[int]:
        raise LookupError("no number today")

    for name, args in (("before", [1]), ("broken", fail), ("wrong", lambda tick: ["x"]), ("sound", [3])):
        cron("* * * * *", name=name, args=args)(broker.actors["report"])
    schedules = declared(book, *registered())

    with book.db.transaction():
        done = Ledger(send, schema=SCHEMA).advance_all(book.db, schedules, now=NOON)

    failed = {each.name: str(one.failed) for each, one in zip(schedules, done, strict=True) if one.failed}
    assert failed.keys() == {"broken", "wrong"}
    assert failed["broken"] == "no number today"
    assert [book.told(name) for name in ("before", "broken", "wrong", "sound")] == [
        [("12:00:00", "fired", None)], [], [], [("12:00:00", "fired", None)]
    ]  # fmt: skip
    assert len(book.job_ids()) == 2


def test_of_one_that_fails_at_one_of_its_ticks_no_tick_is_sent(book: Book, broker: PostgresBroker) -> None:
    """Else the ledger would have to say of one that was not decided that it was, or a job would run that it lacks."""

    def fail_at_noon(tick: datetime) -> list[int]:
        return [1 // (tick - NOON).seconds]

    cron("* * * * *", name="report", args=fail_at_noon, missed="all", overlap="allow")(broker.actors["report"])
    [mine] = registered()
    book.declare(mine, NOON - 2 * MINUTE - SECOND)

    with book.db.transaction():
        [done] = Ledger(send, schema=SCHEMA).advance_all(book.db, [mine], now=NOON)

    assert isinstance(done.failed, ZeroDivisionError)
    assert (book.told("report"), book.job_ids()) == ([], [])


def test_two_that_share_a_unique_job_both_name_it(book: Book, broker: PostgresBroker) -> None:
    for name in ("first", "second"):
        every(minutes=1, name=name)(broker.actors["once"])
    schedules = declared(book, *registered())

    with book.db.transaction():
        Ledger(send, schema=SCHEMA).advance_all(book.db, schedules, now=NOON)

    [only] = book.job_ids()
    assert [row[0] for row in book.db.execute("SELECT job_id FROM worker.tick")] == [only, only]


def test_jitter_makes_the_job_due_so_long_after_the_tick(book: Book, broker: PostgresBroker) -> None:
    cron("* * * * *", name="report", args=[1], jitter=3600.0)(broker.actors["report"])
    [mine] = registered()
    now = clock.now()
    book.declare(mine, now - 2 * MINUTE)

    with book.db.transaction():
        [done] = Ledger(send, schema=SCHEMA).advance_all(book.db, [mine], now=now)

    [due_at] = [row[0] for row in book.db.execute("SELECT due_at FROM worker.job WHERE state = 'scheduled'")]
    tick = done.entries[-1].tick
    assert timedelta(0) < due_at - tick <= timedelta(hours=1)


def test_each_has_its_own_overlap_policy_and_its_own_living_jobs(book: Book) -> None:
    schedules = declared(book, *(schedule(name, overlap=name) for name in ("allow", "skip", "queue_one")))

    for minute in range(3):
        with book.db.transaction():
            book.ledger.advance_all(book.db, schedules, now=NOON + minute * MINUTE)

    reasons = {name: [reason for _, _, reason in book.told(name)] for name in ("allow", "skip", "queue_one")}
    assert reasons == {
        "allow": [None, None, None],
        "skip": [None, "overlap", "overlap"],
        "queue_one": [None, None, "overlap"],
    }


def test_those_of_one_instant_are_looked_at_in_one_transaction(book: Book, database: str) -> None:
    looks: list[Any] = []
    many = [schedule(f"job {number}", trigger=Every(2), spec="every 2 seconds") for number in range(MANY)]

    with dispatcher(database) as inner:

        def submit(work: Callable[[psycopg.Connection[Any]], Any]) -> Any:
            looks.append(work)
            return inner(work)

        with Scheduler(many, submit=submit, enqueue=enqueue, schema=SCHEMA):
            ticks = "SELECT count(*) FROM (SELECT FROM worker.tick GROUP BY tick HAVING count(*) >= 200) AS whole"
            wait_until(lambda: scalar(book.db, ticks) >= 1, PATIENCE, "the first tick of all")
            before, reached = len(looks), scalar(book.db, ticks)
            wait_until(lambda: scalar(book.db, ticks) >= reached + 3, PATIENCE, "three more")

    # One for each tick; and heartbeats.
    assert len(looks) - before <= 3 + 2 + 2


def test_one_that_meets_a_lock_harms_no_other(book: Book, broker: PostgresBroker, database: str) -> None:
    """A timeout of its statement looks like a database that is out of reach, and is not."""
    cron("* * * * *", name="plain", args=[1])(broker.actors["report"])
    cron("* * * * *", name="keyed")(broker.actors["once"])
    schedules = declared(book, *registered())
    timer = SimpleNamespace(is_alive=True, once=lambda *_: None)

    with psycopg.connect(database) as sender, psycopg.connect(database, autocommit=True) as conn:
        with bind(sender):
            broker.actors["once"].send()  # an application's open transaction has the key
        conn.execute("SET statement_timeout = '500ms'")

        def submit(work: Callable[[psycopg.Connection[Any]], Any]) -> Future[Any]:
            done: Future[Any] = Future()
            try:
                with conn.transaction():
                    done.set_result(work(conn))
            except psycopg.Error as exc:
                done.set_exception(exc)
            return done

        scheduler = Scheduler([], submit=submit, schema=SCHEMA)
        scheduler._timer = timer  # type: ignore[assignment]
        for each in schedules:
            scheduler._await_look(each, None)
        scheduler._look_at_waiting()
        sender.rollback()

    assert scalar(book.db, "SELECT count(*) FROM worker.tick WHERE schedule = 'plain'") > 0
    assert scalar(book.db, "SELECT count(*) FROM worker.tick WHERE schedule = 'keyed'") == 0
