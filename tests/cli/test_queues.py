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
        "max_running": None,
        "max_starts": None,
        "starts_per": None,
        "starts": None,
    }


def test_a_job_that_waits_shows_what_is_in_its_way(
    worker: Worker, database: str, waiting: str, db: psycopg.Connection
) -> None:
    Queues(db).pause("billing")

    shown = json.loads(worker("jobs", "show", waiting, "--json", WORKER_DATABASE_URL=database).stdout)

    assert shown["obstacle"].startswith("queue 'billing' is paused since ")


@pytest.mark.usefixtures("waiting")
def test_a_queue_is_limited_and_the_limit_lifted(worker: Worker, database: str) -> None:
    said = [
        worker("queues", "limit", "billing", *options, WORKER_DATABASE_URL=database).stdout
        for options in (["--running", "5"], ["--starts", "100", "--per", "60"], ["--off"], ["--off"])
    ]

    assert said == [
        "limited queue billing to 5 running\n",
        "limited queue billing to 100 starts in 60 s (before: 5 running)\n",
        "queue billing is limited no more (before: 100 starts in 60 s)\n",
        "queue billing was not limited\n",
    ]


def test_a_limit_of_a_queue_that_nobody_uses_is_exit_code_5_unless_forced(worker: Worker, database: str) -> None:
    limit = ["queues", "limit", "biling", "--running", "1"]

    refused = worker(*limit, WORKER_DATABASE_URL=database)
    forced = worker(*limit, "--force", WORKER_DATABASE_URL=database)

    assert (refused.exit_code, "no job and no live worker uses that name" in refused.stderr) == (5, True)
    assert (forced.exit_code, forced.stdout) == (0, "limited queue biling to 1 running\n")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ([], "say which limit: --running N, --starts N --per SECONDS, or --off"),
        (["--off", "--running", "1"], "--off lifts the whole limit: say it alone"),
        (["--running", "0"], "queue 'billing': running 0: expected a whole number"),
        (["--running", "-1"], "queue 'billing': running -1: expected"),
        (["--running", "many"], "Invalid value for '--running': 'many' is not a valid integer"),
        (["--starts", "5"], "queue 'billing': starts without per"),
        (["--per", "60"], "queue 'billing': per without starts"),
        (["--starts", "5", "--per", "0"], "queue 'billing': per 0.0: expected seconds from 0.001"),
        (["--starts", "5", "--per", "nan"], "queue 'billing': per nan: expected"),
    ],
)
def test_a_limit_that_cannot_work_is_refused_before_anything_is_done(
    worker: Worker, options: list[str], named: str
) -> None:
    ended = worker("queues", "limit", "billing", *options, WORKER_DATABASE_URL="postgresql://nowhere.invalid/none")

    assert (ended.exit_code, named in ended.stderr) == (2, True), ended.stderr


@pytest.mark.usefixtures("waiting")
def test_the_list_tells_the_limits(worker: Worker, database: str, db: psycopg.Connection) -> None:
    Queues(db).limit("billing", running=5, starts=100, per=60)

    said = worker("queues", "list", WORKER_DATABASE_URL=database).stdout
    [queue] = json.loads(worker("queues", "list", "--json", WORKER_DATABASE_URL=database).stdout)

    assert "limited to 5 running, 100 starts in 60 s" in said
    limits = [queue[name] for name in ("max_running", "max_starts", "starts_per", "starts")]
    assert limits == [5, 100, 60.0, 0]
