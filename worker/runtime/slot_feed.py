"""The feed: puts claimed jobs before the slots, never more than there are slots and connections for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from uuid import UUID

from dramatiq import Actor

from worker import log
from worker.errors import LeaseLost
from worker.queue.actor import Job
from worker.queue.broker import PostgresBroker
from worker.queue.claim import Claim
from worker.queue.dispatcher import Room
from worker.runtime.job_loop import JobLoop, body_of
from worker.runtime.job_threads import JobThreads
from worker.runtime.watchdog import Watchdog

logger = log.get_logger(__name__)


class SlotFeed:
    """
    Admits jobs against two limits: *slots* for all of them, *checkouts* for those that take a connection.

    Nothing is claimed ahead of a free slot, so that no job waits here while another worker is idle.
    """

    def __init__(
        self, broker: PostgresBroker, *, slots: int, checkouts: int, queues: Sequence[str] | None = None
    ) -> None:
        self._broker = broker
        self._slots = slots
        self._checkouts = checkouts
        self._queues = queues
        self._lock = threading.Lock()
        self._running: dict[tuple[UUID, int], bool] = {}  # whether it takes a connection
        self._threads: JobThreads | None = None
        self._loop: JobLoop | None = None
        self._watchdog: Watchdog | None = None
        self.idle = threading.Event()
        self.idle.set()

    def connect(self, threads: JobThreads, loop: JobLoop, watchdog: Watchdog) -> None:
        """Open the slots: before this there is no room."""
        self._threads, self._loop, self._watchdog = threads, loop, watchdog

    @property
    def queues(self) -> list[str]:
        """The queues served: those asked for, or every declared one."""
        return sorted(self._broker.get_declared_queues() if self._queues is None else self._queues)

    @property
    def actors(self) -> list[str]:
        """The names of the actors that this process knows."""
        return sorted(self._broker.actors)

    # Called by the dispatcher

    def rooms(self) -> Iterator[Room]:
        """First for jobs that take a connection, then for the rest; each sees what the one before has filled."""
        actors = dict(self._broker.actors)
        queues = self.queues
        if self._slots <= self._checkouts:
            yield Room(queues, _names(actors, lambda _: True), self._free())
            return
        yield Room(queues, _names(actors, takes_connection), self._free(with_connection=True))
        yield Room(queues, _names(actors, lambda actor: not takes_connection(actor)), self._free())

    def put(self, claims: list[Claim]) -> None:
        assert self._threads is not None  # noqa: S101  # there was no room before
        assert self._loop is not None  # noqa: S101
        for claim in claims:
            actor = self._broker.actors.get(claim.actor)
            with self._lock:
                self._running[claim.proof] = actor is not None and takes_connection(actor)
                self.idle.clear()
            if actor is not None and body_of(actor) is not None:
                self._loop.start(claim)
            else:
                self._threads.start(claim)

    def lost(self, claims: list[Claim]) -> None:
        logger.error("worker.leases_lost", jobs=len(claims))
        gone = {claim.proof for claim in claims}
        if self._watchdog is not None:
            self._watchdog.interrupt(LeaseLost, lambda delivery: delivery.claim.proof in gone)

    # Called by the slots

    def finished(self, claim: Claim) -> None:
        """The slot of *claim* is free."""
        with self._lock:
            self._running.pop(claim.proof, None)
            if not self._running:
                self.idle.set()
        if self._broker.dispatcher is not None:
            self._broker.dispatcher.wake()

    @property
    def num_running(self) -> int:
        return len(self._running)

    def _free(self, *, with_connection: bool = False) -> int:
        if self._threads is None:
            return 0
        with self._lock:
            free = self._slots - len(self._running)
            return min(free, self._checkouts - sum(self._running.values())) if with_connection else free


def takes_connection(actor: Actor[..., object]) -> bool:
    """Whether a run of *actor* holds a connection from beginning to end."""
    return isinstance(actor, Job) and actor.signature.takes_connection


def _names(actors: Mapping[str, Actor[..., object]], chosen: Callable[[Actor[..., object]], bool]) -> list[str]:
    # By every name that an actor has or had.
    return [name for name, actor in actors.items() if chosen(actor)]
