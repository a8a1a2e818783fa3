"""Rates: clearing throttled jobs for their start where few enough have started lately."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import psycopg

from worker.queue.feed import Room, names
from worker.queue.rate_statements import (
    CLEAR_JOBS,
    FORGET_RATES,
    FORGET_STARTS,
    KNOCK_AT_RATES,
    MERGE_STARTS,
    TAKE_BACK_STARTS,
)
from worker.queue.schema import Schema


class Left(NamedTuple):
    """
    What a look at rates, or at the limits of queues, has left.

    Args:
        some: Others were just opening some of them.
        opens_in: Seconds until the next job may start; None when none waits for the time.
        strays: Queue and rank, in seconds since 1970, of each job that was cleared; None when there was none.
    """

    some: bool = False
    opens_in: float | None = None
    strays: list[tuple[str, float]] | None = None


def clear(conn: psycopg.Connection[Any], schema: Schema, served: Sequence[Room]) -> psycopg.Cursor[Any]:
    """
    Clear jobs of the rates that were knocked at or whose time has come; nothing waits for a lock.

    Args:
        served: What this worker claims, beside what the rows of all workers say; others' jobs are not cleared.
    """
    return conn.execute(schema.render(CLEAR_JOBS).encode(), {"wake": schema.channels["wake"], **_names(served)})


def what_is_left(cleared: psycopg.Cursor[Any]) -> Left:
    row = cleared.fetchone()
    return Left(row[0] > 0, row[1], row[2]) if row is not None else Left()


def sweep(conn: psycopg.Connection[Any], schema: Schema, served: Sequence[Room]) -> None:
    """
    Take starts back from jobs that nobody would claim, knock at every rate with a line, and forget what is over.

    Args:
        served: As for `clear`.
    """
    conn.execute(schema.render(TAKE_BACK_STARTS).encode(), _names(served))
    conn.execute(schema.render(KNOCK_AT_RATES).encode())
    conn.execute(schema.render(FORGET_RATES).encode())
    sweep_starts(conn, schema)


def sweep_starts(conn: psycopg.Connection[Any], schema: Schema) -> None:
    """Forget starts that count no more, and merge those of rates of thousands."""
    conn.execute(schema.render(FORGET_STARTS).encode())
    conn.execute(schema.render(MERGE_STARTS).encode())


def _names(served: Sequence[Room]) -> dict[str, list[str]]:
    queues, actors = names(served)
    return {"queues": queues, "actors": actors}
