"""`worker bench` measures on the user's own database, says what limits, and leaves nothing there."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import structlog
from psycopg import sql

from tests.cli.conftest import Worker
from tests.factories import column, scalar
from tests.waiting import wait_until
from worker import exits

WAIT = 60.0
FIND_SCRATCH = "SELECT nspname FROM pg_namespace WHERE starts_with(nspname, 'worker_bench_')"


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """The bench has its process log errors only, and here that is the tests' own."""
    config, root, ours = structlog.get_config(), logging.getLogger(), logging.getLogger("worker")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    structlog.configure(**config)
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def left_behind(db: psycopg.Connection) -> list[str]:
    """Schemas, and sessions that have called themselves after a bench."""
    sessions = "SELECT application_name FROM pg_stat_activity WHERE datname = current_database()"
    return [*column(db, FIND_SCRATCH), *(name for name in column(db, sessions) if "bench" in name)]


@contextmanager
def running_bench(url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "worker", "bench", "--database-url", url, *arguments],
        env={**os.environ, "WORKER_LOG_LEVEL": "error"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_it_measures_and_leaves_nothing(worker: Worker, database: str, db: psycopg.Connection) -> None:
    ended = worker("bench", "--jobs", "200", "--json", WORKER_DATABASE_URL=database)

    found = json.loads(ended.stdout)
    assert ended.exit_code == exits.OK
    assert (found["jobs"], found["slots"]) == (200, 10)
    assert 0 < found["round_trip"] < found["latency_p99"]
    assert min(found[f"{work}_per_second"] for work in ("drain", "enqueue", "bulk")) > 0
    wait_until(lambda: not left_behind(db), WAIT, "the end of the bench's schema and sessions")


def test_it_explains_what_limits(worker: Worker, database: str) -> None:
    said = worker("bench", "--jobs", "100", "--slots", "2", WORKER_DATABASE_URL=database)

    assert said.stdout.count("limit: ") == 3
    assert "100 jobs that do nothing, 2 at once" in said.stdout
    assert "drain: 100 jobs" in said.stderr


def test_the_queue_of_the_application_is_not_touched(worker: Worker, database: str, db: psycopg.Connection) -> None:
    db.execute("""INSERT INTO worker.job (queue, actor, args) VALUES ('default', 'nothing', '{}')""")

    worker("bench", "--jobs", "100", WORKER_DATABASE_URL=database)

    assert scalar(db, "SELECT attempt FROM worker.job") == 0


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_bench_that_is_stopped_drops_its_schema(database: str, db: psycopg.Connection, signum: int) -> None:
    with running_bench(database, "--jobs", "1000000") as bench:
        # Beyond its first jobs, so that it is in the middle of its work.
        wait_until(lambda: column(db, FIND_SCRATCH) and _has_jobs(db), WAIT, "the bench to send jobs")
        bench.send_signal(signum)
        _, said = bench.communicate(timeout=WAIT)

    assert bench.returncode == exits.INTERRUPTED
    assert said.splitlines()[-1] == "worker: stopped"
    wait_until(lambda: not left_behind(db), WAIT, "the end of the bench's schema and sessions")


def test_a_bench_that_fails_drops_its_schema(database: str, db: psycopg.Connection) -> None:
    with running_bench(database, "--jobs", "1000000") as bench:
        wait_until(lambda: column(db, FIND_SCRATCH), WAIT, "the schema")
        [schema] = column(db, FIND_SCRATCH)
        wait_until(lambda: _has_jobs(db), WAIT, "the bench to send jobs")
        db.execute(sql.SQL("DROP TABLE {}.job CASCADE").format(sql.Identifier(schema)))
        bench.communicate(timeout=WAIT)

    assert bench.returncode == exits.SCHEMA
    wait_until(lambda: not left_behind(db), WAIT, "the end of the bench's schema and sessions")


def test_a_role_that_may_not_create_a_schema_is_refused(worker: Worker, database: str, db: psycopg.Connection) -> None:
    role = f"bench_guest_{os.getpid()}"
    db.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
    try:
        parts = urlsplit(database)
        url = urlunsplit(parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}"))
        ended = worker("bench", WORKER_DATABASE_URL=url)
    finally:
        db.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))

    assert ended.exit_code == exits.REFUSED
    assert f"role '{role}' may not create a schema in database" in ended.stderr
    assert "GRANT CREATE ON DATABASE" in ended.stderr


def test_a_read_only_database_is_refused(worker: Worker, database: str, db: psycopg.Connection) -> None:
    db.execute(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database());"
        " END $$"
    )

    ended = worker("bench", WORKER_DATABASE_URL=database)

    assert ended.exit_code == exits.REFUSED
    assert "is read-only here" in ended.stderr


def test_without_a_database_it_says_how_to_name_one(worker: Worker) -> None:
    ended = worker("bench")

    assert ended.exit_code == exits.USAGE
    assert "no database: set WORKER_DATABASE_URL" in ended.stderr


def test_too_few_jobs_are_a_usage_error(worker: Worker, database: str) -> None:
    assert worker("bench", "--jobs", "3", WORKER_DATABASE_URL=database).exit_code == exits.USAGE


def _has_jobs(db: psycopg.Connection) -> bool:
    """Whether the bench has sent jobs that are committed."""
    for schema in column(db, FIND_SCRATCH):
        table = sql.SQL("SELECT EXISTS (SELECT FROM {}.job)").format(sql.Identifier(schema))
        try:
            if (row := db.execute(table).fetchone()) and row[0]:
                return True
        except psycopg.errors.UndefinedTable:
            pass  # it is still being made
    return False
