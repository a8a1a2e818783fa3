"""The flow: what people have paused and limited over the whole fleet, as the last heartbeat saw it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from worker.queue.feed import Room


class Flow(NamedTuple):
    """The names of what nothing is claimed of, and of the queues whose limits a claim must keep."""

    paused_queues: frozenset[str] = frozenset()
    paused_actors: frozenset[str] = frozenset()
    limited_queues: frozenset[str] = frozenset()

    @classmethod
    def of(cls, paused_queues: Iterable[str], paused_actors: Iterable[str], limited_queues: Iterable[str] = ()) -> Flow:
        return cls(frozenset(paused_queues), frozenset(paused_actors), frozenset(limited_queues))

    def through(self, rooms: Sequence[Room]) -> Sequence[Room]:
        """
        *rooms* without what is paused, and with the limited queues apart.

        The claim is never given the others' names, so it looks nothing up for them.
        """
        if not any(self):
            return rooms
        apart, limited = self.paused_queues | self.limited_queues, self.limited_queues - self.paused_queues
        return [
            room._replace(
                queues=[name for name in room.queues if name not in apart],
                limited=[name for name in room.queues if name in limited],
                actors=[name for name in room.actors if name not in self.paused_actors],
                holding=[name for name in room.holding if name not in self.paused_actors],
            )
            for room in rooms
        ]
