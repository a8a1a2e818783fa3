"""A schema that is there for the length of a block."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import LiteralString

import psycopg
from psycopg import sql

from worker.cli.database import connect
from worker.errors import Refused
from worker.queue.schema import Schema

GET_RIGHTS: LiteralString = """
    SELECT
        current_user,
        current_database(),
        has_database_privilege(current_database(), 'CREATE'),
        pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean"""

DROP_SCHEMA: LiteralString = "DROP SCHEMA IF EXISTS {} CASCADE"

NAME = "worker bench"


@contextmanager
def scratch_schema(url: str) -> Iterator[Schema]:
    """
    A migrated schema `worker_bench_<random>`, dropped at the end of the block, however it ends.

    SIGTERM ends the block like Ctrl-C. While the schema is dropped neither is heard.

    Raises:
        DatabaseUnavailable: The database could not be reached.
        Refused: The role may not create a schema there, or the server is read-only.
    """
    schema = Schema(f"worker_bench_{secrets.token_hex(4)}")
    with connect(url, name=NAME) as conn:
        _check_rights(conn)
    with _terminated_like_interrupted():
        try:
            with connect(url, name=NAME) as conn:
                schema.migrate(conn)
            yield schema
        finally:
            _drop(url, schema)


def _check_rights(conn: psycopg.Connection) -> None:
    user, database, may_create, read_only = conn.execute(GET_RIGHTS).fetchone() or ("", "", False, False)
    if read_only:
        raise Refused(f"database {database!r} is read-only here: the bench needs to write, name the primary server")
    if not may_create:
        raise Refused(
            f"role {user!r} may not create a schema in database {database!r}, and the bench needs one of its own:"
            f' GRANT CREATE ON DATABASE "{database}" TO "{user}", or name another role in --database-url'
        )


def _drop(url: str, schema: Schema) -> None:
    with _deaf(), connect(url, name=NAME) as conn:
        conn.execute(sql.SQL(DROP_SCHEMA).format(sql.Identifier(schema.name)))


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _deaf() -> Iterator[None]:
    """An impatient second Ctrl-C would leave the schema behind."""
    before = {signum: signal.signal(signum, signal.SIG_IGN) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
