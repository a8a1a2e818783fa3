"""Procrastinate, with asynchronous jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import procrastinate
import psycopg
from psycopg_pool import AsyncConnectionPool

from tests.bench.loop_thread import loop_thread
from tests.bench.peer import INSERT, SLOTS, Guarantee, Peer
from tests.factories import scalar

_CHUNK = 1000
_PATIENCE = 60.0


class Procrastinate(Peer):
    name = "procrastinate"
    title = "Procrastinate"
    store = "Postgres"
    packages = ("procrastinate", "psycopg")
    guarantee = Guarantee("durable, stays if a worker dies", atomic=False, fenced=False)
    settings = f"asynchronous jobs, concurrency {SLOTS}, {SLOTS + 2} connections; sends by its synchronous connector"

    pool: Any = None

    def prepare(self) -> None:
        app = self._app(procrastinate.SyncPsycopgConnector(conninfo=self.places.postgres))
        with app.open():
            app.schema_manager.apply_schema()

    def fill(self, work: str, number: int) -> None:
        with self._sender() as app:
            for first in range(0, number, _CHUNK):
                rows = [{"argument": n} for n in range(first, min(number, first + _CHUNK))]
                app.configure_task(work).batch_defer(*rows)

    @contextmanager
    def working(self, work: str) -> Iterator[None]:
        app = self._app(procrastinate.PsycopgConnector(conninfo=self.places.postgres, max_size=SLOTS + 2))
        with loop_thread() as loop:
            loop.call(self._open(app))
            running = loop.start(app.run_worker_async(concurrency=SLOTS, install_signal_handlers=False))
            try:
                yield
            finally:
                running.cancel()
                loop.call(self._close(app))

    def num_left(self) -> int:
        with psycopg.connect(self.places.postgres) as db:
            return int(scalar(db, "SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"))

    @contextmanager
    def sending(self) -> Iterator[Callable[[str, float], None]]:
        with self._sender() as app:
            yield lambda work, argument: app.configure_task(work).defer(argument=argument)

    def bulk(self, number: int, size: int) -> float:
        with self._sender() as app:
            started = time.monotonic()
            for _ in range(number // size):
                app.configure_task("drain").batch_defer(*[{"argument": 0}] * size)
            return time.monotonic() - started

    async def _open(self, app: Any) -> None:
        self.pool = AsyncConnectionPool(self.places.postgres, min_size=SLOTS, max_size=SLOTS, open=False)
        await self.pool.open()
        await app.open_async()

    async def _close(self, app: Any) -> None:
        await app.close_async()
        await self.pool.close()

    @contextmanager
    def _sender(self) -> Iterator[Any]:
        app = self._app(procrastinate.SyncPsycopgConnector(conninfo=self.places.postgres))
        with app.open():
            yield app

    def _app(self, connector: Any) -> Any:
        app = procrastinate.App(connector=connector)
        tally = self.tally

        async def nothing(argument: float) -> None:
            tally.count()

        async def insert(argument: int) -> None:
            async with self.pool.connection() as conn:
                await conn.execute(INSERT, [argument])
            tally.count()

        async def late(argument: float) -> None:
            tally.count_late(argument)

        for name, body in (("drain", nothing), ("inserts", insert), ("latency", late)):
            app.task(name=name)(body)
        return app


PEER = Procrastinate
