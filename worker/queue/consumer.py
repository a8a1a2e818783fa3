"""Consumers for Dramatiq's own Worker: thin ends of the one dispatcher."""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from typing import TYPE_CHECKING

import psycopg
from dramatiq import Consumer
from dramatiq.errors import BrokerConnectionError

from worker.queue.claim import Claim
from worker.queue.delivery import Delivery
from worker.queue.dispatcher import Dispatcher
from worker.queue.feed import Feed, Room
from worker.queue.settlement import Outcome, Settlement

if TYPE_CHECKING:
    from uuid import UUID

# How long an acknowledgement waits for the database before Dramatiq is told to repeat it.
_PATIENCE = 10.0


class PostgresConsumer(Consumer):
    """One queue's end of the dispatcher, with room for *prefetch* jobs that are not acknowledged."""

    def __init__(self, feed: ConsumerFeed, queue_name: str, prefetch: int, timeout: int) -> None:
        self._feed = feed
        self._queue_name = queue_name
        self._prefetch = prefetch
        self._timeout = timeout / 1000
        self._claimed: queue.SimpleQueue[Claim] = queue.SimpleQueue()
        self._in_hand: set[UUID] = set()

    @property
    def room(self) -> int:
        return self._prefetch - len(self._in_hand)

    @property
    def is_idle(self) -> bool:
        return not self._in_hand

    def offer(self, claim: Claim) -> None:
        """Take a claimed job; on the dispatcher's thread."""
        self._in_hand.add(claim.id)
        self._claimed.put(claim)

    def __next__(self) -> Delivery | None:
        if self._feed.dispatcher.failure is not None:
            raise BrokerConnectionError(f"the dispatcher has failed: {self._feed.dispatcher.failure}")
        try:
            claim = self._claimed.get(timeout=self._timeout)
        except queue.Empty:
            return None
        delivery = self._feed.deliver(claim)
        if delivery is None:
            self._let_go(claim.id)
        return delivery

    def ack(self, delivery: Delivery) -> None:  # type: ignore[override]  # its own kind comes back to each broker
        """
        Settle *delivery* as its hooks concluded.

        One whose hooks began and never finished was cut down in between: it is given back, never taken off the queue.
        """
        cut = Settlement(delivery.claim.id, delivery.claim.token, Outcome.RELEASED, delay=0.5)
        done = Settlement(delivery.claim.id, delivery.claim.token, Outcome.DONE)
        self._settle(delivery, delivery.settlement or (cut if delivery.started else done))

    def nack(self, delivery: Delivery) -> None:  # type: ignore[override]
        """Settle *delivery* as dead, unless its hooks concluded otherwise."""
        reason = "rejected" if delivery._exception is None else repr(delivery._exception)
        dead = Settlement(delivery.claim.id, delivery.claim.token, Outcome.DEAD, error=reason)
        self._settle(delivery, delivery.settlement or dead)

    def requeue(self, deliveries: Iterable[Delivery]) -> None:  # type: ignore[override]
        """Give back what was never started."""
        for delivery in deliveries:
            self._feed.release(delivery.claim)
            self._let_go(delivery.claim.id)

    def close(self) -> None:
        """Give back what was never handed out; settling goes on to work."""
        self._feed.leave(self._queue_name, self)
        while not self._claimed.empty():
            claim = self._claimed.get()
            self._feed.release(claim)
            self._let_go(claim.id)

    def _settle(self, delivery: Delivery, settlement: Settlement) -> None:
        delivery.scope.close()
        if delivery.settled:
            self._feed.dispatcher.forget(delivery.claim)
        else:
            written = self._feed.dispatcher.settle(settlement)
            # What is written and what is claimed in its place go in one exchange.
            self._in_hand.discard(delivery.claim.id)
            try:
                written.result(_PATIENCE)
            except (FutureTimeout, psycopg.OperationalError) as exc:
                raise BrokerConnectionError(f"job {settlement.id} is not settled yet: {exc!r}") from exc
        self._let_go(delivery.claim.id)

    def _let_go(self, job_id: UUID) -> None:
        self._in_hand.discard(job_id)
        self._feed.dispatcher.wake()


class ConsumerFeed(Feed):
    """Puts claimed jobs before Dramatiq's consumers, each queue into its own."""

    dispatcher: Dispatcher

    def __init__(
        self,
        actors: Callable[[], Iterable[str]],
        deliver: Callable[[Claim], Delivery | None],
        has_lanes: Callable[[], bool] = lambda: False,
        has_rates: Callable[[], bool] = lambda: False,
    ) -> None:
        self.deliver = deliver
        self._actors = actors
        self._has_lanes = has_lanes
        self._has_rates = has_rates
        self._consumers: defaultdict[str, list[PostgresConsumer]] = defaultdict(list)
        # A job that is offered to a consumer just when it closes would never run and never be given back.
        self._lock = threading.Lock()
        self._draining = False

    def join(self, queue_name: str, prefetch: int, timeout: int) -> PostgresConsumer:
        """One more consumer of *queue_name*."""
        consumer = PostgresConsumer(self, queue_name, prefetch, timeout)
        with self._lock:
            self._consumers[queue_name].append(consumer)
            self._draining = False
        self.dispatcher.wake()
        return consumer

    def leave(self, queue_name: str, consumer: PostgresConsumer) -> None:
        """Offer *consumer* nothing from now on; twice is harmless."""
        with self._lock, suppress(ValueError):
            self._consumers[queue_name].remove(consumer)

    def drain(self) -> None:
        """Claim nothing more until another consumer joins: Dramatiq's consumers outlive the threads they feed."""
        self._draining = True

    def release(self, claim: Claim) -> None:
        self.dispatcher.settle(Settlement(claim.id, claim.token, Outcome.RELEASED))

    @property
    def has_lanes(self) -> bool:
        return self._has_lanes()

    @property
    def has_rates(self) -> bool:
        return self._has_rates()

    def rooms(self) -> list[Room]:
        actors = list(self._actors())
        with self._lock:
            room = {name: sum(consumer.room for consumer in served) for name, served in self._consumers.items()}
            idle = all(consumer.is_idle for served in self._consumers.values() for consumer in served)
        return [Room([name], actors, 0 if self._draining else limit, idle=idle) for name, limit in room.items()]

    def put(self, claims: list[Claim]) -> None:
        for claim in claims:
            if not self._offer(claim):
                self.release(claim)

    def _offer(self, claim: Claim) -> bool:
        with self._lock:
            consumers = self._consumers[claim.queue]
            if consumers:
                max(consumers, key=lambda consumer: consumer.room).offer(claim)
            return bool(consumers)

    def lost(self, claims: list[Claim]) -> None:
        """Dramatiq's Worker cannot be told; what it settles with a lost token changes nothing."""

    def cancel(self, claims: list[Claim]) -> None:
        """Dramatiq's Worker cannot be told; a run that does not succeed is not repeated, as the settlement knows."""
