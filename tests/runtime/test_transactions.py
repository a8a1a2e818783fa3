"""A job's transaction: it ends as the worker ends it, whatever the job does to it, and its effect counts once."""

from __future__ import annotations

import threading
from contextlib import ExitStack, suppress
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection, Connection
from structlog.testing import capture_logs

from tests.factories import backend_pid, column, scalar, terminate
from tests.running import WAIT, RunningWorker, attempts, error, outcome, row_id, waiting_row
from tests.waiting import wait_until
from worker import ArgumentError, Context, Pool, PostgresBroker, job
from worker.queue import job_transaction
from worker.runtime.execution import Execution

pytestmark = pytest.mark.usefixtures("worker", "note")

NOTES = "SELECT word FROM note ORDER BY word"


class Once:
    """A job's misfortune: true for the first run only, as the process that meets it again is another in real life."""

    def __init__(self) -> None:
        self._left = [True]

    def __call__(self) -> bool:
        return bool(self._left and self._left.pop())


# What a job can do to its transaction


def test_an_sql_error_that_a_job_swallowed_fails_it(broker: PostgresBroker, db: psycopg.Connection) -> None:
    """COMMIT of a failed transaction is a silent ROLLBACK, so the job would be done and its writes gone."""

    @job(broker=broker, max_retries=0)
    def careless(conn: Connection) -> None:
        conn.execute("INSERT INTO note VALUES ('before')")
        with suppress(psycopg.Error):
            conn.execute("SELECT 1/0")

    message = careless.send()

    assert outcome(db, message) == "dead"
    assert "the job went on after an SQL error in its transaction: use a savepoint" in error(db, message)


def test_an_sql_error_that_an_async_job_swallowed_fails_it(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, max_retries=0)
    async def careless(conn: AsyncConnection) -> None:
        with suppress(psycopg.Error):
            await conn.execute("SELECT 1/0")

    assert outcome(db, careless.send()) == "dead"


def test_nothing_of_a_job_that_swallowed_an_sql_error_is_committed(
    broker: PostgresBroker, db: psycopg.Connection
) -> None:
    @job(broker=broker)
    def receipt() -> None: ...

    @job(broker=broker, max_retries=0)
    def careless(conn: Connection) -> None:
        conn.execute("INSERT INTO note VALUES ('before')")
        receipt.send_with_options(delay=3_600_000)
        with suppress(psycopg.Error):
            conn.execute("SELECT 1/0")

    outcome(db, careless.send())

    assert (column(db, NOTES), scalar(db, "SELECT count(*) FROM worker.job")) == ([], 0)


def test_a_job_that_swallowed_an_sql_error_is_retried(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, min_backoff=1, max_backoff=1)
    def careless(conn: Connection, ctx: Context) -> None:
        conn.execute("INSERT INTO note VALUES (%s)", [str(ctx.attempt)])
        with suppress(psycopg.Error):
            conn.execute("SELECT 1/%s", [ctx.attempt - 1])

    assert outcome(db, careless.send()) == "done"
    assert column(db, NOTES) == ["2"]


def test_an_error_within_a_savepoint_is_the_jobs_own_business(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, max_retries=0)
    def careful(conn: Connection) -> None:
        conn.execute("INSERT INTO note VALUES ('before')")
        try:
            with conn.transaction():
                conn.execute("INSERT INTO note VALUES ('within')")
                conn.execute("SELECT 1/0")
        except psycopg.errors.DivisionByZero:
            conn.execute("INSERT INTO note VALUES ('after')")

    assert outcome(db, careful.send()) == "done"
    assert column(db, NOTES) == ["after", "before"]


@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK"])
def test_a_job_that_ends_its_transaction_by_sql_has_failed(
    broker: PostgresBroker, db: psycopg.Connection, statement: str
) -> None:
    @job(broker=broker, max_retries=0)
    def meddle(conn: Connection) -> None:
        conn.execute(statement.encode())

    message = meddle.send()

    assert outcome(db, message) == "dead"
    assert "TransactionEnded: the job ended its own transaction" in error(db, message)


