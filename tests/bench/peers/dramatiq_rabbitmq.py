"""Dramatiq on RabbitMQ."""

from __future__ import annotations

from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from tests.bench.dramatiq_side import DramatiqSide
from tests.bench.peer import SLOTS, Guarantee
from tests.bench.tally import Counter


class DramatiqRabbitmq(DramatiqSide):
    name = "dramatiq-rabbitmq"
    title = "Dramatiq, RabbitMQ"
    store = "RabbitMQ"
    packages = ("dramatiq", "pika")
    guarantee = Guarantee("sends unconfirmed, then durable", atomic=False, fenced=False)
    settings = f"defaults, so that sends are not confirmed; {SLOTS} threads"

    def make_broker(self) -> dramatiq.Broker:
        broker = RabbitmqBroker(url=self.places.rabbitmq)
        self.acknowledged = _Acknowledged()
        broker.add_middleware(self.acknowledged)
        return broker

    def prepare(self) -> None:
        # The server is there for all runs, and what one has left must not be the next one's.
        broker: Any = self.broker
        broker.declare_queue("default", ensure=True)
        broker.flush_all()

    def num_left(self) -> int:
        # The server tells only those that wait; those it has handed out are left until they are acknowledged.
        waiting, _, _ = self.broker.get_queue_message_counts("default")  # type: ignore[attr-defined]
        return int(waiting) + self.tally.num - self.acknowledged.counter.num


class _Acknowledged(dramatiq.Middleware):
    def __init__(self) -> None:
        self.counter = Counter()

    def after_ack(self, broker: dramatiq.Broker, message: Any) -> None:
        self.counter.count()


PEER = DramatiqRabbitmq
