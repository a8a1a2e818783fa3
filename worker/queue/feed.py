"""The feed: what puts claimed jobs before the slots, as the dispatcher sees it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from worker.queue.claim import Claim


class Room(NamedTuple):
    """
    How many more jobs, of which queues and actors, can be claimed.

    Args:
        limit: How many at most; 0 says what is served at all.
        free: How many of them can start at once, the others ahead of their slot; all of them when None.
        holding: Actors beside *actors* whose runs hold a connection, of which *checkouts* can start.
        idle: Nothing runs here, so that a suspect would run alone.
        limited: Queues beside *queues* of which only so many jobs may run or start over the whole fleet.
    """

    queues: Sequence[str]
    actors: Sequence[str]
    limit: int
    free: int | None = None
    holding: Sequence[str] = ()
    checkouts: int = 0
    idle: bool = False
    limited: Sequence[str] = ()

    @property
    def is_tight(self) -> bool:
        """Whether there may be jobs that it has no room for, so that finding none means nothing."""
        return self.limit <= 0 or self.free == 0 or (bool(self.holding) and self.checkouts <= 0)


def names(rooms: Sequence[Room]) -> tuple[list[str], list[str]]:
    """The queues and the actors of *rooms*."""
    queues = {queue for room in rooms for queue in (*room.queues, *room.limited)}
    actors = {actor for room in rooms for actor in (*room.actors, *room.holding)}
    return sorted(queues), sorted(actors)


class Feed(ABC):
    """What puts claimed jobs before the slots. Called on the dispatcher's thread; must not block."""

    @abstractmethod
    def rooms(self) -> Sequence[Room]:
        """What can be claimed now."""

    @abstractmethod
    def put(self, claims: list[Claim]) -> None:
        """Start these, or keep those that were claimed ahead until there is a slot."""

    @abstractmethod
    def lost(self, claims: list[Claim]) -> None:
        """These belong to others by now."""

    @abstractmethod
    def cancel(self, claims: list[Claim]) -> None:
        """Somebody has cancelled these: end them. Called again and again until they are settled."""

    @property
    def has_lanes(self) -> bool:
        """Whether a job that is known here has a limit, so that somebody here must let jobs into lanes."""
        return False

    @property
    def has_rates(self) -> bool:
        """Whether a job that is known here has a rate, so that somebody here must clear jobs for their start."""
        return False

    def overdue(self) -> list[Claim]:
        """Hand out, once, what was claimed ahead and has waited too long: others may have a slot for it."""
        return []

    def begun(self) -> list[Claim]:
        """Tell, once, what was claimed ahead and runs by now: it counts as running if this worker dies."""
        return []

    @property
    def leisure(self) -> float:
        """For how many seconds outcomes may be gathered, because there are other jobs to run meanwhile."""
        return 0.0

    @property
    def look_at(self) -> float:
        """When one of these two may have something new, monotonic."""
        return float("inf")
