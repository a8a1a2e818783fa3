"""
Marks: from where on a claim looks, while there are dead rows before its jobs that nothing may vacuum.

A claim reads its index from the lowest rank on. The entries of jobs that have passed stay there until the table is
vacuumed, which it cannot be as long as somebody holds a transaction open, and each claim would walk past them. So each
worker keeps a mark for each queue: below it there was nothing when it last looked. Jobs do come to be below it: those
of a transaction that was committed late, of a high priority, rescued ones, those let into a lane. They are *strays*: a
full look finds them, and until they are claimed each claim looks at their places as well.

A full look walks past all the dead, so it is rationed: the dearer, the rarer. As long as it costs little, none of this
is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

import psycopg

from worker import clock
from worker.queue.feed import Room, names
from worker.queue.mark_statements import FIND_HEADS
from worker.queue.ration import Ration
from worker.queue.schema import Schema

# Marks are used from so much toil on, in dead entries before the first job: about a quarter of what a claim costs ...
_DEAR = 2000
# ... and no more when a full look costs so little.
_CHEAP = 1000
# What a look costs that meets nothing dead: the way down an index, in pages of twenty.
_WAY_DOWN = 4 * 20
# A mark stays so many seconds behind the clock: who sends a job may commit it a moment after its due time.
_LATE = 1.0
# Where a mark is ahead of the clock, claims look at so many seconds of ranks about the present as well, which follow
# the clock with each heartbeat.
_PRESENT = 6.0
# A mark follows the claims in such steps: seconds.
_STEP = 0.1
# A full look comes no sooner than so many seconds after another, however cheap: an idle worker makes it too.
_SOONEST = 1.0
# It takes about so many seconds at a time, and goes through no fewer seconds of ranks ...
_SLICE = 0.2
_NARROWEST = 10.0
# ... down to so many seconds ago, where slices end: the last one has all that is older.
_OLDEST = 30 * 86400.0
# So many strays of a queue are kept in mind; when there are more, the mark goes back to the first of them.
_STRAYS = 50
# What is meant by the place of a stray: seconds to both sides, more than a float of seconds since 1970 may err.
_PLACE = 0.0005


class Mark(NamedTuple):
    """
    Of one queue; ranks are in seconds since 1970, database clock.

    Args:
        low: Jobs are looked for from here on ...
        strays: ... and at these places below it ...
        present: ... and for some seconds from here on, when the mark is ahead of the clock, as it is where all jobs are
            of a low priority: others would come to be below it.
        head: The first job that the last look has found from the mark on; None when there was none.
    """

    low: float
    strays: tuple[float, ...] = ()
    present: float | None = None
    head: float | None = None


class Stretch(NamedTuple):
    """Ranks of a queue that are looked at, from *low* to *high*; without a bound, all on that side."""

    queue: str
    low: float | None = None
    high: float | None = None


class Search(NamedTuple):
    """
    A look for the first jobs of *stretches*, at most *sizes* of each.

    Args:
        full: Also below the marks, from *low* to *high*; without *low* from the first rank on.
    """

    stretches: Sequence[Stretch]
    sizes: Sequence[int]
    actors: Sequence[str]
    due_low: float | None
    full: bool = False
    low: float | None = None
    high: float = 0.0

    def send(self, conn: psycopg.Connection[Any], schema: Schema) -> psycopg.Cursor[Any]:
        parameters = {
            **_columns(self.stretches),
            "sizes": list(self.sizes),
            "actors": list(self.actors),
            "due_low": self.due_low,
        }
        return conn.execute(schema.render(FIND_HEADS).encode(), parameters)


class Marks:
    """The marks of this worker. On the dispatcher's thread only."""

    def __init__(self) -> None:
        self.are_used = False
        """Whether dead rows make claims dear; otherwise every look is a full one."""
        self.due_low: float | None = None
        """The same for scheduled jobs: none of them was due before this, in seconds since 1970."""
        self._marks: dict[str, Mark] = {}
        self._served: tuple[list[str], list[str]] = ([], [])
        self._full = Ration(soonest=_SOONEST)
        self._step_at = 0.0
        # A full look goes down from the marks in slices, as wide as can be looked at in a moment: mostly one is all.
        self._width = self._first_width = float("inf")
        self._next_high: float | None = None
        self._toil = 0

    @property
    def again_at(self) -> float:
        """When the next full look is due, monotonic."""
        return self._full.again_at if self.are_used else float("inf")

    def parameters(self, queues: Iterable[str], prefix: str = "") -> dict[str, Any]:
        """Where jobs of *queues* are to be looked for, as statements are told."""
        if not self._marks:
            return {f"{prefix}queues": list(queues), f"{prefix}lows": None, f"{prefix}highs": None}
        return _columns(self._stretches(queues), prefix)

    def _stretches(self, queues: Iterable[str]) -> list[Stretch]:
        found = []
        for queue in queues:
            mark = self._marks.get(queue)
            found.append(Stretch(queue, mark.low if mark is not None else None))
            if mark is not None:
                found += [Stretch(queue, low, high) for low, high in _below(mark)]
        return found

    def note(self, served: Sequence[Room], toil: int) -> None:
        """What it has cost to look for the first jobs of *served* without marks."""
        if not self.are_used and _beyond_the_way(toil, len(names(served)[0])) >= _DEAR:
            self.are_used = True
            self._full.again_at = 0.0

    def search(self, served: Sequence[Room], *, moving: bool) -> Search | None:
        """What is to be looked for in this pass, if anything; *moving* when the marks may have to follow claims."""
        if not self.are_used:
            return None
        queues, actors = names(served)
        if (queues, actors) != self._served:
            # What nobody here could claim until now was passed by.
            self._served = queues, actors
            self._marks = {queue: mark for queue, mark in self._marks.items() if queue in queues}
            self._next_high, self._full.again_at = None, 0.0
        full = self._full.is_due
        if not full and not (moving and clock.monotonic() >= self._step_at):
            return None
        stretches = self._stretches(queues)
        sizes = [_STRAYS + 1 if stretch.high is not None else 2 for stretch in stretches]
        if not full:
            return Search(stretches, sizes, actors, self.due_low)
        self._full.begin()
        low, high = self._slice()
        below = [
            Stretch(queue, low, min(high, mark.low))
            for queue, mark in self._marks.items()
            if low is None or low < mark.low
        ]
        return Search([*stretches, *below], [*sizes, *[_STRAYS + 1] * len(below)], actors, None, True, low, high)

    def _slice(self) -> tuple[float | None, float]:
        top = max((mark.low for mark in self._marks.values()), default=0.0)
        high = top if self._next_high is None else min(self._next_high, top)
        low = high - self._width
        return (low if low > top - _OLDEST else None), high

    def learn(self, search: Search, found: psycopg.Cursor[Any], *, claimed: AbstractSet[str], workers: int) -> bool:
        """
        Set the marks by what *search* has found.

        Args:
            claimed: The queues of which something was claimed just before: who is still their first was passed by.
            workers: How many share the cost of full looks.

        Returns:
            Whether there are jobs that a claim would not have come to.
        """
        before, heads, due, after, at, took = found.fetchone() or (0, None, None, 0, 0.0, 0.0)
        self._step_at = clock.monotonic() + _STEP
        self.due_low = at - _LATE if due is None else min(due, at - _LATE)
        by_queue: dict[str, list[tuple[Stretch, list[float]]]] = {}
        for stretch, ranks in zip(search.stretches, heads or [], strict=True):
            by_queue.setdefault(stretch.queue, []).append((stretch, [float(rank) for rank in ranks]))
        for queue, looked in by_queue.items():
            # Places may overlap.
            below = sorted({rank for stretch, ranks in looked if stretch.high is not None for rank in ranks})
            ahead = [rank for stretch, ranks in looked if stretch.high is None for rank in ranks]
            self._marks[queue] = _moved(self._marks.get(queue), below, ahead, at - _LATE, passed=queue in claimed)
        if search.full:
            self._full.spend(took, workers)
            toil = _beyond_the_way(after - before, len(search.stretches))
            # Among many jobs it has stopped before the dead.
            stopped = any(len(ranks) > _STRAYS for ranks in heads or [])
            self._have_looked(search, took, _CHEAP if stopped else toil)
        return search.full and any(mark.strays for mark in self._marks.values())

    def _have_looked(self, search: Search, took: float, toil: int) -> None:
        width = _OLDEST if search.low is None else search.high - search.low
        self._width = max(_NARROWEST, width * _SLICE / max(took, 0.001))
        if self._next_high is None:
            self._first_width = self._width
        self._toil += toil
        self._next_high = search.low
        if search.low is None:
            self._width = self._first_width
            if self._toil < _CHEAP:
                self.forget()
            self._toil = 0

    def add(self, strays: Iterable[tuple[str, float]]) -> bool:
        """Jobs were made available at these ranks of these queues; whether any of them is below a mark."""
        below = False
        for queue, rank in strays:
            mark = self._marks.get(queue)
            if mark is not None and float(rank) < mark.low:
                self._marks[queue] = _with(mark, float(rank))
                below = True
        return below

    def hurry(self) -> None:
        """There may be jobs below the marks: take the next full look soon."""
        self._full.hurry()

    def forget(self) -> None:
        """Look everywhere again, as if nothing were known."""
        self.are_used = False
        self.due_low = None
        self._marks.clear()
        self._width = self._first_width = float("inf")
        self._next_high, self._toil = None, 0


