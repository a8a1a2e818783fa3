"""The schema: made once, by whoever comes first; and a worker refuses one that it cannot serve."""

from __future__ import annotations

import threading

import psycopg
import pytest
from psycopg import sql

from tests.factories import InThread, column, scalar
from worker import ConfigError, PostgresBroker, SchemaError, job
from worker.pool import Pool
from worker.queue import schema as schema_module
from worker.queue.schema import Migration, Schema, migrations

EVERY = [f"{migration.version:04}_{migration.name}" for migration in migrations()]
BEFORE, NEWEST = (migration.version for migration in migrations()[-2:])


@pytest.fixture
def empty() -> Schema:
    """A schema that is not there yet."""
    return Schema("another")


def set_version(db: psycopg.Connection, version: int, *, serves: int) -> None:
    db.execute("INSERT INTO worker.migration (version, name, serves) VALUES (%s, 'future', %s)", [version, serves])


def test_migrating_applies_every_migration_in_order(empty: Schema, db: psycopg.Connection) -> None:
    assert empty.migrate(db) == EVERY


def test_migrating_again_finds_nothing_to_do(empty: Schema, db: psycopg.Connection) -> None:
    empty.migrate(db)

    assert empty.migrate(db) == []


def test_racing_migrators_apply_each_migration_once(empty: Schema, database: str) -> None:
    start = threading.Barrier(4, timeout=10)

    def migrate() -> list[str]:
        with psycopg.connect(database, autocommit=True) as conn:
            start.wait()
            return empty.migrate(conn)

    applied = [name for racer in [InThread(migrate) for _ in range(4)] for name in racer.result()]

    assert sorted(applied) == EVERY


def test_a_migration_that_fails_leaves_those_before_it(
    empty: Schema, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Migration(NEWEST + 1, "broken", 1, "CREATE TABLE {schema}.half (id int); SELECT 1/0")
    monkeypatch.setattr(schema_module, "migrations", lambda: [*migrations(), broken])

    with pytest.raises(psycopg.errors.DivisionByZero):
        empty.migrate(db)

    assert empty.version(db)[0] == NEWEST
    assert scalar(db, "SELECT to_regclass('another.half')") is None


def test_a_migration_waits_only_so_long_for_somebodys_transaction(
    database: str, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody who comes after it would wait behind it."""
    monkeypatch.setattr(schema_module, "LIMIT_WAIT", "SET LOCAL lock_timeout = '100ms'")
    blocked = Migration(NEWEST + 1, "blocked", 1, "ALTER TABLE {schema}.job ADD COLUMN more int")
    monkeypatch.setattr(schema_module, "migrations", lambda: [*migrations(), blocked])

    with psycopg.connect(database) as reader:
        reader.execute("SELECT count(*) FROM worker.job")
        with pytest.raises(SchemaError, match=r"somebody else's transaction is in the way.*run 'worker migrate' again"):
            Schema().migrate(db)

    assert Schema().migrate(db) == [f"{NEWEST + 1:04}_blocked"]


def test_a_migration_waits_ten_seconds_by_default(db: psycopg.Connection) -> None:
    with db.transaction():
        db.execute(schema_module.LIMIT_WAIT)

        assert scalar(db, "SHOW lock_timeout") == "10s"


def test_a_missing_schema_is_refused_with_the_command(empty: Schema, db: psycopg.Connection) -> None:
    with pytest.raises(SchemaError, match="schema 'another' is not there yet: run 'worker migrate'"):
        empty.check(db)


def test_an_old_schema_is_refused_with_both_versions(db: psycopg.Connection) -> None:
    db.execute("DELETE FROM worker.migration WHERE version = %s", [NEWEST])

    with pytest.raises(SchemaError, match=rf"has version {BEFORE}, this worker needs {NEWEST}: run 'worker migrate'"):
        Schema().check(db)


def test_a_newer_schema_that_serves_this_worker_is_accepted(db: psycopg.Connection) -> None:
    set_version(db, 99, serves=NEWEST)

    Schema().check(db)


def test_a_newer_schema_that_does_not_is_refused_with_all_versions(db: psycopg.Connection) -> None:
    set_version(db, 99, serves=98)

    reason = rf"has version 99 and serves workers from version 98 on, this worker was written for {NEWEST}"
    with pytest.raises(SchemaError, match=reason):
        Schema().check(db)


def test_a_newer_schema_is_not_migrated_backwards(db: psycopg.Connection) -> None:
    set_version(db, 99, serves=98)

    with pytest.raises(SchemaError, match="deploy a newer worker"):
        Schema().migrate(db)


def test_two_schemas_of_one_database_are_two_queues(empty: Schema, pool: Pool, db: psycopg.Connection) -> None:
    empty.migrate(db)

    @job(broker=PostgresBroker(pool=pool, schema="another"))
    def charge() -> None: ...

    charge.send()

    counts = [scalar(db, f"SELECT count(*) FROM {name}.job") for name in ("worker", "another")]  # noqa: S608
    assert counts == [0, 1]


@pytest.mark.parametrize("name", ["", "Worker", "my-schema", "1st", 'x"; DROP', "x" * 51])
def test_a_name_that_is_no_plain_identifier_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected a lower-case name of letters, digits and _"):
        Schema(name)


def test_a_reserved_word_is_a_name_like_any_other(db: psycopg.Connection) -> None:
    Schema("select").migrate(db)

    tables = column(db, "SELECT tablename FROM pg_tables WHERE schemaname = 'select' AND tablename = 'job'")
    assert tables == ["job"]


def test_the_history_of_any_schema_is_kept(db: psycopg.Connection) -> None:
    from datetime import date

    from worker.queue.history import History

    Schema("select").migrate(db)

    History(Schema("select")).maintain(db, date(2024, 1, 1))

    query = sql.SQL("SELECT count(*) FROM pg_tables WHERE schemaname = {} AND tablename = 'job_history_20240101'")
    assert scalar(db, query.format("select").as_string(db)) == 1


def test_the_migrators_right_is_enough_without_superuser(server: str, db: psycopg.Connection) -> None:
    owner = f"owner_{scalar(db, 'SELECT current_database()')}"
    db.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(owner)))
    try:
        db.execute(
            sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(
                sql.Identifier(scalar(db, "SELECT current_database()")), sql.Identifier(owner)
            )
        )
        db.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(owner)))

        assert Schema("another").migrate(db) == EVERY
    finally:
        db.execute("RESET ROLE")
        db.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(owner)))
        db.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(owner)))
