"""`worker enqueue`: a job by hand, typed as its signature says."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import dramatiq
import psycopg
import pytest

from tests.cli.conftest import Worker
from tests.factories import column, scalar
from worker import PostgresBroker, job
from worker.config import Config


@pytest.fixture(autouse=True)
def broker(monkeypatch: pytest.MonkeyPatch) -> PostgresBroker:
    """The process's broker, which knows the job `charge` and the plain actor `plain`."""
    broker = PostgresBroker()
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)

    @job(queue="billing", name="charge")
    def charge(
        invoice_id: int, note: str = "", due: datetime | None = None, items: list[int] | None = None
    ) -> None: ...

    @dramatiq.actor
    def plain(word: str) -> None: ...

    # The package itself declares nothing, so that loading it changes nothing.
    monkeypatch.setattr(Config, "jobs", ("worker.clock",))
    monkeypatch.setenv("WORKER_JOBS", "worker.clock")
    return broker


def test_a_job_is_sent_with_typed_arguments(worker: Worker, database: str, db: psycopg.Connection) -> None:
    ended = worker(
        "enqueue", "charge", "invoice_id=42", "note=7", "due=2030-01-31T09:00:00Z", "items=[1,2]",
        WORKER_DATABASE_URL=database,
    )  # fmt: skip

    assert ended.exit_code == 0, ended.stderr
    assert column(db, "SELECT id::text FROM worker.job") == [ended.stdout.strip()]
    assert db.execute("SELECT queue, args FROM worker.job").fetchall() == [
        ("billing", {"invoice_id": 42, "note": "7", "due": "2030-01-31T09:00:00Z", "items": [1, 2]})
    ]


def test_arguments_can_be_given_as_json(worker: Worker, database: str, db: psycopg.Connection) -> None:
    worker("enqueue", "charge", "--args", '{"invoice_id": 1, "due": "2030-01-31"}', WORKER_DATABASE_URL=database)
    worker("enqueue", "charge", "--args", '{"invoice_id": 2}', "note=by hand", WORKER_DATABASE_URL=database)

    assert column(db, "SELECT args FROM worker.job") == [{"invoice_id": 2, "note": "by hand"}]


def test_options_are_those_of_a_send(worker: Worker, database: str, db: psycopg.Connection) -> None:
    ended = worker(
        "enqueue", "charge", "invoice_id=1", "--at", "2030-01-31T09:00:00+00:00", "--priority", "-3",
        "--tag", "a", "--unique-key", "k", WORKER_DATABASE_URL=database,
    )  # fmt: skip

    assert ended.exit_code == 0, ended.stderr
    due_at = datetime(2030, 1, 31, 9, tzinfo=UTC)
    assert db.execute("SELECT priority, due_at FROM worker.job").fetchall() == [(-3, due_at)]
    assert db.execute("SELECT tag, key FROM worker.job_tag, worker.job_key").fetchall() == [("a", "k")]


def test_a_delay_is_written_as_a_person_would(worker: Worker, database: str, db: psycopg.Connection) -> None:
    worker("enqueue", "charge", "invoice_id=1", "--delay", "5m", WORKER_DATABASE_URL=database)

    assert scalar(db, "SELECT due_at BETWEEN now() + '4 min' AND now() + '5 min' FROM worker.job")


def test_a_key_that_is_taken_is_told(worker: Worker, database: str, db: psycopg.Connection) -> None:
    command = ("enqueue", "charge", "invoice_id=1", "--unique-key", "k")
    first = worker(*command, WORKER_DATABASE_URL=database)

    second = worker(*command, WORKER_DATABASE_URL=database)

    assert (second.exit_code, second.stdout) == (0, first.stdout)
    assert "nothing was enqueued" in second.stderr


def test_a_dry_run_checks_and_prints_the_job_without_any_database(worker: Worker) -> None:
    ended = worker("enqueue", "charge", "invoice_id=42", "--delay", "90s", "--dry-run")

    assert json.loads(ended.stdout) == {
        "actor": "charge",
        "queue": "billing",
        "priority": 0,
        "due_in": 90.0,
        "args": {"invoice_id": 42},
        "tags": [],
        "unique_key": None,
    }


def test_a_plain_actor_is_sent_too(worker: Worker, database: str, db: psycopg.Connection) -> None:
    worker("enqueue", "plain", "word=hello", WORKER_DATABASE_URL=database)

    message = dramatiq.Message.decode(scalar(db, "SELECT message FROM worker.job"))
    assert message.kwargs == {"word": "hello"}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["chrge", "invoice_id=1"], 5, "job 'chrge' is not there: did you mean 'charge'?"),
        (["charge", "invoice_id=x"], 2, "argument 'invoice_id' is 'x': Expected `int`, got `str`"),
        (["charge", "invoice=1"], 2, "missing a required argument: 'invoice_id'"),
        (["charge", "42"], 2, "argument '42': expected NAME=VALUE, such as invoice_id=42"),
        (["charge", "--args", "[1]"], 2, "expected an object by name"),
        (["charge", "--args", "{"], 2, "not JSON"),
        (["charge", "invoice_id=1", "--at", "2030-01-31T09:00"], 2, "expected a time zone"),
        (["charge", "invoice_id=1", "--at", "soon"], 2, "expected an instant such as"),
        (["charge", "invoice_id=1", "--delay", "5m", "--at", "2030-01-31T09:00Z"], 2, "--delay or --at, not both"),
        (["charge", "invoice_id=1", "--delay", "-5m"], 2, "such as 90m"),
        (["charge", "invoice_id=1", "--queue", "biling"], 2, "did you mean 'billing'?"),
        (["charge", "invoice_id=1", "--unique-key", "k" * 10_000], 2, "it has 10000 characters"),
        (["charge", "invoice_id=1"], 2, "no database: set WORKER_DATABASE_URL"),
    ],
    ids=str,
)
def test_what_cannot_be_sent_is_refused_with_the_reason(
    worker: Worker, arguments: list[str], code: int, said: str
) -> None:
    ended = worker("enqueue", *arguments)

    assert (ended.exit_code, said in " ".join(ended.stderr.split())) == (code, True), ended.stderr