@pytest.mark.parametrize("how", ["commit", "rollback"])
def test_a_job_may_not_end_its_transaction_by_method(broker: PostgresBroker, db: psycopg.Connection, how: str) -> None:
    @job(broker=broker, max_retries=0)
    def meddle(conn: Connection) -> None:
        conn.execute("INSERT INTO note VALUES ('before')")
        getattr(conn, how)()

    message = meddle.send()

    assert outcome(db, message) == "dead"
    assert f"Explicit {how}() forbidden within a Transaction context" in error(db, message)
    assert column(db, NOTES) == []


@pytest.mark.parametrize("how", ["commit", "rollback"])
def test_an_async_job_may_not_end_its_transaction_by_method(
    broker: PostgresBroker, db: psycopg.Connection, how: str
) -> None:
    @job(broker=broker, max_retries=0)
    async def meddle(conn: AsyncConnection) -> None:
        await conn.execute("INSERT INTO note VALUES ('before')")
        await getattr(conn, how)()

    outcome(db, meddle.send())

    assert column(db, NOTES) == []


def test_a_job_that_closes_its_connection_has_failed(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, max_retries=0)
    def meddle(conn: Connection) -> None:
        conn.execute("INSERT INTO note VALUES ('before')")
        conn.close()

    message = meddle.send()

    assert outcome(db, message) == "dead"
    assert "closed its connection: leave both to the worker" in error(db, message)


