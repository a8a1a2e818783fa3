"""What the schedules' tests need of the rest of a worker: a job, a queue to send it to, a connection to do it on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID, uuid4

import dramatiq
import psycopg
from dramatiq.brokers.stub import StubBroker
from psycopg.types.json import Jsonb

from worker.queue.schema import Schema
from worker.schedule.declaration import Missed, Overlap, Schedule
from worker.schedule.ledger import Enqueue, Ledger, Pass
from worker.schedule.register import Declared, Register, Survey
from worker.schedule.sending import Firing
from worker.schedule.trigger import Every, Trigger

T = TypeVar("T")

SCHEMA = Schema()


def actor(name: str = "purge") -> dramatiq.Actor[Any, Any]:
    """A plain actor without parameters."""

    def body() -> None: ...

    return plain(body, name=name)


def plain(body: Callable[..., Any], *, name: str | None = None) -> dramatiq.Actor[Any, Any]:
    """A plain actor on a broker of its own, so that names never clash."""
    return dramatiq.actor(broker=StubBroker(middleware=[]), actor_name=name)(body)


def schedule(
    name: str = "purge",
    *,
    trigger: Trigger | None = None,
    spec: str = "every 60 seconds",
    tz: str = "UTC",
    missed: Missed = "last",
    overlap: Overlap = "allow",
    grace: float = 3600.0,
    actor_name: str = "purge",
) -> Schedule:
    """A schedule of each minute that nobody registered."""
    trigger = trigger or Every(60)
    return Schedule(name, spec, tz, missed, overlap, grace, trigger, actor(actor_name), "jobs/test.py line 1")


def enqueue(conn: psycopg.Connection[Any], firings: Sequence[Firing]) -> list[UUID | Exception]:
    """Insert the jobs as a send would, in the caller's transaction; available at once, whatever the jitter."""
    return [insert_job(conn, firing) for firing in firings]


def insert_job(conn: psycopg.Connection[Any], firing: Firing) -> UUID:
    """The job of one firing."""
    schedule, tick = firing.schedule, firing.tick
    job_id = uuid4()
    args = Jsonb({"schedule": schedule.name, "tick": tick.isoformat(), "pid": conn.info.backend_pid})
    conn.execute(
        """
        INSERT INTO worker.job (id, queue, actor, state, due_at, rank, enqueued_at, args)
        VALUES (%(id)s, 'default', %(actor)s, 'available', now(), now(), now(), %(args)s)""",
        {"id": job_id, "actor": schedule.actor.actor_name, "args": args},
    )
    return job_id


@contextmanager
def dispatcher(url: str) -> Iterator[Callable[[Callable[[psycopg.Connection[Any]], T]], Future[T]]]:
    """A `submit` with one thread and one connection, as the worker's dispatcher has; waits for its work at the end."""
    with psycopg.connect(url, autocommit=True) as conn, ThreadPoolExecutor(1) as thread:

        def transact(work: Callable[[psycopg.Connection[Any]], T]) -> T:
            with conn.transaction():
                return work(conn)

        yield lambda work: thread.submit(transact, work)


@contextmanager
def counted(db: psycopg.Connection[Any], statements: list[bytes]) -> Iterator[None]:
    """Note every statement that is sent on *db*."""

    class Noting(psycopg.Cursor[Any]):
        def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            statements.append(query)
            return super().execute(query, *args, **kwargs)

    before, db.cursor_factory = db.cursor_factory, Noting
    try:
        yield
    finally:
        db.cursor_factory = before


class Book:
    """A ledger over one autocommit connection: each call is a transaction, at the instant given or the real one."""

    def __init__(self, db: psycopg.Connection[Any], enqueue: Enqueue = enqueue, modules: Sequence[str] = ()) -> None:
        self.db = db
        self.ledger = Ledger(enqueue, schema=SCHEMA)
        self.register = Register(SCHEMA, modules)

    def declare(self, schedule: Schedule, now: datetime | None = None, *, takeover: bool = False) -> Declared:
        with self.db.transaction():
            return self.register.declare(self.db, schedule, takeover=takeover, now=now)

    def survey(self, schedules: list[Schedule], now: datetime | None = None) -> Survey:
        with self.db.transaction():
            return self.register.survey(self.db, schedules, now=now)

    def advance(self, schedule: Schedule, now: datetime | None = None) -> Pass:
        with self.db.transaction():
            return self.ledger.advance(self.db, schedule, now=now)

    def told(self, name: str = "purge") -> list[tuple[str, str, str | None]]:
        """(time, outcome, reason) of each tick in the database, oldest first."""
        rows = self.db.execute(
            "SELECT tick, outcome, reason FROM worker.tick WHERE schedule = %s ORDER BY tick", [name]
        )
        return [(f"{tick.astimezone(UTC):%H:%M:%S}", outcome, reason) for tick, outcome, reason in rows]

    def job_ids(self) -> list[UUID]:
        """The live jobs, in the order of their ticks."""
        return [row[0] for row in self.db.execute("SELECT id FROM worker.job ORDER BY args ->> 'tick'")]

    def finish_jobs(self) -> None:
        """End every job, as settling one that is done or dead does: its row leaves the table."""
        self.db.execute("DELETE FROM worker.job")
