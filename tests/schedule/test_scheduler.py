"""The scheduler in one process: real time, a real Postgres, and what happens when it cannot be reached."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import psycopg
import pytest
from structlog.testing import capture_logs

from tests.factories import scalar
from tests.leaks import threads
from tests.schedule.standins import SCHEMA, Book, counted, dispatcher, enqueue, schedule
from tests.waiting import wait_until
from worker import clock
from worker.schedule import Schedule, Scheduler, backlog
from worker.schedule import scheduler as module
from worker.schedule.crontab import parse
from worker.schedule.ledger import Pass
from worker.schedule.register import Survey
from worker.schedule.sending import Firing
from worker.schedule.trigger import Cron, Every

PATIENCE = 20.0
SECOND = timedelta(seconds=1)

# More ticks than any test waits for.
FAST = schedule(trigger=Every(1), spec="every 1 second")
# No tick while a test runs.
SLOW = schedule(trigger=Every(366 * 86400.0), spec="every 31622400 seconds")


class Unreachable:
    """A `submit` whose database is gone: the work waits until somebody fails it."""

    def __init__(self) -> None:
        self.futures: list[Future[Any]] = []

    def __call__(self, work: Callable[[psycopg.Connection[Any]], Any]) -> Future[Any]:
        self.futures.append(Future())
        return self.futures[-1]


def scheduler(submit: Any, *schedules: Schedule) -> Scheduler:
    return Scheduler(schedules or [FAST], submit=submit, enqueue=enqueue, schema=SCHEMA)


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with capture_logs() as captured:
        yield captured


def named(logs: list[Any], event: str) -> list[Any]:
    return [entry for entry in logs if entry["event"] == event]


def test_a_schedule_fires_at_each_of_its_ticks(book: Book, database: str) -> None:
    with dispatcher(database) as submit, scheduler(submit):
        wait_until(lambda: len(book.told()) >= 3, PATIENCE, "three ticks")

    ticks = [row[0] for row in book.db.execute("SELECT tick FROM worker.tick ORDER BY tick")]
    assert {later - earlier for earlier, later in pairwise(ticks)} == {SECOND}
    assert len(book.job_ids()) == len(ticks)


def test_a_tick_fires_within_moments_of_its_time(book: Book, database: str) -> None:
    with dispatcher(database) as submit, scheduler(submit):
        wait_until(lambda: len(book.told()) >= 3, PATIENCE, "three ticks")

    # Well below the heartbeat, so it was the timer; generous, as machines that run tests are busy.
    lateness = [row[0] for row in book.db.execute("SELECT lateness FROM worker.tick ORDER BY lateness")]
    assert lateness[0] < 1.0


def test_each_fired_tick_is_logged_with_its_job(book: Book, database: str, logs: list[Any]) -> None:
    with dispatcher(database) as submit, scheduler(submit):
        wait_until(lambda: named(logs, "schedule.fired"), PATIENCE, "a fired tick in the log")

    fired = named(logs, "schedule.fired")[0]
    assert fired["schedule"] == "purge"
    assert UUID(fired["job_id"]) in book.job_ids()
    assert datetime.fromisoformat(fired["tick"]).tzinfo is not None


def test_a_skipped_tick_is_logged_with_its_reason(book: Book, database: str, logs: list[Any]) -> None:
    once = schedule(trigger=Every(1), overlap="skip")

    with dispatcher(database) as submit, scheduler(submit, once):
        wait_until(lambda: named(logs, "schedule.skipped"), PATIENCE, "a skipped tick in the log")

    skipped = named(logs, "schedule.skipped")[0]
    assert (skipped["schedule"], skipped["reason"], skipped["ticks"]) == ("purge", "overlap", 1)


def test_the_boot_makes_up_for_a_downtime_without_waiting_for_a_tick(book: Book, database: str) -> None:
    period = 366 * 86400.0
    last = Every(period).after(datetime.now(UTC) - timedelta(seconds=period))
    patient = schedule(trigger=Every(period), grace=10 * period)
    book.declare(patient, last - SECOND)

    with dispatcher(database) as submit, scheduler(submit, patient):
        wait_until(book.job_ids, PATIENCE, "the job of the missed tick")

    assert [outcome for _, outcome, _ in book.told()] == ["late"]


def test_what_failed_is_logged_and_found_again_by_the_heartbeat(
    book: Book, database: str, logs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", 0.1)
    due = schedule(trigger=Every(366 * 86400.0), grace=1e8)
    book.declare(due, Every(366 * 86400.0).after(datetime.now(UTC)) - 2 * timedelta(days=366))
    failures = [psycopg.OperationalError("server closed the connection"), RuntimeError("closed")]

    with dispatcher(database) as submit:

        def fail_twice(work: Callable[[psycopg.Connection[Any]], Any]) -> Future[Any]:
            if not failures:
                return submit(work)
            if len(failures) == 1:
                raise failures.pop()
            failed: Future[Any] = Future()
            failed.set_exception(failures.pop(0))
            return failed

        with scheduler(fail_twice, due):
            wait_until(book.job_ids, PATIENCE, "the job of the tick that failed")

    events = ("scheduler.heartbeat_failed", "scheduler.retention_failed")
    errors = [entry["error"] for entry in logs if entry["event"] in events]
    assert errors == ["OperationalError: server closed the connection", "RuntimeError: closed"]


def test_a_schedule_that_fails_does_not_stop_the_others(book: Book, database: str, logs: list[Any]) -> None:
    def refuse_one(conn: psycopg.Connection[Any], firings: Sequence[Firing]) -> list[UUID | Exception]:
        if any(firing.schedule.name == "broken" for firing in firings):
            raise LookupError("no such queue")
        return enqueue(conn, firings)

    both = [schedule("broken", trigger=Every(1)), schedule("sound", trigger=Every(1))]

    with (
        dispatcher(database) as submit,
        Scheduler(both, submit=submit, enqueue=refuse_one, schema=SCHEMA),
    ):
        wait_until(lambda: len(book.told("sound")) >= 2, PATIENCE, "two ticks of the sound schedule")

    assert {entry["schedule"] for entry in named(logs, "schedule.failed")} == {"broken"}
    assert book.told("broken") == []


@pytest.mark.parametrize("state", ["53100", "25006"], ids=["disk full", "read-only"])
def test_a_server_that_takes_no_writes_is_told_once_for_all_schedules(
    book: Book, database: str, logs: list[Any], state: str
) -> None:
    book.db.execute(
        f"""
        CREATE SEQUENCE refusals;
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM nextval('refusals');
            RAISE EXCEPTION 'no' USING ERRCODE = '{state}';
        END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON worker.tick FOR EACH ROW EXECUTE FUNCTION refuse()
        """.encode()
    )
    several = [schedule(name, trigger=Every(1)) for name in ("one", "two", "three")]

    with dispatcher(database) as submit, scheduler(submit, *several):
        refusals = "SELECT last_value FROM refusals"
        wait_until(lambda: scalar(book.db, refusals) >= 3, PATIENCE, "some looks in vain")
        book.db.execute("DROP TRIGGER refuse ON worker.tick")
        wait_until(lambda: len(book.told("three")) >= 2, PATIENCE, "ticks when it takes writes again")

    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["scheduler.looks_failed"]


def test_while_nothing_ticks_a_heartbeat_of_one_statement_is_all(
    book: Book, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", 0.1)
    transactions: list[Any] = []
    beats: list[list[bytes]] = []

    with dispatcher(database) as inner:

        def submit(work: Callable[[psycopg.Connection[Any]], Any]) -> Future[Any]:
            transactions.append(work)
            return inner(work)

        def submit_statement(work: Callable[[psycopg.Connection[Any]], Any]) -> Future[Any]:
            def noting(conn: psycopg.Connection[Any]) -> Any:
                statements: list[bytes] = []
                with counted(conn, statements):
                    result = work(conn)
                beats.append(statements)
                return result

            return inner(noting)

        quiet = [SLOW, *(replace(SLOW, name=f"job {number}") for number in range(50))]
        with Scheduler(quiet, submit=submit, submit_statement=submit_statement, schema=SCHEMA):
            wait_until(lambda: len(beats) >= 2, PATIENCE, "the end of the boot")
            at_boot = len(transactions)
            wait_until(lambda: len(beats) >= 6, PATIENCE, "more heartbeats")

    assert [len(statements) for statements in beats] == [1] * len(beats)
    assert len(transactions) == at_boot


def test_what_is_older_than_the_ledger_keeps_is_forgotten_at_the_boot(book: Book, database: str) -> None:
    for days in (1, 3):
        book.declare(schedule(f"{days} days ago"), clock.now() - timedelta(days=days, seconds=90))
        book.advance(schedule(f"{days} days ago"), clock.now() - timedelta(days=days))

    with dispatcher(database) as submit, Scheduler([], submit=submit, schema=SCHEMA, keep=2 * 86400.0):
        wait_until(lambda: not book.told("3 days ago"), PATIENCE, "the end of what is too old")

    assert book.told("1 days ago") != []


def test_a_time_that_a_clock_change_skips_is_warned_of_at_registration(
    book: Book, database: str, logs: list[Any]
) -> None:
    in_gap = schedule(trigger=Cron(parse("30 2 * * *"), ZoneInfo("America/New_York")), spec="30 2 * * *")

    with dispatcher(database) as submit, scheduler(submit, in_gap):
        wait_until(lambda: named(logs, "schedule.gap"), PATIENCE, "the warning")

    (warning,) = named(logs, "schedule.gap")
    assert "the clock skips 02:30: it runs at 03:30 instead" in warning["warning"]


def test_a_stale_process_says_so_once(book: Book, database: str, logs: list[Any]) -> None:
    with dispatcher(database) as submit, scheduler(submit):
        wait_until(lambda: named(logs, "schedule.added"), PATIENCE, "the declaration")
        book.declare(schedule(trigger=Every(1), spec="every 1 second", missed="all"))
        ticks = len(book.told())
        wait_until(lambda: named(logs, "schedule.stale"), PATIENCE, "the stale schedule in the log")
        looked_until = clock.now() + 2 * SECOND
        wait_until(lambda: clock.now() > looked_until, PATIENCE, "two more ticks")

    assert len(named(logs, "schedule.stale")) == 1
    assert len(book.told()) == ticks


def test_a_schedule_whose_newer_terms_were_abandoned_is_taken_over(
    book: Book, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", 0.1)

    with dispatcher(database) as submit, scheduler(submit):
        wait_until(book.told, PATIENCE, "a tick")
        newer = (
            "UPDATE worker.schedule SET spec = 'newer', declared_at = now(), confirmed_at = now() - interval '1 hour'"
        )
        book.db.execute(newer)
        ticks = len(book.told())
        wait_until(lambda: len(book.told()) > ticks, PATIENCE, "a tick after the takeover")

    assert book.db.execute("SELECT spec FROM worker.schedule").fetchone() == (FAST.spec,)


def test_a_schedule_whose_row_is_gone_is_declared_again(
    book: Book, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", 0.1)

    with dispatcher(database) as submit, scheduler(submit):
        wait_until(book.told, PATIENCE, "a tick")
        book.db.execute("DELETE FROM worker.schedule")
        ticks = len(book.told())
        wait_until(lambda: len(book.told()) > ticks, PATIENCE, "a tick after the new declaration")


def test_more_ticks_than_one_transaction_takes_are_decided_at_once(
    book: Book, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "MAX_TICKS", 3)
    hourly = schedule(trigger=Every(3600), missed="all", grace=1e6)
    book.declare(hourly, clock.now() - timedelta(hours=10))

    with dispatcher(database) as submit, scheduler(submit, hourly):
        wait_until(
            lambda: len(book.job_ids()) >= 10, module.HEARTBEAT, "all that was missed, before a second heartbeat"
        )


class EarlyLedger:
    """A ledger whose database is 0.3 s behind this machine, until its clock has come so far."""

    looks: list[tuple[datetime, Pass]]

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def advance_all(self, *_: Any) -> list[Pass]:
        now = clock.now()
        self.looks.append((now, Pass(now - timedelta(seconds=0.3))))
        return [self.looks[-1][1]]

    def forget(self, *_: Any, **__: Any) -> bool:
        return False


class QuietRegister:
    """A register in which nothing ever changes."""

    def __init__(self, *_: Any) -> None: ...

    def declare(self, *_: Any) -> str:
        return "confirmed"

    def disable_vanished(self, *_: Any) -> list[str]:
        return []

    def survey(self, *_: Any) -> Survey:
        return Survey((), ())

    def revision(self, *_: Any) -> tuple[int, int]:
        return 0, 0

    def in_database(self, *_: Any) -> list[Any]:
        return []


def test_a_machine_ahead_of_the_database_looks_again_when_the_tick_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    EarlyLedger.looks = []
    monkeypatch.setattr(module, "Ledger", EarlyLedger)
    monkeypatch.setattr(module, "Register", QuietRegister)

    def at_once(work: Callable[[Any], Any]) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(None))
        return done

    with scheduler(at_once, schedule(trigger=Every(2))):
        wait_until(lambda: len(EarlyLedger.looks) >= 2, PATIENCE, "a second look at the same tick")

    (first, _), (second, found) = EarlyLedger.looks[:2]
    tick = Every(2).after(first - 2 * SECOND)
    assert found.now is not None
    assert found.now >= tick
    assert second < tick + 2 * SECOND


def test_there_is_one_thread_however_many_schedules() -> None:
    before = threads()

    with scheduler(Unreachable(), *(schedule(f"job {number}") for number in range(50))):
        assert len(threads() - before) == 1


def test_entering_and_leaving_twice_is_harmless() -> None:
    mine = scheduler(Unreachable(), SLOW)
    before = threads()

    with mine:
        with mine:
            assert len(threads() - before) == 1
        assert threads() == before

    assert threads() == before


def test_it_can_be_entered_again(book: Book, database: str) -> None:
    with dispatcher(database) as submit:
        mine = scheduler(submit)
        with mine:
            wait_until(book.told, PATIENCE, "a tick")
        ticks = len(book.told())

        with mine:
            wait_until(lambda: len(book.told()) > ticks, PATIENCE, "a tick of the second round")


def test_work_that_never_ended_does_not_hold_up_the_next_round() -> None:
    submit = Unreachable()
    mine = scheduler(submit, SLOW)

    for _ in range(4):
        submit.futures.clear()
        with mine:
            wait_until(lambda: submit.futures, PATIENCE, "the first look of the round")


def test_leaving_does_not_wait_for_a_database_that_is_gone() -> None:
    submit = Unreachable()
    with scheduler(submit):
        wait_until(lambda: submit.futures, PATIENCE, "work that nobody does")
        begun = clock.monotonic()

    assert clock.monotonic() - begun < module.STOP_TIMEOUT
    assert not any(future.done() for future in submit.futures)


def test_leaving_does_not_wait_for_a_submit_that_hangs(monkeypatch: pytest.MonkeyPatch, logs: list[Any]) -> None:
    monkeypatch.setattr(module, "STOP_TIMEOUT", 0.2)
    hanging, release = threading.Event(), threading.Event()

    def hang(work: Callable[[psycopg.Connection[Any]], Any]) -> Future[Any]:
        hanging.set()
        release.wait(PATIENCE)
        return Future()

    try:
        with scheduler(hang):
            assert hanging.wait(PATIENCE)
        assert named(logs, "scheduler.stop_late")
    finally:
        release.set()


def test_work_that_was_handed_over_before_the_end_does_nothing_after_it(book: Book) -> None:
    handed_over: list[Callable[[psycopg.Connection[Any]], Any]] = []

    def later(work: Callable[[psycopg.Connection[Any]], Any]) -> Future[Any]:
        handed_over.append(work)
        return Future()

    with scheduler(later):
        wait_until(lambda: handed_over, PATIENCE, "work")

    assert [work(book.db) for work in handed_over] == [None] * len(handed_over)
    assert book.db.execute("SELECT count(*) FROM worker.schedule").fetchone() == (0,)


def test_a_stuck_database_does_not_pile_up_work() -> None:
    submit = Unreachable()

    with scheduler(submit):
        start = clock.now()
        wait_until(lambda: clock.now() > start + 4 * SECOND, PATIENCE, "four ticks")

    # One that runs and one that waits, and the same for the heartbeat and the poll.
    assert len(submit.futures) <= 6
