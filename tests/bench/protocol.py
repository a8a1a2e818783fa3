"""What went over the wire: statements, round trips and commits, read from libpq's own trace of the protocol."""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from worker.pool import Connection

# Time, F(rontend) or B(ackend), length, message, what is in it.
_MESSAGE = re.compile(rb"^[-\d]+ [:.\d]+\t([FB])\t\d+\t(\w+)(.*)$", re.MULTILINE)


class Traffic(NamedTuple):
    """Messages from the client; a *trip* is one wait for the server, a *commit* one transaction that it ended well."""

    statements: int
    trips: int
    commits: int

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


class Wire:
    """Counts the traffic of the connections it watches; a context manager."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._traces: list[Path] = []
        self._numbers = itertools.count()

    def __enter__(self) -> Wire:
        self._folder = Path(self._open.enter_context(tempfile.TemporaryDirectory()))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def watch(self, conn: Connection) -> None:
        """Count what *conn* says from here on."""
        # Several may be opened at once, by threads of the pool.
        path = self._folder / str(next(self._numbers))
        trace = self._open.enter_context(path.open("ab"))
        conn.pgconn.trace(trace.fileno())
        self._traces.append(path)

    @property
    def num_connections(self) -> int:
        """How many were opened so far, whether or not they still are."""
        return len(self._traces)

    def traffic(self, *, listening: bool | None = None) -> Traffic:
        """So far; with *listening* only of the session that listens, the dispatcher's, or only of the others."""
        traces = [trace.read_bytes() for trace in self._traces]
        chosen = [trace for trace in traces if listening is None or (b"LISTEN" in trace) is listening]
        return Traffic(*map(sum, zip((0, 0, 0), *map(_count, chosen), strict=True)))


@contextmanager
def watched() -> Iterator[Wire]:
    """Count the traffic of every connection of the pool that is opened within the block."""
    init = Connection.__init__

    def watch(conn: Connection, *args: Any, **kwargs: Any) -> None:
        init(conn, *args, **kwargs)
        wire.watch(conn)

    with Wire() as wire, mock.patch.object(Connection, "__init__", watch):
        yield wire


def _count(trace: bytes) -> Traffic:
    statements = trips = commits = 0
    said = in_transaction = False
    for sender, message, rest in _MESSAGE.findall(trace):
        if sender == b"F":
            statements += message in (b"Query", b"Execute")
            trips += message in (b"Query", b"Sync")
            said |= message in (b"Query", b"Execute")
        elif message == b"CommandComplete":
            # A rollback ends a transaction too; it is no commit.
            said &= rest.strip(b' \t"') != b"ROLLBACK"
        elif message == b"ErrorResponse":
            said = False
        elif message == b"ReadyForQuery":
            idle = rest.strip() == b"I"
            commits += idle and (said or in_transaction)
            said, in_transaction = False, not idle
    return Traffic(statements, trips, commits)
