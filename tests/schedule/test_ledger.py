"""One tick, one decision: the ledger against a real Postgres, at instants that the tests name."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.schedule.standins import Book, enqueue, schedule
from worker.schedule.declaration import Missed, Overlap, Schedule
from worker.schedule.rows import ABANDONED_AFTER
from worker.schedule.sending import Firing
from worker.schedule.trigger import Every

NOON = datetime(2026, 3, 31, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
MICROSECOND = timedelta(microseconds=1)


def test_a_due_tick_fires_its_job(book: Book) -> None:
    book.declare(schedule(), NOON - SECOND)

    done = book.advance(schedule(), NOON)

    assert book.told() == [("12:00:00", "fired", None)]
    assert [entry.job_id for entry in done.entries] == book.job_ids()


def test_the_ledger_row_says_when_how_late_and_which_job(book: Book) -> None:
    book.declare(schedule(), NOON - SECOND)

    book.advance(schedule(), NOON + 2 * SECOND)

    row = book.db.execute("SELECT tick, lateness, job_id FROM worker.tick").fetchone()
    assert row == (NOON, 2.0, book.job_ids()[0])


def test_a_second_look_at_the_same_tick_finds_nothing(book: Book) -> None:
    book.declare(schedule(), NOON - SECOND)
    book.advance(schedule(), NOON)

    assert book.advance(schedule(), NOON).entries == ()

    assert len(book.job_ids()) == 1


def test_no_tick_fires_before_its_time_by_the_databases_clock(book: Book) -> None:
    book.declare(schedule(), NOON - SECOND)

    done = book.advance(schedule(), NOON - timedelta(microseconds=1))

    assert (done.now, done.entries, book.job_ids()) == (NOON - timedelta(microseconds=1), (), [])


def test_the_databases_clock_is_the_one_that_runs_during_the_transaction(book: Book) -> None:
    with book.db.transaction():
        begun = _one(book.db, "SELECT now()")
        book.register.declare(book.db, schedule())
        done = book.ledger.advance(book.db, schedule())

    assert done.now is not None
    assert done.now > begun


def test_a_new_schedule_does_not_fire_its_past(book: Book) -> None:
    assert book.declare(schedule(missed="all", grace=864000.0), NOON) == "added"

    assert book.advance(schedule(missed="all", grace=864000.0), NOON).entries == ()


def test_a_schedule_that_is_not_declared_fires_nothing(book: Book) -> None:
    assert book.advance(schedule(), NOON).refused == "locked"


def test_declaring_again_changes_nothing(book: Book) -> None:
    book.declare(schedule(), NOON - SECOND)
    book.advance(schedule(), NOON)

    assert book.declare(schedule(), NOON + 5 * MINUTE) == "confirmed"

    assert _one(book.db, "SELECT last_tick FROM worker.schedule") == NOON


def test_a_tick_that_another_process_failed_to_decide_is_not_stepped_over(book: Book) -> None:
    book.declare(schedule(missed="all"), NOON - SECOND)

    book.advance(schedule(missed="all"), NOON + MINUTE)

    assert book.told() == [("12:00:00", "late", None), ("12:01:00", "fired", None)]


@pytest.mark.parametrize(
    ("missed", "outcomes", "jobs"),
    [
        ("skip", ["skipped", "skipped", "skipped"], 0),
        ("last", ["coalesced", "coalesced", "late"], 1),
        ("all", ["late", "late", "late"], 3),
    ],
)
def test_ticks_of_a_downtime_follow_the_policy(book: Book, missed: Missed, outcomes: list[str], jobs: int) -> None:
    book.declare(schedule(missed=missed), NOON - SECOND)

    book.advance(schedule(missed=missed), NOON + 2 * MINUTE + 20 * SECOND)

    assert [outcome for _, outcome, _ in book.told()] == outcomes
    assert len(book.job_ids()) == jobs


@pytest.mark.parametrize("missed", ["skip", "last", "all"])
def test_ticks_past_their_grace_fire_under_no_policy(book: Book, missed: Missed) -> None:
    hourly = schedule(missed=missed, trigger=Every(3600), grace=60.0)
    book.declare(hourly, NOON - SECOND)

    book.advance(hourly, NOON + 2 * MINUTE)

    assert (book.told(), book.job_ids()) == ([("12:00:00", "skipped", "grace")], [])


def test_a_coalesced_tick_names_the_one_that_made_up_for_it(book: Book) -> None:
    book.declare(schedule(), NOON - SECOND)

    book.advance(schedule(), NOON + MINUTE + 20 * SECOND)

    assert _one(book.db, "SELECT coalesced_into FROM worker.tick WHERE outcome = 'coalesced'") == NOON + MINUTE


def test_a_row_that_stands_for_many_ticks_loses_none(book: Book) -> None:
    fast = schedule(trigger=Every(1), grace=0.0, missed="all")
    book.declare(fast, NOON - timedelta(hours=1))

    book.advance(fast, NOON)

    first, last, until = _row(
        book.db, "SELECT min(tick), max(tick), max(until) FROM worker.tick WHERE reason = 'grace'"
    )
    fired = _row(book.db, "SELECT min(tick), max(tick), count(*) FROM worker.tick WHERE outcome = 'fired'")
    assert (first, last) == (NOON - 3599 * SECOND, NOON - 3599 * SECOND)
    assert fired == (until, NOON, 16)
    assert len(book.told()) == 17


def test_after_a_row_that_stands_for_a_pause_the_next_tick_is_the_next_row(book: Book) -> None:
    fast = schedule(trigger=Every(1))
    book.declare(fast, NOON - timedelta(hours=1))
    book.ledger.pause(book.db, "purge", now=NOON - timedelta(hours=1))
    book.advance(fast, NOON - timedelta(microseconds=1))

    again = book.advance(fast, NOON)

    assert [(entry.tick, entry.reason) for entry in again.entries] == [(NOON, "paused")]


@pytest.mark.parametrize(
    ("overlap", "outcomes"),
    [
        ("allow", ["fired", "fired", "fired"]),
        ("skip", ["fired", "skipped", "skipped"]),
        ("queue_one", ["fired", "fired", "skipped"]),
    ],
)
def test_while_earlier_jobs_live_the_overlap_policy_decides(book: Book, overlap: Overlap, outcomes: list[str]) -> None:
    mine = schedule(overlap=overlap)
    book.declare(mine, NOON - SECOND)

    for minute in range(3):
        book.advance(mine, NOON + minute * MINUTE)

    assert [outcome for _, outcome, _ in book.told()] == outcomes
    assert {reason for _, outcome, reason in book.told() if outcome == "skipped"} <= {"overlap"}


@pytest.mark.parametrize("overlap", ["skip", "queue_one"])
def test_once_its_jobs_finished_a_schedule_fires_again(book: Book, overlap: Overlap) -> None:
    mine = schedule(overlap=overlap)
    book.declare(mine, NOON - SECOND)
    book.advance(mine, NOON)
    book.advance(mine, NOON + MINUTE)

    book.finish_jobs()
    book.advance(mine, NOON + 2 * MINUTE)

    assert book.told()[-1] == ("12:02:00", "fired", None)


def test_a_job_that_lives_long_is_not_forgotten_behind_its_successors(book: Book) -> None:
    mine = schedule(overlap="queue_one")
    book.declare(mine, NOON - SECOND)
    book.advance(mine, NOON)
    (retrying,) = book.job_ids()
    for minute in range(1, 4):
        book.advance(mine, NOON + minute * MINUTE)
        book.db.execute("DELETE FROM worker.job WHERE id <> %s", [retrying])
    book.advance(mine, NOON + 4 * MINUTE)

    book.advance(mine, NOON + 5 * MINUTE)

    assert [reason for _, _, reason in book.told()] == [None] * 5 + ["overlap"]


def test_jobs_sent_under_allow_count_after_the_policy_changed(book: Book) -> None:
    book.declare(schedule(overlap="allow"), NOON - SECOND)
    book.advance(schedule(overlap="allow"), NOON)

    book.declare(schedule(overlap="skip"), NOON + SECOND)
    book.advance(schedule(overlap="skip"), NOON + MINUTE)

    assert book.told()[-1] == ("12:01:00", "skipped", "overlap")


def test_jobs_of_other_schedules_do_not_overlap(book: Book) -> None:
    for name in ("first", "second"):
        book.declare(schedule(name, overlap="skip"), NOON - SECOND)
        book.advance(schedule(name, overlap="skip"), NOON)

    assert len(book.job_ids()) == 2


def test_a_paused_schedule_skips_and_says_so(book: Book) -> None:
    book.declare(schedule(), NOON - SECOND)

    assert book.ledger.pause(book.db, "purge")
    book.advance(schedule(), NOON)

    assert (book.told(), book.job_ids()) == ([("12:00:00", "skipped", "paused")], [])


def test_a_resumed_schedule_fires_from_its_next_tick_on(book: Book) -> None:
    book.declare(schedule(missed="all"), NOON - SECOND)
    book.ledger.pause(book.db, "purge", now=NOON - SECOND)

    assert book.ledger.resume(book.db, "purge", now=NOON + 90 * SECOND)
    book.advance(schedule(missed="all"), NOON + 2 * MINUTE)

    # No process looked during the pause: resuming says what became of its ticks.
    assert book.told() == [
        ("12:00:00", "skipped", "paused"),
        ("12:01:00", "skipped", "paused"),
        ("12:02:00", "fired", None),
    ]


def test_resuming_what_runs_does_not_drop_its_due_ticks(book: Book) -> None:
    book.declare(schedule(), NOON - SECOND)

    assert not book.ledger.resume(book.db, "purge", now=NOON + SECOND)
    book.advance(schedule(), NOON + SECOND)

    assert book.told() == [("12:00:00", "fired", None)]


def test_pausing_an_unknown_schedule_says_so(book: Book) -> None:
    assert not book.ledger.pause(book.db, "purge")


@pytest.mark.parametrize(
    "other",
    [
        schedule(spec="every 30 seconds", trigger=Every(30)),
        schedule(tz="Europe/Berlin"),
        schedule(actor_name="purge_all"),
        schedule(missed="all"),
        schedule(overlap="skip"),
        schedule(grace=1.0),
    ],
    ids=["spec", "tz", "actor", "missed", "overlap", "grace"],
)
def test_an_old_process_with_other_terms_cannot_fire(book: Book, other: Schedule) -> None:
    book.declare(schedule(), NOON - 2 * SECOND)
    book.declare(other, NOON - SECOND)

    assert book.advance(schedule(), NOON).refused == "stale"

    assert (book.told(), book.job_ids()) == ([], [])


def test_a_changed_spec_begins_when_it_is_declared(book: Book) -> None:
    changed = schedule(spec="every 30 seconds", trigger=Every(30), missed="all")
    book.declare(schedule(missed="all"), NOON - timedelta(days=5))

    assert book.declare(changed, NOON - SECOND) == "changed"
    book.advance(changed, NOON)

    # One row for the 7,200 ticks that were due by the old spec.
    assert book.told() == [("12:01:00", "skipped", "changed"), ("12:00:00", "fired", None)]
    assert _one(book.db, "SELECT until FROM worker.tick WHERE reason = 'changed'") == NOON - SECOND + MICROSECOND


def test_ticks_of_an_old_spec_that_nobody_decided_have_rows(book: Book) -> None:
    changed = schedule(spec="every 3600 seconds", trigger=Every(3600))
    book.declare(schedule(), NOON - SECOND)

    book.declare(changed, NOON + 90 * SECOND)

    assert book.told() == [("12:00:00", "skipped", "changed"), ("12:01:00", "skipped", "changed")]


def test_a_changed_policy_still_makes_up_for_what_was_missed(book: Book) -> None:
    book.declare(schedule(missed="skip"), NOON - SECOND)

    assert book.declare(schedule(missed="all"), NOON + 50 * SECOND) == "changed"
    book.advance(schedule(missed="all"), NOON + 50 * SECOND)

    assert book.told() == [("12:00:00", "late", None)]


def test_a_changed_spec_still_knows_the_jobs_that_live(book: Book) -> None:
    changed = schedule(spec="every 30 seconds", trigger=Every(30), overlap="skip")
    book.declare(schedule(overlap="skip"), NOON - SECOND)
    book.advance(schedule(overlap="skip"), NOON)

    book.declare(changed, NOON + SECOND)
    book.advance(changed, NOON + 30 * SECOND)

    assert book.told()[-1] == ("12:00:30", "skipped", "overlap")


def test_a_survey_finds_what_is_due_and_what_is_not_declared(book: Book) -> None:
    due, quiet, new = schedule("due"), schedule("quiet", trigger=Every(3600)), schedule("new")
    book.declare(due, NOON + SECOND)
    book.declare(quiet, NOON + SECOND)

    found = book.survey([due, quiet, new], NOON + MINUTE)

    assert ([s.name for s in found.due], [s.name for s in found.orphaned]) == (["due"], ["new"])


def test_terms_that_are_alive_are_not_taken_over(book: Book) -> None:
    old, new = schedule(), schedule(spec="every 30 seconds", trigger=Every(30))
    book.declare(new, NOON)

    late = NOON + (ABANDONED_AFTER - 1) * SECOND

    assert book.survey([old], late).orphaned == ()
    assert book.declare(old, late, takeover=True) == "confirmed"
    assert book.advance(new, late + MINUTE).refused is None


def test_surveys_keep_terms_alive(book: Book) -> None:
    old, new = schedule(), schedule(spec="every 30 seconds", trigger=Every(30))
    book.declare(new, NOON)

    for seconds in range(10, 100, 10):
        book.survey([new], NOON + seconds * SECOND)

    assert book.survey([old], NOON + 100 * SECOND).orphaned == ()


def test_abandoned_terms_are_taken_over_from_when_they_were_last_alive(book: Book) -> None:
    # The old deploy restarted after the new one and went away: the new one must not wait for its own restart.
    old, new = schedule(spec="every 3600 seconds", trigger=Every(3600)), schedule(missed="all")
    book.declare(new, NOON - 10 * MINUTE)
    book.declare(old, NOON - SECOND)
    later = NOON + (ABANDONED_AFTER + 1) * SECOND

    assert [s.name for s in book.survey([new], later).orphaned] == ["purge"]
    assert book.declare(new, later, takeover=True) == "changed"
    book.advance(new, later)

    assert book.told()[-2:] == [("11:59:00", "skipped", "changed"), ("12:00:00", "late", None)]


def test_a_job_that_cannot_be_enqueued_leaves_its_tick_undecided(book: Book) -> None:
    def refuse(conn: psycopg.Connection[Any], firings: Sequence[Firing]) -> list[UUID | Exception]:
        enqueue(conn, firings)
        raise RuntimeError("no such queue")

    book.declare(schedule(), NOON - SECOND)
    with pytest.raises(RuntimeError, match="no such queue"):
        Book(book.db, refuse).advance(schedule(), NOON)
    left_behind = (book.told(), book.job_ids())

    book.advance(schedule(), NOON + SECOND)

    assert left_behind == ([], [])
    assert book.told() == [("12:00:00", "fired", None)]


def test_a_tick_in_the_ledger_is_not_fired_again_whatever_last_tick_says(book: Book) -> None:
    book.declare(schedule(), NOON - SECOND)
    book.advance(schedule(), NOON)
    book.db.execute("UPDATE worker.schedule SET last_tick = last_tick - interval '1 second'")

    book.advance(schedule(), NOON)

    assert len(book.job_ids()) == 1


def test_a_writer_without_the_lock_cannot_make_a_second_job_of_a_tick(book: Book, database: str) -> None:
    def enqueue_too_late(conn: psycopg.Connection[Any], firings: Sequence[Firing]) -> list[UUID | Exception]:
        with psycopg.connect(database, autocommit=True) as other:
            other.execute(
                """
                INSERT INTO worker.tick (schedule, tick, outcome, lateness, reason)
                VALUES (%s, %s, 'skipped', 0, 'grace')""",
                [firings[0].schedule.name, firings[0].tick],
            )
        return enqueue(conn, firings)

    book.declare(schedule(), NOON - SECOND)

    with pytest.raises(psycopg.errors.UniqueViolation, match="tick_once"):
        Book(book.db, enqueue_too_late).advance(schedule(), NOON)

    assert book.job_ids() == []


def _row(db: psycopg.Connection[Any], query: Any) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = db.execute(query).fetchone()
    assert row is not None
    return row


def _one(db: psycopg.Connection[Any], query: Any) -> Any:
    return _row(db, query)[0]
