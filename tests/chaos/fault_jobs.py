"""The jobs under faults: each leaves one effect, with the name of the process that left it."""

from __future__ import annotations

import os

from psycopg import Connection

from worker import job

SCHEMA = """
    -- No key: a second effect must show, not fail.
    CREATE TABLE effect (number int NOT NULL, worker text NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
    CREATE INDEX ON effect (worker, at)"""

NAME = "CHAOS_WORKER"


@job(queue="effects", max_retries=1000, min_backoff=10, max_backoff=100)
def effect(conn: Connection, number: int) -> None:
    """Counts once, however often it runs."""
    conn.execute("INSERT INTO effect (number, worker) VALUES (%s, %s)", [number, os.environ.get(NAME, "")])
    if number % 3 == 0:
        followed.send(number)


@job(queue="effects", max_retries=1000, min_backoff=10, max_backoff=100)
def followed(conn: Connection, number: int) -> None:
    """Exists once for each third effect, because it is sent in its transaction."""
    conn.execute("INSERT INTO effect (number, worker) VALUES (%s, %s)", [-number, os.environ.get(NAME, "")])
