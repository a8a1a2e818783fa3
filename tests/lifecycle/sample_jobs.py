"""Jobs for real worker processes. They write to `note (word)`, which tests read."""

from __future__ import annotations

import os
import time

from psycopg import AsyncConnection, Connection

from worker import Pool, job


@job
def note(conn: Connection, word: str) -> None:
    conn.execute("INSERT INTO note VALUES (%s)", [word])


@job(queue="mail")
def note_by_mail(conn: Connection, word: str) -> None:
    conn.execute("INSERT INTO note VALUES (%s)", [word])


@job
async def note_async(conn: AsyncConnection, word: str) -> None:
    await conn.execute("INSERT INTO note VALUES (%s)", [word])


@job(min_backoff=10, max_backoff=50)
def note_by_pool(pool: Pool, word: str) -> None:
    with pool.connection() as conn:
        conn.execute("INSERT INTO note VALUES (%s)", [word])


@job(max_retries=0)
def work(conn: Connection, word: str, seconds: float) -> None:
    """Busy in the database, then done."""
    conn.execute("INSERT INTO note VALUES (%s)", [word])
    conn.execute("SELECT pg_sleep(%s)", [seconds])


@job(max_retries=0)
def think(word: str, seconds: float) -> None:
    """Busy in Python, where an interrupt reaches it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.01)


@job(max_retries=0)
def hang(seconds: float) -> None:
    """Busy where no interrupt reaches it."""
    time.sleep(seconds)


@job
def crash() -> None:
    """Takes its process along, as a fault in a C extension does."""
    os._exit(9)
