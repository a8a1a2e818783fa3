"""Jobs whose middleware never lets them go; in a module of its own, because it shortens a worker's patience."""

from __future__ import annotations

import time
from typing import Any

import dramatiq
from dramatiq.middleware import Middleware
from psycopg import Connection

from worker import job
from worker.runtime import hook_watch

hook_watch.PATIENCE = 2.0


class Snare(Middleware):
    def before_process_message(self, broker: Any, message: Any) -> None:
        if message.actor_name.startswith("snared_before"):
            time.sleep(600)

    def after_process_message(self, broker: Any, message: Any, *, result: Any = None, exception: Any = None) -> None:
        if message.actor_name.startswith("snared_after"):
            time.sleep(600)


dramatiq.get_broker().add_middleware(Snare())


@job(max_retries=0)
def snared_before(conn: Connection) -> None:
    conn.execute("INSERT INTO note VALUES ('body')")


@job(max_retries=0)
async def snared_before_async() -> None: ...


@job(max_retries=0)
def snared_after(conn: Connection) -> None:
    conn.execute("INSERT INTO note VALUES ('body')")


@job(max_retries=0)
async def snared_after_async() -> None: ...


@job(min_backoff=3_600_000, max_backoff=3_600_000)
def snared_after_and_retried() -> None: ...


@job(max_retries=0)
def beside(conn: Connection, seconds: float) -> None:
    conn.execute("SELECT pg_sleep(%s)", [seconds])
