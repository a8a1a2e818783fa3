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

# The sessions of every worker on this database, and how many the registered ones may have; the demo's own sessions
# call themselves "demo ...".
COUNT_SESSIONS: LiteralString = """
    SELECT
        (SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name LIKE 'carpool%'),
        (SELECT coalesce(sum(pool_size), 0) FROM worker.worker)"""

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


class SessionWatch:
    """
    Counts the sessions of workers a hundred times a second, in `pg_stat_activity`, from a session of its own.

    Args:
        allowed: How many there may be, while no second worker is registered.
    """

    def __init__(self, url: str, *, allowed: int) -> None:
        self.now = 0
        self.most = 0
        self.too_many = 0
        """The most that were seen above what was allowed at that moment."""
        self._allowed = allowed
        self._registered = 0
        self._conn = connect(url, name="demo watch")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="session-watch", daemon=True)

    def left(self, *, timeout: float) -> int:
        """Sessions that no registered worker accounts for, once there are none or *timeout* seconds are over."""
        deadline = time.monotonic() + timeout
        while self.now > self._registered and time.monotonic() < deadline:
            time.sleep(INTERVAL)
        return max(0, self.now - self._registered)

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL):
            try:
                row = self._conn.execute(COUNT_SESSIONS, prepare=True).fetchone()
            except psycopg.Error:
                return  # the database is gone, which the story's own connection tells
            if row is not None:
                self._note(*row)

    def _note(self, sessions: int, registered: int) -> None:
        self.now, self._registered = sessions, registered
        self.most = max(self.most, sessions)
        self.too_many = max(self.too_many, sessions - max(self._allowed, registered))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(STOP_TIMEOUT)
        self._conn.close()
