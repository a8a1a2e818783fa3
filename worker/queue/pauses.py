"""Pauses: the names that nothing is claimed of, as the last heartbeat saw them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from worker.queue.feed import Room


class Pauses(NamedTuple):
    """What is paused at the moment, over the whole fleet."""

    queues: frozenset[str] = frozenset()
    actors: frozenset[str] = frozenset()

    @classmethod
    def of(cls, queues: Iterable[str], actors: Iterable[str]) -> Pauses:
        return cls(frozenset(queues), frozenset(actors))

    def leave_out(self, rooms: Sequence[Room]) -> Sequence[Room]:
        """*rooms* without what is paused: the claim is never given these names, so it looks nothing up."""
        if not (self.queues or self.actors):
            return rooms
        return [
            room._replace(
                queues=[name for name in room.queues if name not in self.queues],
                actors=[name for name in room.actors if name not in self.actors],
                holding=[name for name in room.holding if name not in self.actors],
            )
            for room in rooms
        ]
