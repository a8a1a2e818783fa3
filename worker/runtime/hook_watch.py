"""The hook watch: which jobs are in their middleware's hooks, since when, and which of them will not come out."""

from __future__ import annotations

import threading

from worker import clock
from worker.errors import HookStuck
from worker.queue.delivery import Delivery
from worker.runtime.stack import stack_of_thread

# What the hooks before a body, or those behind it, may take. Far more than a database that comes back lets them wait;
# nothing may interrupt them, because what they have half done nobody could put right.
PATIENCE = 30.0


class HookRun:
    """The hooks before a body, or those behind it, on the thread that runs them; made by that thread."""

    __slots__ = ("delivery", "reported", "since", "thread", "where_in")

    def __init__(self, delivery: Delivery, where_in: str) -> None:
        self.delivery = delivery
        self.where_in = where_in
        self.thread = threading.get_ident()
        self.since = clock.monotonic()
        self.reported = False

    @property
    def overdue_at(self) -> float:
        """When it has taken too long, monotonic; as the interrupt of a body."""
        return self.since + PATIENCE

    def where(self) -> str:
        return stack_of_thread(self.thread)

    def verdict(self) -> HookStuck:
        """What its job fails with."""
        return HookStuck(f"a hook {self.where_in} never returned, so its process was ended\n{self.where()}".rstrip())


class HookWatch:
    """
    Those that are under way.

    No lock: each is one entry of a dict, put there and taken away by its own thread at a job's every turn.
    """

    def __init__(self) -> None:
        self._runs: dict[int, HookRun] = {}

    def enter(self, delivery: Delivery, where_in: str) -> None:
        self._runs[id(delivery)] = HookRun(delivery, where_in)

    def leave(self, delivery: Delivery) -> None:
        self._runs.pop(id(delivery), None)

    def overdue(self, longer: float = 0.0) -> list[HookRun]:
        """Those that have taken too long, and *longer* seconds more."""
        now = clock.monotonic()
        return [run for run in list(self._runs.values()) if now >= run.overdue_at + longer]
