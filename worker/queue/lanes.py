"""Lanes: letting held jobs in where the limit of their lane has room."""

from __future__ import annotations

from typing import Any, NamedTuple

import psycopg

from worker.queue.lane_statements import ADMIT_JOBS, FORGET_GATES, KNOCK_AT_LINES
from worker.queue.schema import Schema


class Admission(NamedTuple):
    """
    What came of *admit*.

    Args:
        left_some: There were lanes that another was just opening.
        strays: Queue and rank, in seconds since 1970, of each job that was let in; None when there was none.
    """

    left_some: bool = False
    strays: list[tuple[str, float]] | None = None


def admit(conn: psycopg.Connection[Any], schema: Schema) -> psycopg.Cursor[Any]:
    """Let jobs into the lanes that were knocked at, so that they can be claimed; nothing waits for a lock."""
    return conn.execute(schema.render(ADMIT_JOBS).encode(), {"wake": schema.channels["wake"]})


def what_was_admitted(admitted: psycopg.Cursor[Any]) -> Admission:
    row = admitted.fetchone()
    return Admission(row[0] > 0, row[1]) if row is not None else Admission()


def sweep(conn: psycopg.Connection[Any], schema: Schema) -> None:
    """Knock at every lane with a line, and forget the gates of lanes that nobody uses."""
    conn.execute(schema.render(KNOCK_AT_LINES).encode())
    conn.execute(schema.render(FORGET_GATES).encode())
