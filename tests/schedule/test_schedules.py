"""Schedules in the database: added, changed, removed, paused and run by people, and picked up by running workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import dramatiq
import psycopg
import pytest
from dramatiq.brokers.stub import StubBroker

from tests.factories import terminate
from tests.queue.conftest import dispatching
from tests.schedule.standins import SCHEMA, Book, actor, dispatcher, enqueue, plain, schedule
from tests.waiting import wait_until
from worker import ConfigError, Context, NotFound, PostgresBroker, Refused, Schedules, clock, cron, job
from worker.schedule import Schedule, Scheduler, declaration
from worker.schedule import scheduler as scheduler_module
from worker.schedule.ledger import KEEP
from worker.schedule.sending import Firing, send
from worker.schedule.trigger import Every

NOON = datetime(2026, 3, 31, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
PATIENCE = 20.0


def report(report_id: int, note: str = "") -> None: ...


@pytest.fixture
def broker() -> Iterator[PostgresBroker]:
    """A broker of ours as Dramatiq's global one, with the job `report` on it."""
    before = dramatiq.get_broker()
    ours = PostgresBroker(schema="worker")
    dramatiq.set_broker(ours)
    try:
        job(broker=ours)(report)
        yield ours
    finally:
        dramatiq.set_broker(before)


@pytest.fixture
def schedules(db: psycopg.Connection, broker: PostgresBroker) -> Schedules:
    return Schedules(db)


@pytest.fixture(autouse=True)
def _registry_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declaration, "_registry", {})


def rows(db: psycopg.Connection, query: str) -> list[tuple[Any, ...]]:
    return db.execute(query.encode()).fetchall()


