"""Awa, whose core is Rust, with asynchronous jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import make_dataclass
from typing import Any, ClassVar

import asyncpg
import awa

from tests.bench.loop_thread import loop_thread
from tests.bench.peer import SLOTS, Guarantee, Peer

_CHUNK = 5000
_QUEUE = "bench"
_ARGUMENTS: dict[str, Any] = {
    work: make_dataclass(f"Bench{work.capitalize()}", [("argument", float)]) for work in ("drain", "inserts", "latency")
}


class AwaPg(Peer):
    name = "awa-pg"
    title = "Awa"
    store = "Postgres"
    packages = ("awa-pg", "asyncpg")
    guarantee = Guarantee("durable, at least once", atomic=False, fenced=True)
    settings = f"asynchronous jobs, {SLOTS} workers, queue storage, {SLOTS + 14} connections, asyncpg for the jobs"

    workers: ClassVar[int] = SLOTS
    connections: ClassVar[int] = SLOTS + 14

    def prepare(self) -> None:
        with self._client() as client:
            client.migrate()
            client.install_queue_storage()

    def fill(self, work: str, number: int) -> None:
        with self._client() as client:
            for first in range(0, number, _CHUNK):
                numbers = range(first, min(number, first + _CHUNK))
                client.enqueue_many_copy([_ARGUMENTS[work](n) for n in numbers], queue=_QUEUE)

    @contextmanager
    def working(self, work: str) -> Iterator[None]:
        with loop_thread() as loop:
            pool = loop.call(_pool(self.places.postgres))
            client = awa.AsyncClient(_url(self.places.postgres), max_connections=self.connections)
            loop.call(self._start(client, pool))
            try:
                yield
            finally:
                loop.call(_stop(client, pool))

    async def _start(self, client: Any, pool: Any) -> None:
        for name, body in self._jobs(pool).items():
            client.task(_ARGUMENTS[name], queue=_QUEUE)(body)
        await client.start([(_QUEUE, self.workers)])

    def num_left(self) -> int:
        with self._client() as client:
            counts = [(stat.available, stat.running, stat.retryable, stat.scheduled) for stat in client.queue_stats()]
        return sum(map(sum, counts))

    @contextmanager
    def sending(self) -> Iterator[Callable[[str, float], None]]:
        with self._client() as client:
            yield lambda work, argument: client.insert(_ARGUMENTS[work](argument), queue=_QUEUE)

    def bulk(self, number: int, size: int) -> float:
        with self._client() as client:
            started = time.monotonic()
            for _ in range(number // size):
                client.enqueue_many_copy([_ARGUMENTS["drain"](0)] * size, queue=_QUEUE)
            return time.monotonic() - started

    @contextmanager
    def _client(self) -> Iterator[Any]:
        with awa.Client(_url(self.places.postgres)) as client:
            yield client

    def _jobs(self, pool: Any) -> dict[str, Callable[[Any], Any]]:
        tally = self.tally

        async def nothing(_: Any) -> None:
            tally.count()

        async def insert(job: Any) -> None:
            await pool.execute("INSERT INTO bench (number) VALUES ($1)", int(job.args.argument))
            tally.count()

        async def late(job: Any) -> None:
            tally.count_late(job.args.argument)

        return {"drain": nothing, "inserts": insert, "latency": late}


async def _pool(url: str) -> Any:
    return await asyncpg.create_pool(url, min_size=SLOTS, max_size=SLOTS)


async def _stop(client: Any, pool: Any) -> None:
    await client.shutdown()
    await client.close()
    await pool.close()


def _url(url: str) -> str:
    """Its parser wants a host, and lets the one among the options win."""
    return url.replace("@/", "@localhost/")


PEER = AwaPg
