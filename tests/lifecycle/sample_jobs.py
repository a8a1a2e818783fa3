"""Jobs for real worker processes. They write to `note (word)`, which tests read."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from contextlib import suppress

from psycopg import AsyncConnection, Connection

from worker import Context, Pool, job


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


def _wait_for(gate: str) -> None:
    """Not by `ctx.wait`, which would hear that the job is to end."""
    while not os.path.exists(gate):
        time.sleep(0.01)


@job(max_retries=0)
def write_behind(conn: Connection, word: str, gate: str) -> None:
    _wait_for(gate)
    conn.execute("INSERT INTO note VALUES (%s)", [word])


@job(max_retries=0)
def send_behind(word: str, gate: str) -> None:
    _wait_for(gate)
    note.send(word)


@job(max_retries=0)
def hang(seconds: float) -> None:
    """Busy where no interrupt reaches it."""
    time.sleep(seconds)


@job(timeout=0.3, max_retries=0)
def deaf() -> None:
    """Busy in C, which hears of nothing."""
    time.sleep(600)


@job(timeout=0.3, max_retries=0)
def deaf_until(gate: str) -> None:
    """Waits in C for somebody to write to this pipe."""
    os.close(os.open(gate, os.O_RDONLY))


_pair = threading.Barrier(2)


@job(max_retries=0)
def meet() -> None:
    """Done only where two run at once."""
    _pair.wait(20)


@job(timeout=0.3, max_retries=0)
def deaf_in_python() -> None:
    """Goes on whatever it hears."""
    while True:
        with suppress(BaseException):
            while True:
                time.sleep(0.01)


@job(timeout=0.3, max_retries=0)
def deaf_in_query(conn: Connection) -> None:
    """Asks again each time its query is cancelled."""
    while True:
        with suppress(BaseException), conn.transaction():
            conn.execute("SELECT pg_sleep(600)")


@job(timeout=0.3, max_retries=0)
async def deaf_async() -> None:
    """Swallows its cancellation."""
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(600)


@job(timeout=0.3, max_retries=0)
async def deaf_in_thread() -> None:
    """Leaves a thread behind that the interpreter waits for at its end."""
    await asyncio.to_thread(time.sleep, 600)


@job(timeout=0.3, max_retries=0)
async def deaf_on_the_loop() -> None:
    """Keeps the loop from everybody."""
    time.sleep(600)  # noqa: ASYNC251


@job(max_retries=0)
async def keep_the_loop(gate: str) -> None:
    """Keeps it from everybody until somebody writes to this pipe, for all of its own time."""
    os.close(os.open(gate, os.O_RDONLY))


@job(timeout=0.3, max_retries=0)
def deaf_with_the_interpreter() -> None:
    """Keeps the interpreter from everybody: a runaway expression never lets go of it."""
    re.match(r"(a+)+$", "a" * 64 + "b")


@job
def crash() -> None:
    """Takes its process along, as a fault in a C extension does."""
    os._exit(9)


_grown: list[bytes] = []


@job
def grow(mebibytes: int) -> None:
    """Keeps what it takes."""
    _grown.append(b"x" * (mebibytes * 1024 * 1024))


def _note(pool: Pool, word: str) -> None:
    with pool.connection() as conn:
        conn.execute("INSERT INTO note VALUES (%s)", [word])


def _hang_unless_told(pool: Pool, ctx: Context) -> None:
    with pool.connection() as conn:
        told = conn.execute("SELECT FROM note WHERE word = 'go'").fetchone()
    if told is None:
        _note(pool, "hanging")
        ctx.wait(600)


@job(min_backoff=10, max_backoff=50)
def in_steps(pool: Pool, ctx: Context, hang_in: str) -> None:
    """Notes each step that it does, and hangs once: between two steps, or within the second."""
    ctx.progress(0.2, "begun")
    ctx.step("one", _note, pool, "one")
    with ctx.step("two") as step:
        if not step.done:
            step.conn.execute("INSERT INTO note VALUES ('two')")
            if hang_in == "step":
                _hang_unless_told(pool, ctx)
    if hang_in == "job":
        _hang_unless_told(pool, ctx)
    ctx.step("three", _note, pool, "three")
    ctx.progress(1)


@job
def polls(pool: Pool, ctx: Context) -> None:
    """A long loop that ends in order when it is asked to, and goes on elsewhere."""
    _note(pool, "polling")
    while not ctx.stopping:
        ctx.wait(600)
    _note(pool, ctx.stopping)
    if ctx.attempt == 1 and ctx.stopping == "shutdown":
        ctx.snooze(0)