def test_an_added_schedule_is_in_the_database_with_all_its_terms(schedules: Schedules) -> None:
    schedules.add(
        "weekly", "report", cron="0 7 * * mon", tz="Europe/Berlin", gap="skip", args={"report_id": 7}, jitter=30.0
    )

    (row,) = schedules.list()
    assert (row.name, row.spec, row.tz, row.actor) == ("weekly", "0 7 * * mon gap=skip", "Europe/Berlin", "report")
    assert (row.args, row.jitter, row.source) == ({"report_id": 7}, 30.0, "database")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({}, ConfigError, "nothing says when, expected one of cron, every, at"),
        ({"cron": "0 7 * * *", "every": 60.0}, ConfigError, "cron and every both say when"),
        ({"cron": "0 25 * * *"}, ConfigError, "25 is out of range"),
        ({"every": 0.1}, ConfigError, "an interval of 0.1 s"),
        ({"at": datetime(2026, 1, 1)}, ConfigError, "is not a point in time"),  # noqa: DTZ001  # what the test is about
        ({"every": 60.0, "gap": "run"}, ConfigError, "gap and repeat belong to a crontab"),
        ({"every": 60.0, "args": {"report": 7}}, ConfigError, "missing a required argument: 'report_id'"),
        ({"every": 60.0, "args": {"report_id": "x"}}, ConfigError, "Expected `int`, got `str`"),
        ({"every": 60.0, "args": ()}, ConfigError, "job 'report' needs the argument 'report_id'"),
        ({"every": 60.0, "job": "reprot"}, ConfigError, "job 'reprot' is not declared .* did you mean 'report'"),
        ({"every": 60.0, "missed": "none"}, ConfigError, "missed='none' is unknown"),
        ({"every": 60.0, "name": "taken"}, Refused, "schedule 'taken' exists"),
    ],
)
def test_what_cannot_work_is_not_added(
    schedules: Schedules, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    schedules.add("taken", "report", every=60, args={"report_id": 1})
    options = {"name": "weekly", "job": "report", "args": {"report_id": 7}, **options}

    with pytest.raises(error, match=said):
        schedules.add(**options)

    assert [row.name for row in schedules.list()] == ["taken"]


def test_a_change_keeps_what_is_not_given(schedules: Schedules) -> None:
    schedules.add("weekly", "report", cron="0 7 * * mon", tz="Europe/Berlin", args={"report_id": 7}, overlap="allow")

    schedules.change("weekly", args=[8])

    (row,) = schedules.list()
    assert (row.spec, row.tz, row.args, row.overlap) == ("0 7 * * mon", "Europe/Berlin", [8], "allow")


def test_a_removed_schedule_leaves_its_ledger_and_a_row_for_what_was_undecided(
    schedules: Schedules, db: psycopg.Connection
) -> None:
    schedules.add("often", "report", every=1, args=[7])
    db.execute("UPDATE worker.schedule SET last_tick = now() - interval '3 seconds'")

    schedules.remove("often")

    assert schedules.list() == []
    assert {row[0] for row in rows(db, "SELECT reason FROM worker.tick")} == {"removed"}
    assert "did not fire" in schedules.why("often").sentence


def test_what_code_declares_is_changed_in_code(schedules: Schedules, book: Book) -> None:
    book.declare(schedule("coded"))

    with pytest.raises(Refused, match=r"schedule 'coded' is declared in code, by module .*: change it there"):
        schedules.remove("coded")
    with pytest.raises(NotFound, match=r"'codet' is not in the database, did you mean 'coded'\?"):
        schedules.pause("codet")


def test_a_run_by_hand_is_marked_and_moves_no_tick(schedules: Schedules, db: psycopg.Connection) -> None:
    schedules.add("weekly", "report", every=3600, args=[7])
    before = rows(db, "SELECT last_tick FROM worker.schedule")

    entry = schedules.run("weekly")

    assert rows(db, "SELECT id, args FROM worker.job") == [(entry.job_id, {"report_id": 7})]
    assert rows(db, "SELECT outcome, manual, job_id FROM worker.tick") == [("fired", True, entry.job_id)]
    assert rows(db, "SELECT last_tick FROM worker.schedule") == before
    assert "was run by hand at" in schedules.why("weekly").sentence


def test_a_paused_schedule_can_be_run_by_hand(schedules: Schedules, db: psycopg.Connection) -> None:
    schedules.add("weekly", "report", every=3600, args=[7])
    schedules.pause("weekly")

    schedules.run("weekly")

    assert len(rows(db, "SELECT FROM worker.job")) == 1


def test_a_run_by_hand_honours_the_overlap_unless_forced(schedules: Schedules, db: psycopg.Connection) -> None:
    schedules.add("weekly", "report", every=3600, args=[7])
    schedules.run("weekly")

    with pytest.raises(Refused, match="of an earlier tick is not done, and its overlap policy is 'skip'"):
        schedules.run("weekly")
    schedules.run("weekly", force=True)

    assert len(rows(db, "SELECT FROM worker.job")) == 2


def test_a_job_knows_its_schedule_and_tick(schedules: Schedules, db: psycopg.Connection) -> None:
    schedules.add("weekly", "report", every=3600, args=[7])

    entry = schedules.run("weekly")

    ((options,),) = rows(db, "SELECT options FROM worker.job")
    assert options == {"schedule": "weekly", "scheduled_for": entry.tick.isoformat()}


def test_the_context_tells_schedule_and_tick() -> None:
    sent = {"schedule": "weekly", "scheduled_for": "2026-03-31T12:00:00+00:00"}
    basics: dict[str, Any] = {
        "job_id": uuid4(),
        "actor": "a",
        "queue": "q",
        "attempt": 1,
    }

    by_schedule, by_hand = Context(options=sent, **basics), Context(options={}, **basics)

    assert (by_schedule.schedule, by_schedule.scheduled_for) == ("weekly", NOON)
    assert (by_hand.schedule, by_hand.scheduled_for) == (None, None)


def test_arguments_may_be_computed_from_the_tick(book: Book, broker: PostgresBroker) -> None:
    cron("0 0 * * *", args=lambda tick: {"report_id": tick.day, "note": f"{tick:%Y-%m}"})(broker.actors["report"])
    (mine,) = declaration.registered()
    midnight = datetime(2026, 3, 31, tzinfo=UTC)
    sent = Book(book.db, send)
    sent.declare(mine, midnight - SECOND)
    sent.advance(mine, midnight)

    assert rows(book.db, "SELECT args FROM worker.job") == [({"report_id": 31, "note": "2026-03"},)]


def test_jitter_moves_the_job_and_not_the_tick(book: Book, broker: PostgresBroker) -> None:
    delays: list[float] = []

    def note(conn: Any, firings: Sequence[Firing]) -> Any:
        delays.extend((firing.due_at - firing.tick).total_seconds() for firing in firings if firing.due_at)
        return enqueue(conn, firings)

    mine = Schedule(
        "purge", "every 60 seconds", "UTC", "last", "allow", 3600.0, Every(60), actor(), "here", jitter=30.0
    )
    for _ in range(2):
        noted = Book(book.db, note)
        noted.declare(mine, NOON - SECOND)
        for minute in range(20):
            noted.advance(mine, NOON + minute * MINUTE)
        book.db.execute("TRUNCATE worker.schedule, worker.tick")

    assert delays[:20] == delays[20:], "it depends on schedule and tick alone"
    assert len(set(delays)) == 20
    assert all(0 <= delay < 30 for delay in delays)


def test_schedules_that_vanished_from_a_loaded_module_are_disabled_and_those_of_others_are_not(book: Book) -> None:
    mine = replace(schedule("mine"), module="jobs.billing")
    gone = replace(schedule("gone"), module="jobs.billing.old")
    others = replace(schedule("others"), module="jobsite.billing")
    for each in (mine, gone, others):
        book.declare(each, NOON - SECOND)
    boot = Book(book.db, modules=["jobs.billing"])

    assert boot.register.disable_vanished(book.db, [mine], now=NOON + MINUTE) == ["gone"]

    assert book.advance(gone, NOON + 2 * MINUTE).refused == "stale"
    assert book.told("gone") == [("12:00:00", "skipped", "removed"), ("12:01:00", "skipped", "removed")]
    assert book.advance(others, NOON + MINUTE).refused is None


def test_an_old_process_cannot_revive_what_a_living_one_says_is_gone(book: Book) -> None:
    mine, gone = replace(schedule("mine"), module="jobs"), replace(schedule("gone"), module="jobs")
    old, new = Book(book.db, modules=["jobs"]), Book(book.db, modules=["jobs"])
    for each in (mine, gone):
        old.declare(each, NOON)
    new.register.disable_vanished(book.db, [mine], now=NOON)

    for seconds in range(10, 100, 10):
        new.survey([mine], NOON + seconds * SECOND)
    alive = old.survey([mine, gone], NOON + 100 * SECOND).orphaned
    left = old.survey([mine, gone], NOON + 200 * SECOND).orphaned

    assert [each.name for each in alive] == []
    assert "gone" in [each.name for each in left]


def test_declaring_what_was_disabled_enables_it_from_now_on(book: Book) -> None:
    gone = replace(schedule("gone"), module="jobs")
    book.declare(gone, NOON - SECOND)
    Book(book.db, modules=["jobs"]).register.disable_vanished(book.db, [], now=NOON)

    assert book.declare(gone, NOON + 90 * SECOND) == "changed"
    book.advance(gone, NOON + 2 * MINUTE)

    assert book.told("gone") == [("12:00:00", "skipped", "removed"), ("12:02:00", "fired", None)]


def test_the_ledger_forgets_what_is_too_old(book: Book) -> None:
    book.declare(schedule(), NOON - SECOND)
    book.advance(schedule(), NOON)
    book.advance(schedule(), NOON + MINUTE)

    book.ledger.forget(book.db, now=NOON + timedelta(seconds=KEEP + 30))

    assert book.told() == [("12:01:00", "fired", None)]


def periods(schedule: Schedule) -> float:
    assert isinstance(schedule.trigger, Every)
    return schedule.trigger.seconds


def running(url: str, *actors: dramatiq.Actor[Any, Any]) -> Any:
    known = {each.actor_name: each for each in actors}
    return lambda submit: Scheduler([], submit=submit, enqueue=enqueue, schema=SCHEMA, actors=known.get)


@contextmanager
def listening(url: str, *actors: dramatiq.Actor[Any, Any]) -> Iterator[Scheduler]:
    """A scheduler on the dispatcher of a worker, which hears what people change."""
    with (
        dispatching(url) as queue,
        running(url, *actors)(queue.submit) as scheduler,
    ):
        queue.on_schedules = scheduler.catch_up
        wait_until(lambda: scheduler._revision is not None, PATIENCE, "the first look")
        yield scheduler


def test_a_running_worker_notices_within_two_seconds_what_is_added_changed_and_removed(
    book: Book, database: str, broker: PostgresBroker
) -> None:
    schedules = Schedules(book.db)

    def notices(expected: list[float]) -> None:
        changed_at = clock.monotonic()
        wait_until(lambda: [periods(each) for each in scheduler.schedules] == expected, PATIENCE, f"{expected}")
        assert clock.monotonic() - changed_at < 2.0

    with listening(database, broker.actors["report"]) as scheduler:
        schedules.add("often", "report", every=1, args=[7], overlap="allow")
        notices([1.0])
        wait_until(lambda: book.told("often"), PATIENCE, "a tick")
        schedules.change("often", every=2)
        notices([2.0])
        schedules.remove("often")
        notices([])

    assert {outcome for _, outcome, _ in book.told("often")} <= {"fired", "skipped"}


def test_a_change_that_nobody_was_told_of_is_found_by_the_heartbeat(
    book: Book, database: str, broker: PostgresBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_module, "HEARTBEAT", 0.2)

    with dispatcher(database) as submit, running(database, broker.actors["report"])(submit) as scheduler:
        wait_until(lambda: scheduler._revision is not None, PATIENCE, "the first look")
        Schedules(book.db).add("often", "report", every=1, args=[7], overlap="allow")
        wait_until(lambda: [each.name for each in scheduler.schedules] == ["often"], PATIENCE, "the new schedule")


def test_a_change_during_a_lost_connection_is_noticed_when_there_is_another(
    book: Book, database: str, broker: PostgresBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_module, "HEARTBEAT", 3600.0)

    with listening(database, broker.actors["report"]) as scheduler:
        with book.db.transaction():
            pid = book.db.execute("SELECT pid FROM worker.worker").fetchone()
            assert pid is not None
            # Nobody can register while this is open, so nobody listens when it commits.
            book.db.execute("LOCK TABLE worker.migration IN ACCESS EXCLUSIVE MODE")
            terminate(book.db, pid[0])
            Schedules(book.db).add("often", "report", every=1, args=[7], overlap="allow")
        wait_until(lambda: [each.name for each in scheduler.schedules] == ["often"], PATIENCE, "the new schedule")


def test_a_schedule_whose_job_nobody_knows_waits_for_a_worker_that_does(
    book: Book, database: str, broker: PostgresBroker
) -> None:
    Schedules(book.db).add("often", "report", every=1, args=[7], overlap="allow")

    with dispatcher(database) as submit, running(database)(submit) as scheduler:
        wait_until(lambda: scheduler._revision is not None, PATIENCE, "a poll")
        assert scheduler.schedules == []
    with dispatcher(database) as submit, running(database, broker.actors["report"])(submit):
        wait_until(lambda: book.told("often"), PATIENCE, "a tick")


def asked(book: Book, name: str, at: datetime | None = None) -> str:
    return Schedules(book.db).why(name, at).sentence


def test_why_answers_in_a_sentence_from_the_ledger(book: Book, broker: PostgresBroker) -> None:
    mine = schedule(overlap="skip")
    book.declare(mine, NOON - SECOND)
    book.advance(mine, NOON + SECOND)
    book.advance(mine, NOON + MINUTE)
    book.finish_jobs()
    book.advance(mine, NOON + 3 * MINUTE + 20 * SECOND)

    assert asked(book, "purge", NOON).startswith("purge fired at 2026-03-31T12:00:00Z, 1.000 s late (job ")
    assert asked(book, "purge", NOON + MINUTE) == (
        "purge did not fire at 2026-03-31T12:01:00Z: the job of an earlier tick was not done yet."
    )
    assert asked(book, "purge", NOON + 2 * MINUTE) == (
        "purge did not fire at 2026-03-31T12:02:00Z: the run of 2026-03-31T12:03:00Z made up for it."
    )
    assert "only 20 s later, when a worker was there again" in asked(book, "purge")
    assert asked(book, "purge", NOON + 90 * SECOND) == (
        "purge has no tick at 2026-03-31T12:01:30Z by its spec 'every 60 seconds' in UTC:"
        " the next one is 2026-03-31T12:02:00Z."
    )


def test_why_tells_a_pause_and_a_range(book: Book, broker: PostgresBroker) -> None:
    fast = schedule(trigger=Every(1), spec="every 1 second")
    book.declare(fast, NOON - timedelta(hours=1))
    book.ledger.pause(book.db, "purge", now=NOON - timedelta(hours=1))
    book.advance(fast, NOON)

    assert asked(book, "purge", NOON - MINUTE) == (
        "purge did not fire at any tick from 2026-03-31T11:00:01Z to before 2026-03-31T12:00:00.000001Z:"
        " the schedule was paused; it is paused since 2026-03-31T11:00:00Z."
    )


def test_why_tells_that_no_worker_is_there(book: Book, broker: PostgresBroker) -> None:
    book.declare(schedule(), clock.now() - timedelta(hours=5))

    assert "no worker that declares it has been seen for 5 hours." in asked(book, "purge")


def test_why_of_a_name_that_nobody_knows_is_not_found(book: Book, broker: PostgresBroker) -> None:
    book.declare(schedule())

    with pytest.raises(NotFound, match=r"'purg' is neither .* nor in its ledger, did you mean 'purge'\?"):
        asked(book, "purg")


def test_a_plain_actor_can_be_scheduled_too(db: psycopg.Connection) -> None:
    assert plain(report, name="report").broker.__class__ is StubBroker

    with pytest.raises(ConfigError, match="missing a required argument"):
        Schedules(db).add("weekly", plain(report), every=60, args={"note": "x"})
