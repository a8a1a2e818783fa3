"""`worker jobs`: find jobs, look at one, bring dead ones back."""

from __future__ import annotations

import json
from uuid import UUID

import psycopg
import pytest

from tests.cli.conftest import Worker
from tests.factories import column, scalar
from tests.queue.conftest import InsertJob, insert_job
from worker.queue.history import History
from worker.queue.identity import uuid7
from worker.queue.schema import Schema
from worker.queue.settlement import Outcome, Settlement, settle

__all__ = ["insert_job"]

INSERT_DEAD = """
    INSERT INTO worker.job_dead (
        id, queue, actor, priority, attempt, crashes, due_at, enqueued_at, died_at, args, error
    )
    VALUES (%s, 'default', %s, 0, 3, 0, now(), now(), now(), '{"invoice": 42}', 'Traceback ...\nValueError: no')"""


def bury(db: psycopg.Connection, actor: str = "charge") -> UUID:
    job_id = uuid7()
    db.execute(INSERT_DEAD, [job_id, actor])
    return job_id


def test_the_list_shows_the_last_line_of_an_error(worker: Worker, database: str, db: psycopg.Connection) -> None:
    job_id = bury(db)

    said = worker("jobs", "list", WORKER_DATABASE_URL=database).stdout

    assert str(job_id) in said
    assert "ValueError: no" in said
    assert "Traceback" not in said


def test_the_list_as_json_has_instants_in_utc(worker: Worker, database: str, db: psycopg.Connection) -> None:
    job_id = bury(db)

    [found] = json.loads(worker("jobs", "list", "--json", WORKER_DATABASE_URL=database).stdout)

    assert (found["id"], found["state"], found["args"]) == (str(job_id), "dead", {"invoice": 42})
    assert found["enqueued_at"].endswith("Z")


def test_one_job_is_shown_by_the_beginning_of_its_id(worker: Worker, database: str, db: psycopg.Connection) -> None:
    job_id = bury(db)

    ended = worker("jobs", "show", str(job_id)[:13], "--json", WORKER_DATABASE_URL=database)

    assert json.loads(ended.stdout)["id"] == str(job_id)


def test_a_job_that_is_not_there_is_exit_code_5(worker: Worker, database: str) -> None:
    ended = worker("jobs", "show", "0189", WORKER_DATABASE_URL=database)

    assert (ended.exit_code, ended.stderr) == (5, "worker: job 0189 is not there\n")


def test_a_beginning_that_several_share_is_told(worker: Worker, database: str, db: psycopg.Connection) -> None:
    bury(db)
    bury(db)

    ended = worker("jobs", "show", "0", WORKER_DATABASE_URL=database)

    assert (ended.exit_code, "is the beginning of several" in ended.stderr) == (5, True)


def test_redriven_jobs_are_printed_and_counted(worker: Worker, database: str, db: psycopg.Connection) -> None:
    job_id = bury(db)

    ended = worker("jobs", "redrive", "--actor", "charge", WORKER_DATABASE_URL=database)

    assert (ended.stdout, ended.stderr) == (f"{job_id}\n", "redriven: 1\n")
    assert column(db, "SELECT id FROM worker.job") == [job_id]


def test_a_dry_run_changes_nothing(worker: Worker, database: str, db: psycopg.Connection) -> None:
    job_id = bury(db)

    ended = worker("jobs", "redrive", "--all", "--dry-run", WORKER_DATABASE_URL=database)

    assert (ended.stdout, ended.stderr) == (f"{job_id}\n", "would redrive: 1\n")
    assert scalar(db, "SELECT count(*) FROM worker.job") == 0


def test_redriving_everything_must_be_said(worker: Worker, database: str) -> None:
    ended = worker("jobs", "redrive", WORKER_DATABASE_URL=database)

    assert ended.exit_code == 2
    assert "--all" in ended.stderr


def test_redriving_what_is_not_dead_is_exit_code_5(worker: Worker, database: str) -> None:
    ended = worker("jobs", "redrive", "0189", WORKER_DATABASE_URL=database)

    assert (ended.exit_code, ended.stderr) == (5, "worker: job 0189 is not dead, or not there\n")


