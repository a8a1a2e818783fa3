"""Connections that a verb opens for itself: few, short, and never the worker's pool."""

from __future__ import annotations

import psycopg

from worker.errors import DatabaseUnavailable
from worker.queue.schema import Schema


def connect(url: str, *, name: str) -> psycopg.Connection:
    """
    Open a connection in autocommit mode that calls itself *name*.

    Raises:
        DatabaseUnavailable: It could not be opened within 5 seconds; the message holds the reason.
    """
    try:
        return psycopg.connect(url, autocommit=True, connect_timeout=5, application_name=name)
    except psycopg.OperationalError as exc:
        raise DatabaseUnavailable(f"the database could not be reached: {exc}") from exc


def migrate(url: str, schema: Schema) -> list[str]:
    """
    Bring *schema* to this worker's version; returns the names of the migrations applied now.

    Raises:
        DatabaseUnavailable: The database could not be reached.
        SchemaError: The schema is newer than this worker can serve.
    """
    with connect(url, name="worker migrate") as conn:
        return schema.migrate(conn)