def _below(mark: Mark) -> list[tuple[float, float]]:
    """What is looked at below *mark*, once: a job that a claim finds twice takes the room of another."""
    spans = [(stray - _PLACE, stray + _PLACE) for stray in mark.strays]
    if mark.present is not None:
        spans.append((mark.present, min(mark.present + _PRESENT, mark.low)))
    merged: list[tuple[float, float]] = []
    for low, high in sorted(spans):
        if merged and low <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(high, merged[-1][1])
        else:
            merged.append((low, high))
    return merged


def _columns(stretches: Sequence[Stretch], prefix: str = "") -> dict[str, Any]:
    return {
        f"{prefix}queues": [stretch.queue for stretch in stretches],
        f"{prefix}lows": [stretch.low for stretch in stretches],
        f"{prefix}highs": [stretch.high for stretch in stretches],
    }


def _beyond_the_way(toil: int, looks: int) -> int:
    return toil - _WAY_DOWN * (looks + 1)  # and the one at the scheduled jobs


def _moved(mark: Mark | None, below: list[float], ahead: list[float], latest: float, *, passed: bool) -> Mark:
    """
    Where a mark goes that was at *mark*.

    Args:
        below: The jobs that there are below it ...
        ahead: ... and the first of the others.
        latest: What is due later may have been sent and not committed yet.
        passed: Others were claimed, so that the first is locked, or not for a worker as busy as this one.
    """
    if mark is not None and len(below) > _STRAYS:
        return Mark(below[0], head=below[0])
    if mark is not None and passed and ahead[:1] == [mark.head] and ahead[0] < latest and len(below) < _STRAYS:
        below, ahead = [*below, ahead[0]], ahead[1:]
    head = ahead[0] if ahead else None
    low = latest if head is None else head if head <= latest else max(latest, head - _LATE)
    low = max(low, mark.low) if mark is not None else low
    strays = tuple(stray for stray in below if stray < low)
    return Mark(low, strays, latest if low > latest else None, head)


def _with(mark: Mark, stray: float) -> Mark:
    if len(mark.strays) >= _STRAYS:
        return Mark(min(stray, *mark.strays))
    return mark._replace(strays=(*mark.strays, stray))
