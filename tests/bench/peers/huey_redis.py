"""huey on Redis, with threads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from huey import RedisHuey
from psycopg_pool import ConnectionPool

from tests.bench.peer import INSERT, SLOTS, Guarantee, Peer


class HueyRedis(Peer):
    name = "huey-redis"
    title = "huey, Redis"
    store = "Redis"
    packages = ("huey", "redis")
    guarantee = Guarantee("lost if its worker dies", atomic=False, fenced=False)
    settings = f"{SLOTS} threads, no results, no periodic tasks"

    pool: Any = None

    def __init__(self, *rest: Any) -> None:
        super().__init__(*rest)
        logging.getLogger("huey").setLevel(logging.ERROR)
        self.huey = RedisHuey(url=self.places.redis, results=False)
        self.tasks = self._tasks()

    def prepare(self) -> None:
        pass

    def fill(self, work: str, number: int) -> None:
        for argument in range(number):
            self.tasks[work](argument)

    @contextmanager
    def working(self, work: str) -> Iterator[None]:
        with ConnectionPool(self.places.postgres, min_size=SLOTS, max_size=SLOTS, open=False) as self.pool:
            consumer = self.huey.create_consumer(workers=SLOTS, periodic=False, worker_type="thread")
            consumer.start()
            try:
                yield
            finally:
                consumer.stop(graceful=True)

    def num_left(self) -> int:
        return int(self.huey.pending_count())

    @contextmanager
    def sending(self) -> Iterator[Callable[[str, float], None]]:
        yield lambda work, argument: self.tasks[work](argument)

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
        return {work: self.huey.task(name=work)(body) for work, body in works.items()}


PEER = HueyRedis
