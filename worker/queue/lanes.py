"""Lanes: letting held jobs in where the limit of their lane has room."""

from __future__ import annotations

from typing import Any

import psycopg

from worker.queue.lane_statements import ADMIT_JOBS, FORGET_GATES, KNOCK_AT_LINES
from worker.queue.schema import Schema


def admit(conn: psycopg.Connection[Any], schema: Schema) -> psycopg.Cursor[Any]:
    """Let jobs into the lanes that were knocked at, so that they can be claimed; nothing waits for a lock."""
    return conn.execute(schema.render(ADMIT_JOBS).encode(), {"wake": schema.channels["wake"]})


def has_left_some(admitted: psycopg.Cursor[Any]) -> bool:
    """Whether *admit* met lanes that another was just opening."""
    row = admitted.fetchone()
    return row is not None and row[0] > 0


def sweep(conn: psycopg.Connection[Any], schema: Schema) -> None:
    """Knock at every lane with a line, and forget the gates of lanes that nobody uses."""
    conn.execute(schema.render(KNOCK_AT_LINES).encode())
    conn.execute(schema.render(FORGET_GATES).encode())
