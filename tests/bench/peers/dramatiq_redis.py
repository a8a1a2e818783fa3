"""Dramatiq on Redis."""

from __future__ import annotations

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker

from tests.bench.dramatiq_side import DramatiqSide
from tests.bench.peer import SLOTS, Guarantee


class DramatiqRedis(DramatiqSide):
    name = "dramatiq-redis"
    title = "Dramatiq, Redis"
    store = "Redis"
    packages = ("dramatiq", "redis")
    guarantee = Guarantee("last second may be lost", atomic=False, fenced=False)
    settings = f"defaults; {SLOTS} threads"

    def make_broker(self) -> dramatiq.Broker:
        return RedisBroker(url=self.places.redis)

    def num_left(self) -> int:
        # Messages stay in this hash until they are acknowledged.
        assert self.places.redis is not None
        return int(redis.Redis.from_url(self.places.redis).hlen("dramatiq:default.msgs"))


PEER = DramatiqRedis
