"""PgQueuer, ten jobs at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import asyncpg
import psycopg
import uvloop
from pgqueuer import PgQueuer, Queries
from pgqueuer.db import AsyncpgDriver

from tests.bench.loop_thread import LoopThread, loop_thread
from tests.bench.peer import SLOTS, Guarantee, Peer
from tests.factories import scalar

_CHUNK = 5000
_PATIENCE = 60.0


class Pgqueuer(Peer):
    name = "pgqueuer"
    title = "PgQueuer"
    store = "Postgres"
    packages = ("pgqueuer", "asyncpg", "uvloop")
    guarantee = Guarantee("durable, at least once", atomic=False, fenced=False)
    settings = f"asyncpg, uvloop; at most {SLOTS} tasks, batches of {SLOTS // 2}, the most that it allows then"

    batching: ClassVar[dict[str, int]] = {"batch_size": SLOTS // 2, "max_concurrent_tasks": SLOTS}

    def prepare(self) -> None:
        async def install(connection: Any) -> None:
            await Queries(AsyncpgDriver(connection)).install()

        self._connected(install)

    def fill(self, work: str, number: int) -> None:
        async def fill(connection: Any) -> None:
            queries = Queries(AsyncpgDriver(connection))
            for first in range(0, number, _CHUNK):
                payloads = [str(n).encode() for n in range(first, min(number, first + _CHUNK))]
                await queries.enqueue([work] * len(payloads), payloads, [0] * len(payloads))

        self._connected(fill)

    @contextmanager
    def working(self, work: str) -> Iterator[None]:
        with loop_thread(uvloop.new_event_loop) as loop:
            pool = loop.call(_pool(self.places.postgres))
            queuer = PgQueuer.from_asyncpg_pool(pool)
            for name, body in self._jobs(pool).items():
                queuer.entrypoint(name)(body)
            running = loop.start(queuer.run(**self.batching))
            try:
                yield
            finally:
                loop.loop.call_soon_threadsafe(queuer.shutdown.set)
                running.result(_PATIENCE)
                loop.call(pool.close())

    def num_left(self) -> int:
        with psycopg.connect(self.places.postgres) as db:
            return int(scalar(db, "SELECT count(*) FROM pgqueuer"))

    @contextmanager
    def sending(self) -> Iterator[Callable[[str, float], None]]:
        with loop_thread(uvloop.new_event_loop) as loop:
            connection = loop.call(asyncpg.connect(self.places.postgres))
            queries = Queries(AsyncpgDriver(connection))
            yield lambda work, argument: loop.call(queries.enqueue(work, repr(argument).encode()))
            loop.call(connection.close())

    def enqueue(self, number: int) -> float:
        # Within the loop: the way into it, which an asynchronous application does not have, costs as much again.
        async def enqueue(connection: Any) -> float:
            queries = Queries(AsyncpgDriver(connection))
            await queries.enqueue("drain", b"0")
            started = time.monotonic()
            for _ in range(number):
                await queries.enqueue("drain", b"0")
            return time.monotonic() - started

        return float(self._connected(enqueue))

    def bulk(self, number: int, size: int) -> float:
        async def bulk(connection: Any) -> float:
            queries = Queries(AsyncpgDriver(connection))
            started = time.monotonic()
            for _ in range(number // size):
                await queries.enqueue(["drain"] * size, [b"0"] * size, [0] * size)
            return time.monotonic() - started

        return float(self._connected(bulk))

    def _connected(self, call: Callable[[Any], Any]) -> Any:
        async def connected(loop: LoopThread) -> Any:
            connection = await asyncpg.connect(self.places.postgres)
            try:
                return await call(connection)
            finally:
                await connection.close()

        with loop_thread(uvloop.new_event_loop) as loop:
            return loop.start(connected(loop)).result()

    def _jobs(self, pool: Any) -> dict[str, Callable[[Any], Any]]:
        tally = self.tally

        async def nothing(_: Any) -> None:
            tally.count()

        async def insert(job: Any) -> None:
            await pool.execute("INSERT INTO bench (number) VALUES ($1)", int(job.payload))
            tally.count()

        async def late(job: Any) -> None:
            tally.count_late(float(job.payload))

        return {"drain": nothing, "inserts": insert, "latency": late}


async def _pool(url: str) -> Any:
    return await asyncpg.create_pool(url, min_size=SLOTS, max_size=SLOTS + 2)


PEER = Pgqueuer
