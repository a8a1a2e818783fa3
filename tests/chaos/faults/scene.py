"""Server, workers, and one fault after the other."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import LiteralString

import psycopg

from tests.chaos.faults.fleet import Worker
from tests.chaos.faults.kinds import Fault, Place
from tests.chaos.sampler import observing

_LOOK = 0.05
_PATIENCE = 60.0
_FIRST: LiteralString = (
    "SELECT worker, min(at) FROM effect WHERE at > %(since)s AND worker = ANY(%(names)s) GROUP BY worker"
)


class Scene:
    """
    Strikes until it is enough; every fault as often as the others, in an order drawn by chance.

    Args:
        allow: Told how many sessions a worker may have beyond its pool from now on.
    """

    def __init__(
        self,
        place: Place,
        workers: Sequence[Worker],
        faults: Sequence[Fault],
        allow: Callable[[int], None],
    ) -> None:
        self.workers = workers
        self._allow = allow
        self._place, self._faults = place, faults
        self._deck: list[Fault] = []
        self._felt: dict[str, list[float]] = defaultdict(list)
        self.lame: list[str] = []
        """Workers that did nothing more after a fault."""

    @property
    def chance(self) -> random.Random:
        return self._place.chance

    @property
    def felt(self) -> dict[str, list[float]]:
        """For each fault, in the order of their list, how long it was felt after it was over."""
        return {each.name: self._felt[each.name] for each in self._faults if each.name in self._felt}

    def strike(self) -> str:
        """One fault, from its beginning until every worker that it hit works again; its name."""
        if not self._deck:
            self._deck = self.chance.sample(self._faults, len(self._faults))
        fault = self._deck.pop()
        self._allow(fault.over_the_cap)
        hit = fault.strike(self._place, self.workers)
        if (worked := self.wait_for(hit)) is not None:
            self._felt[fault.name].append(worked)
        self._place.hold(0.0, 2.0)
        self._allow(0)
        return fault.name

    def wait_for(self, hit: Sequence[Worker]) -> float | None:
        """
        Until each of *hit* has done another job; too long a wait makes a lame one.

        Returns:
            Seconds from now until the last of them began to work, by the effects themselves; None if one did not.
        """
        since = datetime.now(UTC)
        first: dict[str, datetime] = {}
        names = [worker.name for worker in hit]
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and len(first) < len(names):
            for worker in hit:
                worker.revive()
            with suppress(psycopg.Error), observing(self._place.pair.url) as conn:
                while time.monotonic() < deadline and all(worker.process.poll() is None for worker in hit):
                    first = dict(conn.execute(_FIRST, {"since": since, "names": names}))
                    if len(first) == len(names):
                        break
                    time.sleep(_LOOK)
            time.sleep(_LOOK)
        self.lame += [name for name in names if name not in first]
        return None if self.lame else (max(first.values()) - since) / timedelta(seconds=1)
