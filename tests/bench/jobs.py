"""The jobs that are measured."""

from __future__ import annotations

import time
from typing import Any

import psycopg

from worker import PostgresBroker, job

broker = PostgresBroker(schema="worker")
started_after: list[float] = []


@job(broker=broker)
def nothing() -> None: ...


@job(broker=broker)
def insert(conn: psycopg.Connection[Any], number: int) -> None:
    conn.execute("INSERT INTO bench (number) VALUES (%s)", [number])


@job(broker=broker)
def late(sent_at: float) -> None:
    """Note how long after *sent_at* it started; both ends read the clock of one machine."""
    started_after.append(time.time() - sent_at)
