"""`worker migrate` brings the schema up to date, once."""

from __future__ import annotations

import psycopg

from tests.cli.conftest import Worker
from worker.queue.schema import migrations

ALL = [f"applied {migration.version:04}_{migration.name}" for migration in migrations()]


def test_each_migration_that_was_applied_is_printed(worker: Worker, database: str) -> None:
    ended = worker("migrate", "--database-url", database, "--schema", "fresh")

    assert ended.exit_code == 0
    assert ended.stdout.splitlines() == ALL


def test_a_second_run_finds_nothing_to_do(worker: Worker, database: str) -> None:
    ended = worker("migrate", WORKER_DATABASE_URL=database)

    assert ended.exit_code == 0
    assert ended.stdout == "nothing to do: schema 'worker' is up to date\n"


def test_a_schema_from_the_future_is_refused(worker: Worker, db: psycopg.Connection, database: str) -> None:
    db.execute("INSERT INTO worker.migration (version, name, serves) VALUES (9999, 'future', 9999)")

    ended = worker("migrate", "--database-url", database)

    assert (ended.exit_code, ended.stderr.count("\n")) == (4, 1)
    assert "9999" in ended.stderr


def test_a_role_without_the_right_gets_the_databases_own_words(
    worker: Worker, db: psycopg.Connection, database: str
) -> None:
    db.execute("CREATE ROLE test_may_nothing LOGIN")
    try:
        url = psycopg.conninfo.make_conninfo(database, user="test_may_nothing")
        ended = worker("migrate", "--database-url", url, "--schema", "other")
    finally:
        db.execute("DROP ROLE test_may_nothing")

    assert ended.exit_code == 1
    assert "permission denied" in ended.stderr
    assert "Traceback" not in ended.output


def test_a_schema_name_that_cannot_be_one_is_a_wrong_setting(worker: Worker, database: str) -> None:
    ended = worker("migrate", "--database-url", database, "--schema", "No Name")

    assert (ended.exit_code, ended.stderr.count("\n")) == (2, 1)
