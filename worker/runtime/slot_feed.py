"""The slot feed: puts claimed jobs into slots, never more at once than there are slots and connections for."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple
from uuid import UUID

from dramatiq import Actor

from worker import clock, log
from worker.errors import Cancelled, LeaseLost
from worker.queue.actor import Job
from worker.queue.broker import PostgresBroker
from worker.queue.claim import Claim
from worker.queue.feed import Feed, Room
from worker.queue.settlement import CANCELLED, Outcome, Settlement
from worker.runtime.job_loop import JobLoop, body_of
from worker.runtime.job_threads import JobThreads
from worker.runtime.lookahead import Lookahead
from worker.runtime.watchdog import Watchdog

logger = log.get_logger(__name__)

# What has waited for a slot for so long is given back.
_PATIENCE = 0.05
# While jobs wait in the line, what the others have come to is gathered for so long: nobody waits for it.
_GATHERING = 0.005
# What was claimed ahead and has run for so long is no longer taken for a bystander should this worker die.
_MARK_AFTER = 0.01
# Of the slots, but one at least: so many may be had twice, by a job that is stuck and by one that runs instead. Each of
# the former keeps a thread, memory, perhaps a connection. If more than half are stuck, it is no longer one bad job but
# what they share, say a service that does not answer: what runs instead would be next, and more threads no remedy.
_MAX_ASIDE = 0.5


class Run:
    """A job in its slot."""

    __slots__ = ("claim", "holds", "marked", "started_at")

    def __init__(self, claim: Claim, *, holds: bool) -> None:
        self.claim = claim
        self.holds = holds  # a connection, from beginning to end
        self.marked = not claim.ahead  # as running, in the database
        self.started_at = clock.monotonic()


class Aside(NamedTuple):
    """How a job was put aside: the thread that it keeps and the one that runs jobs instead, and how many are by now."""

    thread: str | None
    successor: str | None
    number: int


class SlotFeed(Feed):
    """
    Admits jobs against two limits: *slots* for all of them, *checkouts* for those that take a connection.

    What is claimed ahead of a slot waits in a line, in the order of its claim, for moments: then it is given back.
    A job that is stuck is put aside: its slot is another's until it comes back, but it keeps its connection and runs.
    """

    def __init__(
        self, broker: PostgresBroker, *, slots: int, checkouts: int, queues: Sequence[str] | None = None
    ) -> None:
        self._broker = broker
        self._slots = slots
        self._checkouts = checkouts
        self._queues = queues
        self._lock = threading.Lock()
        self._running: dict[tuple[UUID, int], Run] = {}
        self._aside: dict[tuple[UUID, int], Run] = {}
        self._line: deque[tuple[float, Claim]] = deque()
        self._lookahead = Lookahead()
        self._low = 0  # when so few wait in the line, more should be claimed
        self._threads: JobThreads | None = None
        self._loop: JobLoop | None = None
        self._loop_is_stuck = False
        self._watchdog: Watchdog | None = None
        self.idle = threading.Event()
        self.idle.set()

    def connect(self, threads: JobThreads, loop: JobLoop, watchdog: Watchdog) -> None:
        """Open the slots: before this there is no room."""
        self._threads, self._loop, self._watchdog = threads, loop, watchdog
        if self._broker.dispatcher is not None:
            self._broker.dispatcher.wake()

    @property
    def queues(self) -> list[str]:
        """The queues served: those asked for, or every declared one."""
        return sorted(self._broker.get_declared_queues() if self._queues is None else self._queues)

    @property
    def actors(self) -> list[str]:
        """The names of the actors that this process knows."""
        return sorted(self._broker.actors)

    # Called by the dispatcher

    @property
    def has_lanes(self) -> bool:
        return self._broker.has_lanes

    @property
    def has_rates(self) -> bool:
        return self._broker.has_rates

    def rooms(self) -> list[Room]:
        actors = dict(self._broker.actors)
        if self._loop_is_stuck:
            actors = {name: actor for name, actor in actors.items() if not runs_on_loop(actor)}
        with self._lock:
            lendable = self._lendable()
            free, ahead, checkouts = self._free(lendable)
            idle = not self._running and not self._aside and not self._line
        limit = free + ahead if actors else 0
        if self._slots <= lendable:
            return [Room(self.queues, _names(actors, lambda _: True), limit, free, idle=idle)]
        holding = _names(actors, takes_connection)
        others = _names(actors, lambda actor: not takes_connection(actor))
        return [Room(self.queues, others, limit, free, holding, checkouts, idle)]

    def put(self, claims: list[Claim]) -> None:
        now = clock.monotonic()
        with self._lock:
            self._line.extend((now, claim) for claim in claims)
            # Asked for when no job was put aside yet, perhaps, and the loop went on.
            surplus = self._sort_out() if self._aside or self._loop_is_stuck else []
            admitted = self._admit()
        self._release(surplus)
        for claim in admitted:
            self._start(claim)

    def lost(self, claims: list[Claim]) -> None:
        logger.error("worker.leases_lost", jobs=len(claims))
        gone = {claim.proof for claim in claims}
        with self._lock:
            waiting = [claim for _, claim in self._line if claim.proof in gone]
            self._line = deque(entry for entry in self._line if entry[1].proof not in gone)
        for claim in waiting:
            self._forget(claim)
        if self._watchdog is not None:
            self._watchdog.interrupt(LeaseLost, lambda delivery: delivery.claim.proof in gone)

    def cancel(self, claims: list[Claim]) -> None:
        gone = {claim.proof for claim in claims}
        with self._lock:
            waiting = [claim for _, claim in self._line if claim.proof in gone]
            self._line = deque(entry for entry in self._line if entry[1].proof not in gone)
        for claim in waiting:
            if self._broker.dispatcher is not None:
                self._broker.dispatcher.settle(Settlement(claim.id, claim.token, Outcome.DEAD, error=CANCELLED))
        if self._watchdog is not None:
            self._watchdog.interrupt_soon(Cancelled, lambda delivery: delivery.claim.proof in gone)

    def overdue(self) -> list[Claim]:
        late = clock.monotonic() - _PATIENCE
        claims = []
        with self._lock:
            while self._line and self._line[0][0] <= late:
                claims.append(self._line.popleft()[1])
            if claims:
                self._lookahead.was_late()
        return claims

    def begun(self) -> list[Claim]:
        late = clock.monotonic() - _MARK_AFTER
        with self._lock:
            runs = [run for run in self._runs() if not run.marked and run.started_at <= late]
            for run in runs:
                run.marked = True
        return [run.claim for run in runs]

    @property
    def look_at(self) -> float:
        with self._lock:
            unmarked = [run.started_at + _MARK_AFTER for run in self._runs() if not run.marked]
            waiting = [self._line[0][0] + _PATIENCE, clock.monotonic() + _GATHERING] if self._line else []
        return min([*unmarked, *waiting], default=float("inf"))

    @property
    def leisure(self) -> float:
        return _GATHERING if len(self._line) > self._low else 0.0

    # Called by the watchdog

    def put_aside(self, claim: Claim, ident: int | None) -> Aside | None:
        """
        Give the slot of *claim*, which is stuck, to others, and have another thread instead of its own, *ident*.

        None, and nothing changes, when too many are aside already, when it must run alone, when it is over by now.

        Raises:
            RuntimeError: The system gives us no more threads; nothing has changed.
        """
        with self._lock:
            run = self._running.get(claim.proof)
            if run is None or claim.suspect or self._threads is None or len(self._aside) >= self.max_aside:
                return None
            # Under the lock, so that its thread cannot end the job before and take another.
            thread, successor = (None, None) if ident is None else self._threads.replace(ident)
            self._aside[claim.proof] = self._running.pop(claim.proof)
            told = Aside(thread, successor, len(self._aside))
            surplus = self._sort_out()
            admitted = self._admit()
        self._release(surplus)
        for one in admitted:
            self._start(one)
        if self._broker.dispatcher is not None:
            self._broker.dispatcher.wake()
        return told

    # Called by the loop watch

    def leave_loop(self) -> None:
        """
        Something keeps the event loop: until `return_to_loop`, claim nothing for it, and give back what has not begun.

        To be called again meanwhile: the first time, a job may just have been on its way there.
        """
        assert self._loop is not None  # noqa: S101  # or nobody could watch it
        with self._lock:
            self._loop_is_stuck = True
            surplus = self._sort_out()
        self._release(surplus)
        waiting = self._loop.take_back()
        self._release(waiting)
        for claim in waiting:
            self.finished(claim)

    def return_to_loop(self) -> None:
        """It goes on: claim for it again."""
        self._loop_is_stuck = False
        if self._broker.dispatcher is not None:
            self._broker.dispatcher.wake()

    # Called by the slots, and by the drain

    def finished(self, claim: Claim) -> None:
        """The slot of *claim* is free."""
        with self._lock:
            run = self._running.pop(claim.proof, None)
            if run is not None:
                self._lookahead.ran(clock.monotonic() - run.started_at)
            else:
                self._aside.pop(claim.proof, None)
            admitted = self._admit()
            if not self._running and not self._aside:
                self.idle.set()
            low = len(self._line) <= self._low
        for one in admitted:
            self._start(one)
        if low and self._broker.dispatcher is not None:
            self._broker.dispatcher.wake()

    def take_back(self) -> list[Claim]:
        """Everything that waits for a slot."""
        with self._lock:
            claims = [claim for _, claim in self._line]
            self._line.clear()
        return claims

    def running(self) -> list[Claim]:
        """The jobs that are in a slot, and those that have lost theirs."""
        with self._lock:
            return [run.claim for run in self._runs()]

    @property
    def num_slots(self) -> int:
        return self._slots

    @property
    def num_running(self) -> int:
        return len(self._running) + len(self._aside)

    @property
    def num_aside(self) -> int:
        """How many of them are stuck, and their slots are others'."""
        return len(self._aside)

    @property
    def max_aside(self) -> int:
        return max(1, int(self._slots * _MAX_ASIDE))

    def _runs(self) -> Iterator[Run]:
        return chain(self._running.values(), self._aside.values())

    def _lendable(self) -> int:
        """How many connections there are for those in the slots: what is aside keeps what it was lent, or has taken."""
        if not self._aside:
            return self._checkouts
        taken = Counter(checkout.holder for checkout in self._broker.pool.checkouts())
        return self._checkouts - sum(max(run.holds, taken[run.claim.holder]) for run in self._aside.values())

    def _free(self, lendable: int) -> tuple[int, int, int]:
        """How many jobs can start now, how many may be claimed ahead, and how many that take a connection can start."""
        runs = list(self._running.values())
        if self._threads is None or any(run.claim.suspect for run in runs):
            return 0, 0, 0
        free = self._slots - len(runs) - len(self._line)
        # Where a job may find a slot and no connection, the line would not be one.
        if self._slots > lendable:
            holding = sum(run.holds for run in runs) + sum(self._holds(claim) for _, claim in self._line)
            return max(0, free), 0, max(0, min(free, lendable - holding))
        recent = clock.monotonic() - _PATIENCE
        quick = self._slots - sum(run.started_at < recent for run in runs)
        waiting = max(0, -free)
        ahead = self._lookahead.size(quick)
        self._low = ahead // 2
        return max(0, free), max(0, ahead - waiting), 0

    def _forget(self, claim: Claim) -> None:
        if self._broker.dispatcher is not None:
            self._broker.dispatcher.forget(claim)

    def _release(self, claims: list[Claim]) -> None:
        for claim in claims:
            if self._broker.dispatcher is not None:
                self._broker.dispatcher.settle(Settlement(claim.id, claim.token, Outcome.RELEASED))

    def _sort_out(self) -> list[Claim]:
        """Take out of the line what could not begin in its slot, because of the loop, or of a connection it takes."""
        lendable = self._lendable()
        left: float = lendable - sum(run.holds for run in self._running.values())
        if self._slots <= lendable:
            left = float("inf")
        line, surplus = self._line, []
        self._line = deque()
        for since, claim in line:
            actor = self._broker.actors.get(claim.actor)
            holds = takes_connection(actor)
            if (holds and left < 1) or (self._loop_is_stuck and runs_on_loop(actor)):
                surplus.append(claim)
            else:
                left -= holds
                self._line.append((since, claim))
        return surplus

    def _holds(self, claim: Claim) -> bool:
        return takes_connection(self._broker.actors.get(claim.actor))

    def _admit(self) -> list[Claim]:
        """Give the free slots to the first in the line."""
        admitted = []
        while self._line and len(self._running) < self._slots:
            _, claim = self._line.popleft()
            actor = self._broker.actors.get(claim.actor)
            self._running[claim.proof] = Run(claim, holds=takes_connection(actor))
            self.idle.clear()
            admitted.append(claim)
        return admitted

    def _start(self, claim: Claim) -> None:
        assert self._threads is not None  # noqa: S101  # there was no room before
        assert self._loop is not None  # noqa: S101
        if runs_on_loop(self._broker.actors.get(claim.actor)):
            self._loop.start(claim)
        else:
            self._threads.start(claim)


def runs_on_loop(actor: Actor[..., object] | None) -> bool:
    """Whether a run of *actor* is a task of the event loop."""
    return actor is not None and body_of(actor) is not None


def takes_connection(actor: Actor[..., object] | None) -> bool:
    """Whether a run of *actor* holds a connection from beginning to end."""
    return isinstance(actor, Job) and actor.signature.takes_connection


def _names(actors: Mapping[str, Actor[..., object]], chosen: Callable[[Actor[..., object]], bool]) -> list[str]:
    # By every name that an actor has or had.
    return [name for name, actor in actors.items() if chosen(actor)]
