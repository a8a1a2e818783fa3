"""Celery on Redis, with threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis
from celery import Celery
from celery.contrib.testing.worker import start_worker
from psycopg_pool import ConnectionPool

from tests.bench.peer import INSERT, SLOTS, Guarantee, Peer


class CeleryRedis(Peer):
    name = "celery-redis"
    title = "Celery, Redis"
    store = "Redis"
    packages = ("celery", "redis")
    guarantee = Guarantee("lost if its worker dies", atomic=False, fenced=False)
    settings = f"{SLOTS} threads, prefetch 100 each, no results, no gossip, mingle and heartbeat; acknowledges early"

    pool: Any = None

    def __init__(self, *rest: Any) -> None:
        super().__init__(*rest)
        assert self.places.redis is not None
        self.app = Celery(broker=self.places.redis.replace("unix://", "redis+socket://"), set_as_current=True)
        self.app.conf.update(task_ignore_result=True, worker_prefetch_multiplier=100, worker_hijack_root_logger=False)
        self.tasks = self._tasks()

    def prepare(self) -> None:
        pass

    def fill(self, work: str, number: int) -> None:
        with self.sending() as send:
            for argument in range(number):
                send(work, argument)

    @contextmanager
    def working(self, work: str) -> Iterator[None]:
        with (
            ConnectionPool(self.places.postgres, min_size=SLOTS, max_size=SLOTS, open=False) as self.pool,
            start_worker(self.app, concurrency=SLOTS, pool="threads", perform_ping_check=False, loglevel="ERROR"),
        ):
            yield

    def num_left(self) -> int:
        assert self.places.redis is not None
        client: Any = redis.Redis.from_url(self.places.redis)
        return int(client.llen("celery") + client.hlen("unacked"))

    @contextmanager
    def sending(self) -> Iterator[Callable[[str, float], None]]:
        yield lambda work, argument: self.tasks[work].delay(argument)

    def _tasks(self) -> dict[str, Any]:
        tally = self.tally

        def nothing(_: float) -> None:
            tally.count()

        def insert(number: int) -> None:
            with self.pool.connection() as conn:
                conn.execute(INSERT, [number])
            tally.count()

        def late(sent_at: float) -> None:
            tally.count_late(sent_at)

        works = {"drain": nothing, "inserts": insert, "latency": late}
        return {work: self.app.task(body, name=work) for work, body in works.items()}


PEER = CeleryRedis
