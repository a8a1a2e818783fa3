"""What the database says while the worker runs: sessions, counted often, and the counts that are shown."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import LiteralString, NamedTuple, Self

import psycopg

from worker.cli.database import connect

INTERVAL = 0.01
STOP_TIMEOUT = 5.0

# By worker, because each has its own limit and somebody may start a second one. The demo's own sessions call
# themselves "demo ...". In a job's transaction a session's name goes on behind the worker's 44 bytes.
COUNT_SESSIONS: LiteralString = """
    SELECT count(*)
    FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'carpool %'
    GROUP BY left(application_name, 44)
    ORDER BY count(*) DESC
    LIMIT 1"""

# Sessions of workers that have signed off, or never signed on.
COUNT_LEFT: LiteralString = """
    SELECT count(*)
    FROM pg_stat_activity
    WHERE datname = current_database()
        AND application_name LIKE 'carpool %'
        AND left(application_name, 44) NOT IN (SELECT 'carpool ' || id FROM worker.worker)"""

# What waits does not count the schedule's own jobs, or the queue would never be empty for long.
COUNT_EVERYTHING: LiteralString = """
    SELECT
        (SELECT count(*) FROM inventory.file) AS files,
        (SELECT count(*) FROM worker.job WHERE actor <> 'sample_progress') AS waiting,
        (SELECT count(*) FROM worker.job_history WHERE outcome = 'done') AS done,
        (SELECT count(*) FROM worker.job_dead) AS dead,
        (SELECT count(*) FROM worker.job_history
            WHERE outcome = 'done' AND actor = 'sample_progress') AS ticks"""


class Counts(NamedTuple):
    """Rows of the inventory, jobs that wait or run, jobs that are done or dead, and done jobs of the schedule."""

    files: int
    waiting: int
    done: int
    dead: int
    ticks: int


def counts(conn: psycopg.Connection) -> Counts:
    """The counts of now."""
    return Counts(*conn.execute(COUNT_EVERYTHING).fetchone() or ())


def sessions_left(conn: psycopg.Connection, *, timeout: float) -> int:
    """How many sessions no living worker owns: none, or what there is after *timeout* seconds."""
    deadline = time.monotonic() + timeout
    while True:
        (left,) = conn.execute(COUNT_LEFT).fetchone() or (0,)
        if left == 0 or time.monotonic() > deadline:
            return int(left)
        time.sleep(INTERVAL)


class SessionWatch:
    """Counts the worker's sessions a hundred times a second, in `pg_stat_activity`, from a session of its own."""

    def __init__(self, url: str) -> None:
        self.now = 0
        self.most = 0
        self._conn = connect(url, name="demo watch")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="session-watch", daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL):
            try:
                row = self._conn.execute(COUNT_SESSIONS, prepare=True).fetchone()
            except psycopg.Error:
                return  # the database is gone, which the story's own connection tells
            self.now = row[0] if row else 0
            self.most = max(self.most, self.now)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(STOP_TIMEOUT)
        self._conn.close()
