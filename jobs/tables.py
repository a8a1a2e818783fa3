"""The tables these jobs write, and how they come into a database."""

from __future__ import annotations

from pathlib import Path

import psycopg

TABLES = Path(__file__).with_name("tables.sql")


def create_tables(conn: psycopg.Connection) -> None:
    """
    Create the schema `inventory` and its tables, in one transaction; a second call finds everything there.

    Needs the right to create a schema in the database, which the worker's own role need not have.
    """
    with conn.transaction():
        # IF NOT EXISTS does not protect two that create the same thing at once.
        conn.execute("SELECT pg_advisory_xact_lock(hashtextextended('jobs/tables.sql', 0))")
        conn.execute(TABLES.read_bytes())
