"""Ourselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg

from tests.bench.peer import INSERT, SLOTS, Guarantee, Peer
from tests.bench.protocol import Traffic, watched
from tests.factories import opened_pool, scalar
from tests.running import RunningWorker, running_worker
from worker import PostgresBroker, job, log
from worker.queue.schema import Schema

_CHUNK = 5000
_SCHEMA = Schema()


class Carpool(Peer):
    name = "carpool"
    title = "carpool"
    store = "Postgres"
    packages = ("carpool", "dramatiq", "psycopg")
    guarantee = Guarantee("durable, at least once", atomic=True, fenced=True)
    settings = f"defaults; {SLOTS} slots, {SLOTS + 1} connections"

    worker: RunningWorker | None = None
    traffic: Traffic | None = None

    def __init__(self, *rest: Any) -> None:
        super().__init__(*rest)
        log.configure("json", "warning")
        self.broker = PostgresBroker(schema="worker")
        self.jobs = _jobs(self)

    def prepare(self) -> None:
        with psycopg.connect(self.places.postgres, autocommit=True) as conn:
            _SCHEMA.migrate(conn)

    def fill(self, work: str, number: int) -> None:
        with opened_pool(self.places.postgres) as pool, self.broker.on(pool, _SCHEMA):
            for first in range(0, number, _CHUNK):
                self.send_many(work, range(first, min(number, first + _CHUNK)))

    @contextmanager
    def working(self, work: str) -> Iterator[None]:
        with ExitStack() as stack:
            wire = stack.enter_context(watched()) if work.startswith("counted ") else None
            worker = running_worker(self.broker, self.places.postgres, pool_size=SLOTS + 1)
            self.worker = stack.enter_context(worker)
            yield
            self.traffic = None if wire is None else wire.traffic()

    def num_left(self) -> int:
        if self.worker is not None and self.worker.dispatcher.num_outstanding:
            return self.worker.dispatcher.num_outstanding
        with psycopg.connect(self.places.postgres) as db:
            return int(scalar(db, "SELECT count(*) FROM worker.job"))

    @contextmanager
    def sending(self) -> Iterator[Callable[[str, float], None]]:
        with opened_pool(self.places.postgres) as pool, self.broker.on(pool, _SCHEMA):
            yield lambda work, argument: self.jobs[work].send(*self._arguments(work, argument))

    def bulk(self, number: int, size: int) -> float:
        with opened_pool(self.places.postgres) as pool, self.broker.on(pool, _SCHEMA):
            started = time.monotonic()
            for _ in range(number // size):
                self.send_many("drain", range(size))
            return time.monotonic() - started

    @contextmanager
    def flowing(self) -> Iterator[Callable[[str, list[float]], None]]:
        with opened_pool(self.places.postgres) as pool, self.broker.on(pool, _SCHEMA):
            yield self.send_many

    def counts(self) -> dict[str, float]:
        return {} if self.traffic is None else self.traffic._asdict()

    def send_many(self, work: str, arguments: Iterable[float]) -> None:
        self.jobs[work].send_many([self._arguments(work, argument) for argument in arguments])

    def _arguments(self, work: str, argument: float) -> tuple[float, ...]:
        return () if work == "drain" else (argument,)


def _jobs(side: Carpool) -> dict[str, Any]:
    tally = side.tally

    @job(broker=side.broker)
    def nothing() -> None:
        tally.count()

    @job(broker=side.broker)
    def insert(conn: psycopg.Connection[Any], number: int) -> None:
        conn.execute(INSERT, [number])
        tally.count()

    @job(broker=side.broker)
    def late(sent_at: float) -> None:
        tally.count_late(sent_at)

    return {"drain": nothing, "inserts": insert, "latency": late}


PEER = Carpool
