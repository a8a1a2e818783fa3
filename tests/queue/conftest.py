"""A broker on a database of its own, rows made by hand, and a dispatcher whose feed only takes notes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.factories import opened_pool
from worker.pool import Pool
from worker.queue.broker import PostgresBroker
from worker.queue.claim import Claim
from worker.queue.dispatcher import Dispatcher
from worker.queue.feed import Feed, Room
from worker.queue.history import History
from worker.queue.identity import uuid7
from worker.queue.lease import Lease, application_name
from worker.queue.marks import Marks
from worker.queue.schema import Schema
from worker.queue.statements import CLAIM_JOBS

SCHEMA = Schema()

INSERT_ROW = """
    INSERT INTO worker.job (
        id, queue, actor, state, priority, due_at, rank, token, attempt, crashes, claimed_by, claimed_at, enqueued_at,
        args, options, error
    )
    SELECT %(id)s, %(queue)s, %(actor)s, %(state)s, %(priority)s, due, due + %(priority)s * interval '60 s',
        %(token)s, %(attempt)s, %(crashes)s, %(claimed_by)s::uuid, CASE WHEN %(state)s = 'running' THEN now() END,
        now(), %(args)s::jsonb, '{}', NULL
    FROM (SELECT now() + %(due_in)s * interval '1 second' AS due) AS due"""

InsertJob = Callable[..., UUID]


@pytest.fixture
def pool(database: str) -> Iterator[Pool]:
    with opened_pool(database, max_size=5) as pool:
        yield pool


@pytest.fixture
def broker(pool: Pool) -> PostgresBroker:
    """A broker on `database`; not Dramatiq's global one, so jobs name it: `@job(broker=broker)`."""
    return PostgresBroker(pool=pool, schema="worker")


@pytest.fixture
def insert_job(db: psycopg.Connection) -> InsertJob:
    """Puts a row into the table as it is; a running one belongs to *claimed_by* and has token and attempt 1."""

    def insert(
        *,
        queue: str = "default",
        actor: str = "charge",
        state: str = "available",
        priority: int = 0,
        due_in: float = 0.0,
        crashes: int = 0,
        claimed_by: UUID | None = None,
        args: dict[str, Any] | None = None,
        job_id: UUID | None = None,
    ) -> UUID:
        ran = int(claimed_by is not None)
        row = {
            "id": job_id or uuid7(),
            "queue": queue,
            "actor": actor,
            "state": "running" if ran else state,
            "priority": priority,
            "due_in": due_in,
            "token": ran,
            "attempt": ran,
            "crashes": crashes,
            "claimed_by": claimed_by,
            "args": json.dumps(args or {}),
        }
        db.execute(INSERT_ROW, row)
        return UUID(str(row["id"]))

    return insert


def claim(
    conn: psycopg.Connection,
    *,
    queues: Sequence[str] = ("default",),
    actors: Sequence[str] = ("charge",),
    limit: int = 10,
    worker: UUID | None = None,
    free: int | None = None,
    holding: Sequence[str] = (),
    checkouts: int = 0,
    idle: bool = True,
) -> list[Claim]:
    """Claim as a dispatcher does."""
    parameters = {
        **Marks().parameters(queues),
        "actors": list(actors),
        "limit": limit,
        "free": limit if free is None else free,
        "holding": list(holding),
        "checkouts": checkouts,
        "idle": idle,
        "worker": worker or uuid4(),
    }
    return [Claim(*row) for row in conn.execute(SCHEMA.render(CLAIM_JOBS).encode(), parameters)]


class NotingFeed(Feed):
    """A feed that starts nothing and remembers what it was given, with room for *limit* jobs of the actor `charge`."""

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self.put_here: list[Claim] = []
        self.lost_here: list[Claim] = []
        self.cancelled_here: list[Claim] = []
        self.begun_here: list[Claim] = []
        self.was_cancelled = threading.Event()
        self.was_put = threading.Event()
        self.was_lost = threading.Event()

    def rooms(self) -> list[Room]:
        return [Room(["default"], ["charge"], self.limit - len(self.put_here), idle=True)]

    def put(self, claims: list[Claim]) -> None:
        self.put_here += claims
        if claims:
            self.was_put.set()

    def cancel(self, claims: list[Claim]) -> None:
        self.cancelled_here += claims
        self.was_cancelled.set()

    def begun(self) -> list[Claim]:
        begun, self.begun_here = self.begun_here, []
        return begun

    def lost(self, claims: list[Claim]) -> None:
        self.lost_here += claims
        self.was_lost.set()


@contextmanager
def dispatching(
    database: str, feed: NotingFeed | None = None, *, worker_id: UUID | None = None, duration: float = 10.0
) -> Iterator[Dispatcher]:
    """A dispatcher on a pool of its own."""
    lease = Lease(SCHEMA, duration=duration, slots=1, pool_size=2, worker_id=worker_id)
    with (
        opened_pool(database, max_size=2, application_name=application_name(lease.worker_id)) as pool,
        Dispatcher(pool, SCHEMA, lease, feed or NotingFeed(), history=History(SCHEMA)) as dispatcher,
    ):
        yield dispatcher