def test_a_connection_that_a_job_closed_is_missed_by_no_other(
    broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    @job(broker=broker, max_retries=0)
    def meddle(conn: Connection) -> None:
        conn.close()

    @job(broker=broker)
    def write(conn: Connection) -> None:
        conn.execute("INSERT INTO note VALUES ('hello')")

    for message in [meddle.send() for _ in range(6)]:
        outcome(db, message)

    assert [outcome(db, message) for message in [write.send(), write.send(), write.send()]] == ["done"] * 3


# COMMIT that fails


@pytest.fixture
def unique_note(note: None, db: psycopg.Connection) -> None:
    db.execute("ALTER TABLE note ADD CONSTRAINT once UNIQUE (word) DEFERRABLE INITIALLY DEFERRED")
    db.execute("INSERT INTO note VALUES ('taken')")


@pytest.mark.usefixtures("unique_note")
def test_a_job_whose_commit_is_refused_is_retried(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, min_backoff=1, max_backoff=1)
    def write(conn: Connection, ctx: Context) -> None:
        conn.execute("INSERT INTO note VALUES (%s)", ["taken" if ctx.attempt < 3 else "free"])

    message = write.send()

    assert outcome(db, message) == "done"
    assert (attempts(db, message), column(db, NOTES)) == (3, ["free", "taken"])


@pytest.mark.usefixtures("unique_note")
def test_a_job_whose_commit_is_refused_at_every_attempt_is_dead(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, max_retries=2, min_backoff=1, max_backoff=1)
    def write(conn: Connection) -> None:
        conn.execute("INSERT INTO note VALUES ('taken')")

    message = write.send()

    assert outcome(db, message) == "dead"
    assert attempts(db, message) == 3
    assert 'violates unique constraint "once"' in error(db, message)


@pytest.mark.usefixtures("unique_note")
def test_what_a_job_whose_commit_was_refused_sent_is_not_sent(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker)
    def receipt() -> None: ...

    @job(broker=broker, max_retries=0)
    def write(conn: Connection) -> None:
        conn.execute("INSERT INTO note VALUES ('taken')")
        receipt.send_with_options(delay=3_600_000)

    outcome(db, write.send())

    assert scalar(db, "SELECT count(*) FROM worker.job") == 0


@pytest.mark.usefixtures("unique_note")
def test_a_refused_commit_is_logged_with_its_reason(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, max_retries=0)
    def write(conn: Connection) -> None:
        conn.execute("INSERT INTO note VALUES ('taken')")

    with capture_logs() as logs:
        outcome(db, write.send())
        dead = wait_until(lambda: [line for line in logs if line["event"] == "job.dead"], WAIT, "the line")

    assert 'violates unique constraint "once"' in dead[0]["error"]


def test_a_commit_waits_only_so_long_for_somebodys_lock_on_its_job(
    broker: PostgresBroker, database: str, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_transaction, "_LIMITS", "SET LOCAL lock_timeout = '100ms'")
    running, locked = threading.Event(), threading.Event()

    @job(broker=broker, max_retries=0)
    def write(conn: Connection) -> None:
        running.set()
        assert locked.wait(WAIT)

    message = write.send()
    assert running.wait(WAIT)
    with psycopg.connect(database) as holder:
        holder.execute("SELECT FROM worker.job FOR UPDATE")
        with capture_logs() as logs:
            locked.set()
            told = wait_until(lambda: [line for line in logs if line["event"] == "job.dead"], WAIT, "the end")

    assert "lock timeout" in told[0]["error"]
    assert outcome(db, message) == "dead"


def test_a_commit_takes_only_so_long(
    broker: PostgresBroker, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deferred constraint runs within it, when the job's own timeout is over."""
    monkeypatch.setattr(job_transaction, "_LIMITS", "SET LOCAL statement_timeout = '100ms'")
    db.execute(
        """
        CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_sleep(600);
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER late AFTER INSERT ON note
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION dawdle()
        """
    )

    @job(broker=broker, max_retries=0)
    def write(conn: Connection) -> None:
        conn.execute("INSERT INTO note VALUES ('hello')")

    message = write.send()

    assert outcome(db, message) == "dead"
    assert "statement timeout" in error(db, message)


def test_the_limits_of_a_commit_are_set_by_default(broker: PostgresBroker, db: psycopg.Connection) -> None:
    db.execute(
        """
        CREATE TABLE seen (lock_timeout text, statement_timeout text);
        CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO seen VALUES (current_setting('lock_timeout'), current_setting('statement_timeout'));
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER late AFTER INSERT ON note
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION look()
        """
    )

    @job(broker=broker)
    def write(conn: Connection) -> None:
        conn.execute("SET LOCAL lock_timeout = 0")
        conn.execute("INSERT INTO note VALUES ('hello')")

    outcome(db, write.send())

    assert db.execute("SELECT * FROM seen").fetchall() == [("5s", "10s")]


def test_a_commit_that_finds_no_partition_for_today_costs_the_job_nothing(
    broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    @job(broker=broker, max_retries=0)
    def write(conn: Connection) -> None:
        conn.execute("INSERT INTO note VALUES ('hello')")

    for _ in range(2):  # the second in another pass than the first, and between them it has kept house
        worker.dispatcher.submit(lambda conn: None).result(WAIT)
    for name in column(db, "SELECT inhrelid::regclass::text FROM pg_inherits"):
        if "job_history_2" in name and "_id_" not in name:
            db.execute(f"DROP TABLE {name}".encode())

    message = write.send()

    assert outcome(db, message) == "done"
    assert (attempts(db, message), column(db, NOTES)) == (1, ["hello"])


@pytest.mark.parametrize("forget", ["DEALLOCATE ALL", "DISCARD PLANS", "CREATE TEMP TABLE t (); DROP TABLE t"])
def test_what_jobs_do_to_prepared_statements_spoils_no_commit(
    broker: PostgresBroker, db: psycopg.Connection, forget: str
) -> None:
    @job(broker=broker, max_retries=0)
    def write(conn: Connection, number: int) -> None:
        if number % 2:
            conn.execute("INSERT INTO note VALUES (%s)", ["hello"], prepare=True)
        if number % 3 == 0:
            for statement in forget.split("; "):
                conn.execute(statement.encode())
        if number == 7:
            raise ZeroDivisionError

    outcomes = [outcome(db, write.send(number)) for number in range(12)]

    assert outcomes == ["dead" if number == 7 else "done" for number in range(12)]


# What costs no attempt


REFUSED = {"serialization failure": "40001", "deadlock": "40P01", "read-only server": "25006", "disk full": "53100"}


@pytest.mark.parametrize("state", REFUSED.values(), ids=REFUSED.keys())
def test_a_conflict_or_a_server_that_takes_no_writes_costs_no_attempt(
    broker: PostgresBroker, db: psycopg.Connection, state: str
) -> None:
    first = Once()

    @job(broker=broker, max_retries=0)
    def write(conn: Connection) -> None:
        conn.execute("INSERT INTO note VALUES ('hello')")
        if first():
            conn.execute(f"DO $$ BEGIN RAISE EXCEPTION 'conflict' USING ERRCODE = '{state}'; END $$".encode())

    message = write.send()

    assert outcome(db, message) == "done"
    assert (attempts(db, message), column(db, NOTES)) == (1, ["hello"])


def test_a_conflict_that_shows_at_commit_costs_no_attempt(broker: PostgresBroker, db: psycopg.Connection) -> None:
    db.execute(
        """
        CREATE SEQUENCE runs;
        CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF nextval('runs') = 1 THEN
                RAISE EXCEPTION 'conflict' USING ERRCODE = '40001';
            END IF;
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER late AFTER INSERT ON note
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION conflict()
        """
    )

    @job(broker=broker, max_retries=0)
    def write(conn: Connection) -> None:
        conn.execute("INSERT INTO note VALUES ('hello')")

    message = write.send()

    assert outcome(db, message) == "done"
    assert (attempts(db, message), column(db, NOTES)) == (1, ["hello"])


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_connection_killed_under_a_job_costs_no_attempt(
    broker: PostgresBroker, db: psycopg.Connection, kind: str
) -> None:
    first = Once()

    @job(broker=broker, max_retries=0)
    def write(conn: Connection) -> None:
        if first():
            terminate(db, backend_pid(conn))
        conn.execute("INSERT INTO note VALUES ('hello')")

    @job(broker=broker, max_retries=0)
    async def write_async(conn: AsyncConnection) -> None:
        if first():
            terminate(db, conn.info.backend_pid)
        await conn.execute("INSERT INTO note VALUES ('hello')")

    message = write.send() if kind == "def" else write_async.send()

    assert outcome(db, message) == "done"
    assert (attempts(db, message), column(db, NOTES)) == (1, ["hello"])


def test_a_connection_killed_just_before_the_commit_costs_no_attempt(
    broker: PostgresBroker, db: psycopg.Connection
) -> None:
    first = Once()

    @job(broker=broker, max_retries=0)
    def write(conn: Connection) -> None:
        conn.execute("INSERT INTO note VALUES ('hello')")
        if first():
            terminate(db, backend_pid(conn))

    message = write.send()

    assert outcome(db, message) == "done"
    assert (attempts(db, message), column(db, NOTES)) == (1, ["hello"])


def test_a_connection_killed_under_a_job_that_took_it_from_the_pool_costs_no_attempt(
    broker: PostgresBroker, db: psycopg.Connection
) -> None:
    first = Once()

    @job(broker=broker, max_retries=0)
    def write(pool: Pool) -> None:
        with pool.connection() as conn:
            if first():
                terminate(db, backend_pid(conn))
            conn.execute("INSERT INTO note VALUES ('hello')")

    message = write.send()

    assert outcome(db, message) == "done"
    assert (attempts(db, message), column(db, NOTES)) == (1, ["hello"])


def test_a_pool_that_a_job_exhausts_by_itself_costs_an_attempt(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, max_retries=0)
    def hoard(pool: Pool) -> None:
        with ExitStack() as stack:
            while True:
                stack.enter_context(pool.connection(timeout=0.1))

    assert outcome(db, hoard.send()) == "dead"


def test_a_connection_is_back_at_once_when_the_runner_itself_fails(
    broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def fail(*_: object) -> None:
        failed.set()
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(Execution, "conclude", fail)

    @job(broker=broker)
    def write(conn: Connection) -> None:
        conn.execute("INSERT INTO note VALUES ('hello')")

    write.send()
    assert failed.wait(WAIT)
    wait_until(worker.feed.idle.is_set, WAIT, "the end of the run")

    assert (worker.pool.num_out, column(db, NOTES)) == (0, [])


# The fence


def test_a_job_that_lost_its_lease_writes_nothing(broker: PostgresBroker, db: psycopg.Connection) -> None:
    running, enough, first = threading.Event(), threading.Event(), Once()

    @job(broker=broker)
    def write(conn: Connection, ctx: Context) -> None:
        conn.execute("INSERT INTO note VALUES (%s)", ["lost" if first() else "kept"])
        running.set()
        assert enough.wait(WAIT)

    message = write.send()
    assert running.wait(WAIT)
    taken_over(db, message)
    enough.set()

    wait_until(lambda: column(db, NOTES) == ["kept"], WAIT, "the note of the delivery that owns the job")


def test_a_job_whose_lease_was_lost_at_commit_is_not_called_done(
    broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    running, enough = threading.Event(), threading.Event()

    @job(broker=broker)
    def write(conn: Connection) -> None:
        running.set()
        assert enough.wait(WAIT)

    write.send()
    assert running.wait(WAIT)
    db.execute("UPDATE worker.job SET token = token + 1")
    with capture_logs() as logs:
        enough.set()
        wait_until(worker.feed.idle.is_set, WAIT, "the end of the run")

    events = [line["event"] for line in logs if line["event"].startswith("job.")]
    assert events == ["job.lease_lost"]


def test_two_runs_of_one_job_in_one_process_keep_apart(
    broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    """The first has lost its lease and does not know; what its end reclaims must not be the second's connection."""
    first, at_work, enough = Once(), [threading.Event(), threading.Event()], [threading.Event(), threading.Event()]

    @job(broker=broker, max_retries=0)
    def write(conn: Connection, ctx: Context) -> None:
        run = 0 if first() else 1
        conn.execute("INSERT INTO note VALUES (%s)", [f"run {run}"])
        at_work[run].set()
        assert enough[run].wait(WAIT)
        conn.execute("INSERT INTO note VALUES (%s)", [f"run {run} again"])

    message = write.send()
    assert at_work[0].wait(WAIT)
    taken_over(db, message)
    assert at_work[1].wait(WAIT)
    enough[0].set()
    wait_until(lambda: worker.feed.num_running == 1, WAIT, "the end of the first run")
    held = worker.pool.num_out
    enough[1].set()

    assert outcome(db, message) == "done"
    assert (held, column(db, NOTES)) == (1, ["run 1", "run 1 again"])


def test_a_job_without_connection_that_lost_its_lease_settles_nothing(
    broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    running, enough = threading.Event(), threading.Event()

    @job(broker=broker)
    def wait() -> None:
        running.set()
        assert enough.wait(WAIT)

    message = wait.send()
    assert running.wait(WAIT)
    db.execute("UPDATE worker.job SET token = token + 1")
    enough.set()
    wait_until(lambda: worker.feed.idle.is_set() and not worker.dispatcher.num_outstanding, WAIT, "the end of the run")

    assert column(db, "SELECT id FROM worker.job") == [row_id(message)]


def taken_over(db: psycopg.Connection, message: Any) -> None:
    """As another worker's rescue leaves it: available again under a new token."""
    query = "UPDATE worker.job SET state = 'available', token = token + 1, claimed_by = NULL WHERE id = %s"
    db.execute(query.encode(), [row_id(message)])


# Sends of async jobs are written when they settle, but checked when they are made


def test_a_refused_send_is_an_async_jobs_own_business(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker)
    def receipt(number: int) -> None: ...

    @job(broker=broker, max_retries=0)
    async def careful(conn: AsyncConnection) -> None:
        try:
            receipt.send("one")  # type: ignore[arg-type]  # that is what is tested
        except ArgumentError:
            await conn.execute("INSERT INTO note VALUES ('refused')")

    assert outcome(db, careful.send()) == "done"
    assert column(db, NOTES) == ["refused"]


def test_a_failed_async_job_sends_nothing_with_its_retry(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker)
    def receipt() -> None: ...

    @job(broker=broker, min_backoff=3_600_000)
    async def stumble(conn: AsyncConnection) -> None:
        receipt.send_with_options(delay=3_600_000)
        raise ZeroDivisionError

    waiting_row(db, stumble.send(), "scheduled")

    assert column(db, "SELECT actor FROM worker.job") == ["stumble"]