@pytest.mark.parametrize("age", ["x", "5", "5y", "-3m"])
def test_an_age_that_cannot_be_read_is_refused_with_an_example(worker: Worker, age: str) -> None:
    ended = worker("jobs", "list", "--since", age, WORKER_DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")

    assert ended.exit_code == 2
    assert "such as 90m" in ended.stderr


# Progress and steps


def tell(db: psycopg.Connection, job_id: UUID) -> None:
    db.execute(
        """
        INSERT INTO worker.job_progress (job_id, token, attempt, fraction, note) VALUES (%s, 1, 1, 0.4, 'parsing')""",
        [job_id],
    )
    db.execute(
        """
        INSERT INTO worker.job_step (job_id, name, value, attempt, args_hash)
        VALUES (%s, 'fetch', '{"n": 1}', 1, 0)""",
        [job_id],
    )


def test_the_list_shows_progress(worker: Worker, database: str, db: psycopg.Connection, insert_job: InsertJob) -> None:
    tell(db, insert_job(claimed_by=uuid7()))

    assert "40% parsing" in worker("jobs", "list", WORKER_DATABASE_URL=database).stdout


@pytest.mark.parametrize("as_json", [False, True])
def test_one_job_is_shown_with_its_progress_and_steps(
    worker: Worker, database: str, db: psycopg.Connection, insert_job: InsertJob, as_json: bool
) -> None:
    job_id = insert_job(claimed_by=uuid7())
    tell(db, job_id)

    said = worker("jobs", "show", str(job_id), *["--json"] * as_json, WORKER_DATABASE_URL=database).stdout

    if as_json:
        shown = json.loads(said)
        assert (shown["progress"], shown["progress_note"], shown["progress_attempt"]) == (0.4, "parsing", 1)
        [step] = shown["steps"]
        assert (step["name"], step["value"], step["attempt"]) == ("fetch", {"n": 1}, 1)
        assert shown["progress_at"].endswith("Z")
        assert step["recorded_at"].endswith("Z")
    else:
        assert "progress         0.4\nprogress_note    parsing\n" in said
        assert 'steps            [{"name": "fetch", "value": {"n": 1}, "attempt": 1,' in said


# Cancelling


def test_cancelled_jobs_are_printed_and_counted(
    worker: Worker, database: str, db: psycopg.Connection, insert_job: InsertJob
) -> None:
    job_id = insert_job()

    ended = worker("jobs", "cancel", str(job_id), WORKER_DATABASE_URL=database)

    assert (ended.exit_code, ended.stdout, ended.stderr) == (0, f"{job_id}\n", "cancelled: 1\n")
    assert column(db, "SELECT id FROM worker.job_dead") == [job_id]


def test_a_dry_run_cancels_nothing(
    worker: Worker, database: str, db: psycopg.Connection, insert_job: InsertJob
) -> None:
    job_id = insert_job()

    ended = worker("jobs", "cancel", "--actor", "charge", "--dry-run", WORKER_DATABASE_URL=database)

    assert (ended.stdout, ended.stderr) == (f"{job_id}\n", "would cancel: 1\n")
    assert column(db, "SELECT id FROM worker.job") == [job_id]


def test_a_tag_is_enough_to_say_which(
    worker: Worker, database: str, db: psycopg.Connection, insert_job: InsertJob
) -> None:
    job_id = insert_job()
    insert_job()
    db.execute("INSERT INTO worker.job_tag (tag, job_id) VALUES ('customer:7', %s)", [job_id])

    ended = worker("jobs", "cancel", "--tag", "customer:7", WORKER_DATABASE_URL=database)

    assert (ended.exit_code, ended.stdout) == (0, f"{job_id}\n")


def test_cancelling_everything_must_be_said(worker: Worker, database: str) -> None:
    ended = worker("jobs", "cancel", WORKER_DATABASE_URL=database)

    assert (ended.exit_code, "--all" in ended.stderr) == (2, True)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("unknown", "is not there"),
        ("several", "is the beginning of several"),
        ("dead", "is dead already"),
        ("done", "is done already"),
        ("running", "is being cancelled already"),
    ],
)
def test_what_cannot_be_cancelled_is_told_with_exit_code_5(
    worker: Worker, database: str, db: psycopg.Connection, insert_job: InsertJob, what: str, said: str
) -> None:
    job_id = str(uuid7())
    if what == "dead":
        job_id = str(bury(db))
    elif what == "done":
        job_id = str(insert_job(claimed_by=uuid7()))
        History(Schema()).maintain(db)
        settle(db, Schema(), [Settlement(UUID(job_id), 1, Outcome.DONE)])
    elif what == "running":
        job_id = str(insert_job(claimed_by=uuid7()))
        worker("jobs", "cancel", job_id, WORKER_DATABASE_URL=database)
    elif what == "several":
        job_id = str(insert_job())[:2]
        insert_job()

    ended = worker("jobs", "cancel", job_id, WORKER_DATABASE_URL=database)

    assert (ended.exit_code, ended.stdout) == (5, "")
    assert ended.stderr == f"worker: job {job_id} {said}\ncancelled: 0\n"
