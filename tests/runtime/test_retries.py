"""What a job says about its own retries, and what is remembered of its attempts."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Any

import dramatiq
import psycopg
import pytest
from click.testing import CliRunner

from tests.factories import column, scalar
from tests.running import attempts, error, outcome, row_id, waiting_row
from worker import ArgumentError, Context, PostgresBroker, Retry, Snooze, job
from worker.cli import main

pytestmark = pytest.mark.usefixtures("worker")


class Refused(Exception):
    """No retry helps."""


def due_in(db: psycopg.Connection) -> float:
    return float(scalar(db, "SELECT extract(epoch FROM due_at - clock_timestamp()) FROM worker.job"))


@pytest.mark.parametrize("delay", [3600, timedelta(hours=1)], ids=str)
def test_a_retry_is_asked_for_in_seconds_and_costs_an_attempt(
    broker: PostgresBroker, db: psycopg.Connection, delay: Any
) -> None:
    @job(broker=broker)
    def charge() -> None:
        raise Retry("the bank sleeps", delay=delay)

    row = waiting_row(db, charge.send(), "scheduled")

    assert row["attempt"] == 1
    assert 3500 < due_in(db) <= 3600


@pytest.mark.parametrize("how", ["raise", "ctx"])
def test_a_snoozed_job_waits_and_has_spent_no_attempt(broker: PostgresBroker, db: psycopg.Connection, how: str) -> None:
    @job(broker=broker, max_retries=0)
    def charge(ctx: Context) -> None:
        if how == "ctx":
            ctx.snooze(3600)
        raise Snooze(timedelta(hours=1))

    row = waiting_row(db, charge.send(), "scheduled")

    assert (row["attempt"], row["error"], row["options"]) == (0, None, {})
    assert 3500 < due_in(db) <= 3600


def test_an_async_job_can_be_snoozed(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, max_retries=0)
    async def charge(ctx: Context) -> None:
        ctx.snooze(3600)

    assert waiting_row(db, charge.send(), "scheduled")["attempt"] == 0


def test_what_a_snoozed_run_has_written_and_sent_is_undone(
    broker: PostgresBroker, note: None, db: psycopg.Connection
) -> None:
    @job(broker=broker, queue="elsewhere")
    def receipt() -> None: ...

    @job(broker=broker)
    def charge(conn: psycopg.Connection) -> None:
        conn.execute("INSERT INTO note VALUES ('written')")
        receipt.send_with_options(delay=timedelta(hours=1))
        raise Snooze(3600)

    waiting_row(db, charge.send(), "scheduled")

    assert scalar(db, "SELECT count(*) FROM note") == 0
    assert column(db, "SELECT actor FROM worker.job") == ["charge"]


def test_a_snoozed_job_runs_again(broker: PostgresBroker, db: psycopg.Connection) -> None:
    runs = []

    @job(broker=broker)
    def charge(ctx: Context) -> None:
        runs.append(ctx.attempt)
        if len(runs) < 3:
            ctx.snooze(0.01)

    message = charge.send()

    assert (outcome(db, message), attempts(db, message), runs) == ("done", 1, [1, 1, 1])


@pytest.mark.parametrize("pause", [-1, float("nan"), float("inf"), "5", True])
def test_a_pause_that_cannot_be_is_refused(pause: Any) -> None:
    with pytest.raises(ArgumentError, match=r"Snooze\(.*\): expected seconds from now"):
        Snooze(pause)


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf")])
def test_a_delay_of_a_retry_that_cannot_be_is_refused(delay: float) -> None:
    with pytest.raises(ArgumentError, match=r"Retry\(delay=.*\): expected seconds from now"):
        Retry(delay=delay)


def test_an_exception_that_no_retry_helps_against_is_the_end(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, throws=(Refused, ValueError))
    def charge() -> None:
        raise Refused

    message = charge.send()

    assert (outcome(db, message), attempts(db, message)) == ("dead", 1)


def test_a_job_decides_about_its_retries_by_the_exception(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, min_backoff=1, max_backoff=1, retry_when=lambda retries, exc: isinstance(exc, ValueError))
    def charge(ctx: Context) -> None:
        raise ValueError if ctx.attempt < 3 else Refused

    message = charge.send()

    assert (outcome(db, message), attempts(db, message)) == ("dead", 3)


def test_the_errors_of_earlier_attempts_are_kept(broker: PostgresBroker, database: str, db: psycopg.Connection) -> None:
    @job(broker=broker, max_retries=2, min_backoff=1, max_backoff=1)
    def charge(ctx: Context) -> None:
        raise ValueError(f"no {ctx.attempt}")

    message = charge.send()
    outcome(db, message)

    shown = CliRunner().invoke(main, ["jobs", "show", message.message_id, "--json", "--database-url", database])
    found = json.loads(shown.stdout) if shown.exit_code == 0 else pytest.fail(shown.output)
    assert [(each["attempt"], each["error"].splitlines()[-1]) for each in found["errors"]] == [
        (1, "ValueError: no 1"),
        (2, "ValueError: no 2"),
    ]
    assert found["error"].endswith("ValueError: no 3\n")


def test_only_the_newest_errors_are_kept_without_their_middle(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, max_retries=13, min_backoff=1, max_backoff=1)
    def charge(ctx: Context) -> None:
        raise ValueError("x" * 5000 + f" {ctx.attempt}")

    message = charge.send()
    outcome(db, message)

    kept = scalar(db, "SELECT options -> 'errors' FROM worker.job_dead WHERE id = %s", row_id(message))
    assert [each["attempt"] for each in kept] == list(range(4, 14))
    assert max(len(each["error"]) for each in kept) == 1000
    for each in kept:
        assert each["error"].startswith("Traceback (most recent call last):\n")
        assert "in charge\n" in each["error"]
        assert each["error"].endswith(f" {each['attempt']}\n")


@pytest.mark.parametrize("kind", ["plain", "coroutine", "actor"])
def test_an_error_is_told_from_the_jobs_own_code_on(broker: PostgresBroker, db: psycopg.Connection, kind: str) -> None:
    """A frame of the machinery says nothing to the job's author."""

    @job(broker=broker, name="plain", max_retries=0)
    def plain() -> None:
        raise ValueError("no")

    @job(broker=broker, name="coroutine", max_retries=0)
    async def coroutine() -> None:
        raise ValueError("no")

    @dramatiq.actor(broker=broker, actor_name="actor", max_retries=0)
    def actor() -> None:
        raise ValueError("no")

    message = broker.get_actor(kind).send()
    outcome(db, message)

    lines = error(db, message).splitlines()
    assert re.fullmatch(rf'  File ".*test_retries.py", line \d+, in {kind}', lines[1])
    assert (lines[0], lines[-1]) == ("Traceback (most recent call last):", "ValueError: no")
