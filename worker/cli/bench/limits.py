"""What no queue can be faster than on this server: its round trip and its commit."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import LiteralString, NamedTuple

import psycopg

from worker.queue.schema import Schema

CREATE_PROBE: LiteralString = "CREATE TABLE {schema}.probe (number integer NOT NULL)"
WRITE_PROBE: LiteralString = "INSERT INTO {schema}.probe (number) VALUES (1)"

_TRIPS = 100
_COMMITS = 50
_PATIENCE = 5.0


class Limits(NamedTuple):
    """Medians, in seconds."""

    round_trip: float
    """A statement that does nothing, and its answer."""
    commit: float
    """A statement that writes one row and commits it, its round trip included."""
    synchronous_commit: str
    server_version: str

    @property
    def disk(self) -> float:
        """What a commit takes beyond its round trip: mostly the wait for the disk, or for a replica."""
        return max(0.0, self.commit - self.round_trip)

    @classmethod
    def measure(cls, conn: psycopg.Connection, schema: Schema) -> Limits:
        """On *conn*, which is in autocommit mode; writes into a table of *schema*."""
        conn.execute(schema.render(CREATE_PROBE).encode())
        write = schema.render(WRITE_PROBE).encode()
        row = conn.execute("SELECT current_setting('synchronous_commit'), current_setting('server_version')").fetchone()
        synchronous_commit, version = row or ("", "")
        return cls(
            _median(lambda: conn.execute("SELECT 1"), _TRIPS),
            _median(lambda: conn.execute(write), _COMMITS),
            synchronous_commit,
            version.split()[0],
        )


def _median(call: Callable[[], object], number: int) -> float:
    """Of *number* calls, or of as many as fit into some seconds."""
    call()
    taken: list[float] = []
    until = time.monotonic() + _PATIENCE
    while len(taken) < number and (not taken or time.monotonic() < until):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)
