"""What is looked at all the while: sessions and memory of each worker."""

from __future__ import annotations

import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import LiteralString, NamedTuple

import psycopg

from tests.chaos.faults.fleet import POOL_SIZE, Worker
from tests.chaos.sampler import observing

# A worker's sessions are called by the id of its boot, so those of a dead one count apart from its successor's.
_SESSIONS: LiteralString = """
    SELECT count(*), array_agg(concat_ws(
        ' ', session.pid, session.state, 'since', session.backend_start::time(3), session.state_change::time(3),
        left(session.query, 40)
    ))
    FROM pg_stat_get_activity(NULL) AS session
    WHERE session.application_name LIKE 'carpool %' GROUP BY left(session.application_name, 44)"""
_LOOK = 0.1
_BLINK = 0.05
_WEIGH = 2.0
_PATIENCE = 60.0
# What is filled once (arenas, caches, compiled patterns) is filled by then.
_WARM = 60.0
_GROWTH = 1.10
_GROWTH_MB = 10.0
# A process that lived for less says nothing about growth.
_ENOUGH = 60


class Weight(NamedTuple):
    """The memory of one process over its life: medians of the second and the last fifth, and the most, in MiB."""

    worker: str
    lived: float
    early: float
    late: float
    most: float

    @property
    def is_flat(self) -> bool:
        return self.late <= max(self.early * _GROWTH, self.early + _GROWTH_MB)


class Watching(threading.Thread):
    """Looks until it is told to stop."""

    def __init__(self, url: Callable[[], str], workers: Sequence[Worker]) -> None:
        super().__init__(name="watching")
        self._url = url
        self._workers = workers
        self._over = threading.Event()
        self._weighed_at = 0.0
        self._sizes: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.most_sessions = self.num_looks = 0
        self._allowance = 0

    def run(self) -> None:
        while not self._over.wait(_LOOK):
            with suppress(psycopg.Error), observing(self._url()) as conn:
                while not self._over.wait(_LOOK):
                    self._weigh()
                    self._look(conn)
            self._weigh()

    def _look(self, conn: psycopg.Connection) -> None:
        found = conn.execute(_SESSIONS).fetchall()
        if self._allowance and any(number > POOL_SIZE for number, _ in found):
            # What was given up while nothing passed, the server takes up when something does, and finds nobody there.
            time.sleep(_BLINK)
            found = conn.execute(_SESSIONS).fetchall()
        for number, sessions in found:
            self._count(number - self._allowance, sessions)
        self.num_looks += 1

    def _count(self, number: int, sessions: Sequence[str]) -> None:
        if number > max(self.most_sessions, POOL_SIZE):
            print(f"{datetime.now(UTC):%H:%M:%S.%f} {number} sessions of {POOL_SIZE}:", *sessions, sep="\n    ")
        self.most_sessions = max(self.most_sessions, number)

    def _weigh(self) -> None:
        if (now := time.monotonic()) < self._weighed_at + _WEIGH:
            return
        self._weighed_at = now
        for worker in self._workers:
            if (size := worker.memory) is not None:
                self._sizes[worker.name, worker.process.pid].append(size)

    def allow(self, number: int) -> None:
        """From now on a worker may have *number* sessions beyond its pool."""
        self._allowance = number

    def stop(self) -> None:
        self._over.set()
        self.join(_PATIENCE)
        assert not self.is_alive(), "the watcher does not end"

    def weights(self) -> list[Weight]:
        """Of each process that lived long enough to say something; the first minute of a life does not count."""
        return [
            _weight(name, sizes[int(_WARM / _WEIGH) :])
            for (name, _), sizes in sorted(self._sizes.items())
            if len(sizes) >= _ENOUGH
        ]


def _weight(name: str, sizes: list[float]) -> Weight:
    fifth = max(1, len(sizes) // 5)
    early, late = statistics.median(sizes[fifth : 2 * fifth]), statistics.median(sizes[-fifth:])
    return Weight(name, len(sizes) * _WEIGH, early, late, max(sizes))
