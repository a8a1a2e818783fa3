"""The schema in the database: its name, its migrations, and whether this worker can serve it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from typing import LiteralString, NamedTuple

import psycopg
from psycopg import sql

from worker.config import SCHEMA_NAME, SETTINGS
from worker.errors import ConfigError, SchemaError

_FILE = re.compile(r"(?P<version>\d{4})_(?P<name>\w+)\.sql")
_SERVES = re.compile(r"-- serves: (\d+)\n")

CREATE_SCHEMA: LiteralString = "CREATE SCHEMA IF NOT EXISTS {schema}"

CREATE_MIGRATION_TABLE: LiteralString = """
    CREATE TABLE IF NOT EXISTS {schema}.migration (
        version    integer     NOT NULL,
        name       text        NOT NULL,
        serves     integer     NOT NULL, -- the oldest worker, by the version it was written for, that still works on it
        applied_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT migration_pkey PRIMARY KEY (version)
    )"""

# A migration that waits for a lock makes everybody behind it wait as well.
LIMIT_WAIT: LiteralString = "SET LOCAL lock_timeout = '10s'"

# Two that migrate at once: the second waits here, then finds nothing left to do.
LOCK_MIGRATIONS: LiteralString = "SELECT pg_advisory_xact_lock(hashtextextended(%(name)s, 0))"

# Reads the catalogue first: naming a table that is missing would be an error and abort the caller's transaction.
FIND_MIGRATION_TABLE: LiteralString = "SELECT to_regclass(%(table)s) IS NOT NULL"

GET_VERSION: LiteralString = "SELECT coalesce(max(version), 0), coalesce(max(serves), 0) FROM {schema}.migration"

RECORD_MIGRATION: LiteralString = """
    INSERT INTO {schema}.migration (version, name, serves)
    VALUES (%(version)s, %(name)s, %(serves)s)"""


class Migration(NamedTuple):
    """One numbered file of `worker/migrations`."""

    version: int
    name: str
    serves: int
    text: LiteralString


def migrations() -> list[Migration]:
    """Every migration that ships with this worker, oldest first."""
    found = []
    for file in resources.files("worker.migrations").iterdir():
        if match := _FILE.fullmatch(file.name):
            text: LiteralString = file.read_text(encoding="utf-8")
            serves = _SERVES.match(text)
            if serves is None:
                raise SchemaError(f"migration {file.name}: its first line must say '-- serves: VERSION'")
            found.append(Migration(int(match["version"]), match["name"], int(serves[1]), text))
    return sorted(found)


@dataclass(frozen=True)
class Schema:
    """
    The schema that holds the tables, by *name*.

    Raises:
        ConfigError: The name is not a plain lower-case identifier of at most 50 characters.
    """

    name: str = "worker"
    _rendered: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not SCHEMA_NAME.fullmatch(self.name):
            raise ConfigError(f"schema {self.name!r}: expected {SETTINGS['schema'].expected}")

    @cached_property
    def channels(self) -> dict[str, str]:
        """
        Where workers are told something, never with a payload.

        By a send, to `wake` now, or that something is due `later`; by a person, to `ask` what they are doing, that
        there are jobs to `cancel`, or that `schedules` were changed.
        """
        return {name: f"{self.name}_{name}" for name in ("wake", "later", "ask", "cancel", "schedules")}

    def render(self, statement: LiteralString) -> str:
        """*statement* with `{schema}` filled in, made once."""
        try:
            return self._rendered[statement]
        except KeyError:
            text = sql.SQL(statement).format(schema=sql.Identifier(self.name)).as_string(None)
            # psycopg parses statements beyond 4 KiB anew each time, and a quarter of ours is indentation and comments.
            text = re.sub(r"\n\s*--.*", "", text)
            text = re.sub(r"\n\s+", "\n", text)
            return self._rendered.setdefault(statement, text)

    def version(self, conn: psycopg.Connection) -> tuple[int, int]:
        """The schema's version and the oldest worker that it serves; (0, 0) when nothing is there."""
        row = conn.execute(FIND_MIGRATION_TABLE, {"table": f"{self.name}.migration"}).fetchone()
        if row is None or not row[0]:
            return 0, 0
        version, serves = conn.execute(self.render(GET_VERSION).encode()).fetchone() or (0, 0)
        return version, serves

    def migrate(self, conn: psycopg.Connection) -> list[str]:
        """
        Bring the schema to the version this worker was written for; a second call finds nothing to do.

        Each migration is one transaction: an error leaves the ones before it applied and itself undone.

        Returns:
            The names of the migrations applied now, oldest first.

        Raises:
            SchemaError: The schema is newer than this worker can serve, or locks were in the way for 10 s.
        """
        try:
            applied = self._migrate(conn)
        except psycopg.errors.LockNotAvailable as exc:
            raise SchemaError(
                f"schema {self.name!r} could not be migrated: somebody else's transaction is in the way ({exc}); look"
                " for long ones in pg_stat_activity and run 'worker migrate' again"
            ) from exc
        self.check(conn)
        return applied

    def _migrate(self, conn: psycopg.Connection) -> list[str]:
        applied = []
        with conn.transaction():
            conn.execute(LIMIT_WAIT)
            conn.execute(LOCK_MIGRATIONS, {"name": self.name})
            conn.execute(self.render(CREATE_SCHEMA).encode())
            conn.execute(self.render(CREATE_MIGRATION_TABLE).encode())
        for migration in migrations():
            with conn.transaction():
                conn.execute(LIMIT_WAIT)
                conn.execute(LOCK_MIGRATIONS, {"name": self.name})
                if migration.version <= self.version(conn)[0]:
                    continue
                conn.execute(self.render(migration.text).encode())
                conn.execute(self.render(RECORD_MIGRATION).encode(), migration._asdict())
                applied.append(f"{migration.version:04}_{migration.name}")
        return applied

    def check(self, conn: psycopg.Connection) -> None:
        """
        Refuse a schema that this worker cannot serve.

        Raises:
            SchemaError: Missing, too old or too new; the message names both versions and the command.
        """
        version, serves = self.version(conn)
        mine = migrations()[-1].version
        if version == 0:
            raise SchemaError(f"schema {self.name!r} is not there yet: run 'worker migrate' against this database")
        if version < mine:
            raise SchemaError(
                f"schema {self.name!r} has version {version}, this worker needs {mine}: run 'worker migrate'"
            )
        if mine < serves:
            raise SchemaError(
                f"schema {self.name!r} has version {version} and serves workers from version {serves} on,"
                f" this worker was written for {mine}: deploy a newer worker"
            )
