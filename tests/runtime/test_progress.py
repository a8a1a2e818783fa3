"""Progress: what a job says of itself is seen while it runs, even in an open transaction, and after it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from dramatiq import Message
from psycopg import Connection

from tests.factories import column, scalar
from tests.running import WAIT, RunningWorker, outcome, row_id
from tests.waiting import wait_until
from worker import ArgumentError, Context, JobFilter, Jobs, PostgresBroker, job
from worker.queue.progress import Progress, Reports

pytestmark = pytest.mark.usefixtures("worker")

VISIBLE = 15.0


def seen(db: psycopg.Connection, message: Message[Any]) -> tuple[float | None, str | None, int | None]:
    [found] = Jobs(db).find(JobFilter(id=row_id(message)))
    return found.progress, found.progress_note, found.progress_attempt


def wait_seen(db: psycopg.Connection, message: Message[Any], expected: tuple[Any, ...]) -> None:
    wait_until(lambda: seen(db, message) == expected, VISIBLE, f"{expected} to be seen")


@pytest.fixture
def go() -> Any:
    """What jobs of a test wait for; set at its end whatever happens."""
    event = threading.Event()
    yield event
    event.set()


def test_progress_is_seen_while_the_jobs_transaction_is_open(
    broker: PostgresBroker, db: psycopg.Connection, go: threading.Event
) -> None:
    @job(broker=broker)
    def parse(conn: Connection, ctx: Context) -> None:
        ctx.progress(0.4, "parsing")
        go.wait(WAIT)

    message = parse.send()
    wait_seen(db, message, (0.4, "parsing", 1))
    go.set()

    assert outcome(db, message) == "done"


def test_a_coroutine_says_it_too(broker: PostgresBroker, db: psycopg.Connection, go: threading.Event) -> None:
    @job(broker=broker)
    async def parse(ctx: Context) -> None:
        ctx.progress(None, "counting")
        await asyncio.to_thread(go.wait, WAIT)

    message = parse.send()
    wait_seen(db, message, (None, "counting", 1))


@pytest.mark.parametrize("kind", ["with a connection", "without", "with finish", "with following"])
def test_what_a_job_said_last_stays_when_it_is_done(broker: PostgresBroker, db: psycopg.Connection, kind: str) -> None:
    @job(broker=broker)
    def following() -> None: ...

    @job(broker=broker, name="a")
    def connected(conn: Connection, ctx: Context, follow: bool) -> None:
        ctx.progress(0.5)
        ctx.progress(1.0, "12 rows")
        if follow:
            following.send()

    @job(broker=broker, name="b")
    def plain(ctx: Context, finish: bool) -> None:
        ctx.progress(0.5)
        ctx.progress(1.0, "12 rows")
        if finish:
            with ctx.finish():
                pass

    sends: dict[str, Callable[[], Message[Any]]] = {
        "with a connection": lambda: connected.send(False),
        "with following": lambda: connected.send(True),
        "without": lambda: plain.send(False),
        "with finish": lambda: plain.send(True),
    }
    message = sends[kind]()

    assert outcome(db, message) == "done"
    assert seen(db, message) == (1.0, "12 rows", 1)


def test_a_dead_job_tells_how_far_it_was(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, max_retries=0)
    def fails(conn: Connection, ctx: Context) -> None:
        ctx.progress(0.7, "line 700")
        raise ValueError

    message = fails.send()

    assert outcome(db, message) == "dead"
    assert seen(db, message) == (0.7, "line 700", 1)


def test_a_job_that_waits_for_its_retry_tells_how_far_it_was_and_its_next_run_only_its_own(
    broker: PostgresBroker, db: psycopg.Connection, go: threading.Event
) -> None:
    again = threading.Event()

    @job(broker=broker, min_backoff=3_600_000, max_backoff=3_600_000)
    def twice(ctx: Context) -> None:
        if ctx.attempt == 1:
            ctx.progress(0.7, "first")
            raise ValueError
        again.set()
        go.wait(WAIT)
        ctx.progress(0.1, "second")

    message = twice.send()
    query = "SELECT state FROM worker.job WHERE id = %s"
    wait_until(lambda: column(db, query, row_id(message)) == ["scheduled"], WAIT, "the retry")
    assert seen(db, message) == (0.7, "first", 1)
    db.execute("UPDATE worker.job SET due_at = now()")
    db.execute("NOTIFY worker_later")
    assert again.wait(WAIT)

    assert seen(db, message) == (None, None, None)
    go.set()
    outcome(db, message)
    assert seen(db, message) == (0.1, "second", 2)


def test_a_run_that_lost_its_lease_says_nothing_any_more(
    broker: PostgresBroker, db: psycopg.Connection, worker: RunningWorker, go: threading.Event
) -> None:
    begun = threading.Event()

    @job(broker=broker)
    def lost(ctx: Context) -> None:
        begun.set()
        go.wait(WAIT)
        ctx.progress(0.9, "of another")

    message = lost.send()
    assert begun.wait(WAIT)
    db.execute("UPDATE worker.job SET token = token + 1")
    go.set()
    wait_until(lambda: not worker.feed.num_running, WAIT, "the end of the run")
    worker.dispatcher.submit(lambda _: None).result(WAIT)

    assert seen(db, message) == (None, None, None)
    assert column(db, "SELECT note FROM worker.job_progress") == []


def test_a_thousand_words_a_second_are_few_writes(
    broker: PostgresBroker, db: psycopg.Connection, worker: RunningWorker
) -> None:
    """However often the dispatcher comes by."""

    @job(broker=broker)
    def talk(ctx: Context) -> None:
        for n in range(2000):
            ctx.progress(n / 2000)
            if n % 20 == 0:
                worker.dispatcher.submit(lambda _: None).result(WAIT)

    @job(broker=broker)
    def count() -> None: ...

    db.execute("CREATE TABLE written (at timestamptz)")
    db.execute(
        """
        CREATE FUNCTION note_write() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO written VALUES (clock_timestamp()); RETURN NULL; END $$;
        CREATE TRIGGER note_write AFTER INSERT OR UPDATE ON worker.job_progress
        FOR EACH ROW EXECUTE FUNCTION note_write()"""
    )
    message = talk.send()
    outcome(db, message)

    seconds = scalar(
        db, "SELECT extract(epoch FROM finished_at - started_at)::float FROM worker.job_history WHERE id = %s",
        row_id(message),
    )  # fmt: skip
    assert 1 <= scalar(db, "SELECT count(*) FROM written") <= seconds + 2
    assert seen(db, message)[0] == 1999 / 2000


def test_jobs_that_say_nothing_leave_the_table_alone(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker)
    def silent(ctx: Context) -> None: ...

    outcome(db, silent.send())

    assert scalar(db, "SELECT count(*) FROM worker.job_progress") == 0


def test_somebodys_lock_on_what_was_said_holds_no_job_up(
    broker: PostgresBroker, database: str, db: psycopg.Connection, go: threading.Event
) -> None:
    @job(broker=broker)
    def talk(ctx: Context) -> None:
        ctx.progress(0.1)
        go.wait(WAIT)
        ctx.progress(0.2)

    @job(broker=broker)
    def beside() -> None: ...

    message = talk.send()
    wait_seen(db, message, (0.1, None, 1))
    with psycopg.connect(database) as other:
        other.execute("SELECT FROM worker.job_progress FOR UPDATE")
        go.set()

        assert outcome(db, message) == "done"
        assert outcome(db, beside.send()) == "done"


def test_somebodys_lock_on_what_was_said_undoes_no_job(
    broker: PostgresBroker, database: str, db: psycopg.Connection, go: threading.Event
) -> None:
    """The last word of a job with a connection is written in its own transaction."""

    @job(broker=broker, max_retries=0)
    def talk(conn: psycopg.Connection, ctx: Context) -> None:
        ctx.progress(0.1)
        go.wait(WAIT)
        ctx.progress(1.0)
        conn.execute("SELECT 1")

    message = talk.send()
    wait_seen(db, message, (0.1, None, 1))
    with psycopg.connect(database) as other:
        other.execute("SELECT FROM worker.job_progress FOR UPDATE")
        go.set()

        assert outcome(db, message) == "done"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((1.5,), "expected a number from 0 to 1"),
        ((-0.1,), "expected a number from 0 to 1"),
        ((float("nan"),), "expected a number from 0 to 1"),
        (("half",), "expected a number from 0 to 1"),
        ((True,), "expected a number from 0 to 1"),
        ((0.5, 42), "the note is a int, expected text"),
        ((0.5, "x" * 501), "the note has 501 characters, expected at most 500"),
        ((0.5, "a\0b"), r"the note holds the character U\+0000"),
        ((0.5, "a\ud800b"), "the note holds half a character"),
    ],
)
def test_progress_that_cannot_be_stored_is_refused_where_it_is_said(
    broker: PostgresBroker, db: psycopg.Connection, arguments: Any, reason: str
) -> None:
    refused: list[str] = []

    @job(broker=broker, max_retries=0)
    def wrong(ctx: Context) -> None:
        with pytest.raises(ArgumentError, match=reason) as exc_info:
            ctx.progress(*arguments)
        refused.append(str(exc_info.value))

    assert outcome(db, wrong.send()) == "done"
    assert refused[0].startswith("job 'wrong': ctx.progress(")


def test_a_context_made_by_hand_takes_progress_and_forgets_it() -> None:
    context = Context(job_id=uuid4(), actor="a", queue="q", attempt=1, options={})

    context.progress(0.5, "testing")

    assert context.stopping is None


# The dispatcher's books


def proof() -> tuple[UUID, int]:
    return uuid4(), 1


def test_what_was_written_is_not_written_again() -> None:
    reports, mine = Reports(), proof()
    reports.say(mine, Progress(0.5, None))
    taken = reports.take({mine}, ())
    reports.confirm(taken, {mine[0]})

    assert taken == [(mine, Progress(0.5, None))]
    assert reports.take({mine}, {mine}) == []


def test_what_was_not_written_is_tried_again() -> None:
    reports, mine = Reports(), proof()
    reports.say(mine, Progress(0.5, None))
    reports.confirm(reports.take({mine}, ()), set())

    assert reports.take({mine}, ()) == []  # within the same second
    assert reports.take({mine}, {mine}) == [(mine, Progress(0.5, None))]


def test_nothing_is_kept_of_a_run_that_is_over() -> None:
    reports, mine, other = Reports(), proof(), proof()
    for each in (mine, other):
        reports.say(each, Progress(0.5, None))
    taken = reports.take({mine, other}, ())
    reports.forget(mine)
    reports.confirm(taken, {mine[0], other[0]})
    reports.say(mine, Progress(0.6, "late, from a thread that was left"))
    reports.take((), ())

    assert (reports._said, reports._written) == ({}, {})
