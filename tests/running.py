"""Our worker in this process: the same pieces as `worker run`, without signals, and what became of its jobs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from dramatiq import Message

from tests.factories import InThread, column, scalar
from tests.waiting import wait_until
from worker.config import Config
from worker.pool import Pool
from worker.queue.broker import PostgresBroker
from worker.queue.dispatcher import Dispatcher
from worker.queue.identity import job_id
from worker.queue.lease import Lease
from worker.queue.schema import Schema
from worker.runtime.health import Health
from worker.runtime.job_threads import JobThreads
from worker.runtime.run import open_pool, serving, working
from worker.runtime.signals import Stop
from worker.runtime.slot_feed import SlotFeed
from worker.runtime.vitals import Stage, Vitals

# Generous: it is only waited for in full when the test fails anyway.
WAIT = 20.0


@dataclass
class RunningWorker:
    pool: Pool
    dispatcher: Dispatcher
    feed: SlotFeed
    threads: JobThreads
    health: Health
    stop: Stop
    supervision: InThread


@contextmanager
def running_worker(
    broker: PostgresBroker,
    database: str,
    *,
    pool_size: int = 3,
    slots: int | None = None,
    grace: float = 5.0,
    lease: float = 10.0,
    stuck: float = 60.0,
    direct_url: str = "",
) -> Iterator[RunningWorker]:
    """A worker that serves every queue of *broker* until the end of the block, and drains then."""
    config = Config(
        database_url=database,
        direct_url=direct_url,
        pool_size=pool_size,
        slots=slots,
        grace=grace,
        lease=lease,
        stuck=stuck,
    )
    held = Lease(Schema(config.schema), duration=lease, slots=config.job_slots, pool_size=pool_size)
    stop = Stop()
    with ExitStack() as stack:
        pool = stack.enter_context(open_pool(config, held))
        stack.enter_context(serving(broker, pool, config))
        parts = stack.enter_context(working(broker, pool, held, stop, Vitals(), config))
        parts.vitals.enter(Stage.RUNNING)
        supervision = InThread(parts.supervision.run)
        try:
            yield RunningWorker(pool, parts.dispatcher, parts.feed, parts.threads, parts.health, stop, supervision)
        finally:
            if not stop.asked:
                stop.ask()
            supervision.result()


def row_id(message: Message[Any]) -> UUID:
    return job_id(message.message_id)


def outcome(db: psycopg.Connection, message: Message[Any]) -> str:
    """What became of the job of *message*, once it is over for good: done or dead."""
    query = "SELECT outcome FROM worker.job_history WHERE id = %s"
    found: list[str] = wait_until(lambda: column(db, query, row_id(message)), WAIT, f"the end of {message}")
    assert len(found) == 1, f"it ended {len(found)} times"
    return found[0]


def attempts(db: psycopg.Connection, message: Message[Any]) -> int:
    """How many attempts the job of *message* took in the end."""
    return int(column(db, "SELECT attempt FROM worker.job_history WHERE id = %s", row_id(message))[0])


def error(db: psycopg.Connection, message: Message[Any]) -> str:
    """Why the job of *message* is dead."""
    return str(column(db, "SELECT error FROM worker.job_dead WHERE id = %s", row_id(message))[0])


def waiting_row(db: psycopg.Connection, message: Message[Any], state: str) -> dict[str, Any]:
    """The row of *message* once it is in *state*."""
    query = "SELECT to_jsonb(job) FROM worker.job WHERE id = %s AND state = %s"
    row: dict[str, Any] = wait_until(lambda: column(db, query, row_id(message), state), WAIT, f"a {state} job")[0]
    return row


def dead_error(db: psycopg.Connection, message: Message[Any]) -> str:
    """Why the job of *message* is dead."""
    return str(scalar(db, "SELECT error FROM worker.job_dead WHERE id = %s", row_id(message)))
