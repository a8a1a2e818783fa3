"""`worker queues`: look at them, pause and resume them."""

from __future__ import annotations

import json

import psycopg
import pytest

from tests.cli.conftest import Worker
from tests.factories import column
from worker import Queues
from worker.queue.identity import uuid7

INSERT_WAITING = """
    INSERT INTO worker.job (id, queue, actor, state, due_at, rank, enqueued_at, args)
    VALUES (%s, 'billing', 'charge', 'available', now() - interval '1 minute', now(), now(), '{}')"""


@pytest.fixture
def waiting(db: psycopg.Connection) -> str:
    """The id of a job that waits in the queue `billing`."""
    job_id = uuid7()
    db.execute(INSERT_WAITING, [job_id])
    return str(job_id)


@pytest.mark.usefixtures("waiting")
def test_a_queue_is_paused_and_resumed(worker: Worker, database: str, db: psycopg.Connection) -> None:
    paused = worker("queues", "pause", "billing", WORKER_DATABASE_URL=database)
    names = column(db, "SELECT name FROM worker.pause WHERE kind = 'queue'")
    resumed = worker("queues", "resume", "billing", WORKER_DATABASE_URL=database)

    assert (paused.stdout, names, resumed.stdout) == ("paused queue billing\n", ["billing"], "resumed queue billing\n")
    assert column(db, "SELECT name FROM worker.pause") == []


@pytest.mark.usefixtures("waiting")
def test_an_actor_is_paused_by_its_option(worker: Worker, database: str, db: psycopg.Connection) -> None:
    worker("queues", "pause", "--actor", "charge", WORKER_DATABASE_URL=database)

    assert column(db, "SELECT name FROM worker.pause WHERE kind = 'actor'") == ["charge"]


@pytest.mark.usefixtures("waiting")
def test_a_second_pause_says_so_and_is_no_failure(worker: Worker, database: str) -> None:
    worker("queues", "pause", "billing", WORKER_DATABASE_URL=database)

    again = worker("queues", "pause", "billing", WORKER_DATABASE_URL=database)

    assert (again.exit_code, again.stdout) == (0, "queue billing was paused already\n")


def test_a_name_that_nobody_uses_is_exit_code_5(worker: Worker, database: str) -> None:
    ended = worker("queues", "pause", "biling", WORKER_DATABASE_URL=database)

    assert (ended.exit_code, "queue 'biling': no job and no live worker uses that name" in ended.stderr) == (5, True)


def test_force_pauses_it_all_the_same(worker: Worker, database: str) -> None:
    ended = worker("queues", "pause", "new", "--force", WORKER_DATABASE_URL=database)

    assert (ended.exit_code, ended.stdout) == (0, "paused queue new\n")


@pytest.mark.parametrize("names", [[], ["billing", "--actor", "charge"]])
def test_one_name_must_be_given(worker: Worker, names: list[str]) -> None:
    ended = worker("queues", "pause", *names)

    assert (ended.exit_code, "say which" in ended.stderr) == (2, True)


@pytest.mark.usefixtures("waiting")
def test_the_list_says_why_a_queue_does_not_move(worker: Worker, database: str, db: psycopg.Connection) -> None:
    Queues(db).pause("billing")

    said = worker("queues", "list", WORKER_DATABASE_URL=database).stdout

    assert "paused since" in said
    assert "no live worker serves it" in said
    assert "1 of actor charge, which no live worker knows" in said


@pytest.mark.usefixtures("waiting")
def test_the_list_as_json_has_every_count(worker: Worker, database: str, db: psycopg.Connection) -> None:
    Queues(db).pause(actor="charge")

    [queue] = json.loads(worker("queues", "list", "--json", WORKER_DATABASE_URL=database).stdout)

    assert queue["oldest"] >= 60
    assert queue["paused_actors"]["charge"].endswith("Z")
    del queue["oldest"], queue["paused_actors"]
    assert queue == {
        "name": "billing",
        "waiting": 1,
        "running": 0,
        "scheduled": 0,
        "dead": 0,
        "paused_at": None,
        "workers": 0,
        "unknown": {"charge": 1},
    }


def test_a_job_that_waits_shows_what_is_in_its_way(
    worker: Worker, database: str, waiting: str, db: psycopg.Connection
) -> None:
    Queues(db).pause("billing")

    shown = json.loads(worker("jobs", "show", waiting, "--json", WORKER_DATABASE_URL=database).stdout)

    assert shown["obstacle"].startswith("queue 'billing' is paused since ")
