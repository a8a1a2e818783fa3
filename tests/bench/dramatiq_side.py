"""Plain Dramatiq on any broker: what its sides have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
from psycopg_pool import ConnectionPool

from tests.bench.peer import INSERT, SLOTS, Peer


class DramatiqSide(Peer):
    """Its jobs take a connection of a pool of their own, as its users write it."""

    def __init__(self, *rest: Any) -> None:
        super().__init__(*rest)
        self.broker = self.make_broker()
        self.pool: Any = None
        self.actors = _actors(self)

    @abstractmethod
    def make_broker(self) -> dramatiq.Broker: ...

    def prepare(self) -> None:
        pass

    def fill(self, work: str, number: int) -> None:
        for argument in range(number):
            self.actors[work].send(argument)
        self.broker.close()

    @contextmanager
    def working(self, work: str) -> Iterator[None]:
        with ConnectionPool(self.places.postgres, min_size=SLOTS, max_size=SLOTS, open=False) as self.pool:
            worker = dramatiq.Worker(self.broker, worker_threads=SLOTS)
            worker.start()
            try:
                yield
            finally:
                worker.stop()
                self.broker.close()

    @contextmanager
    def sending(self) -> Iterator[Callable[[str, float], None]]:
        yield lambda work, argument: self.actors[work].send(argument)
        self.broker.close()


def _actors(side: DramatiqSide) -> dict[str, Any]:
    tally = side.tally

    def nothing(_: float) -> None:
        tally.count()

    def insert(number: float) -> None:
        with side.pool.connection() as conn:
            conn.execute(INSERT, [number])
        tally.count()

    works = {"drain": nothing, "inserts": insert, "latency": tally.count_late}
    return {work: dramatiq.actor(actor_name=work, broker=side.broker)(body) for work, body in works.items()}
