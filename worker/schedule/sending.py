"""Putting the jobs of schedules into the queue: all that fire together in one statement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from dramatiq import Broker, Message
from psycopg import Connection

from worker import tracing
from worker.queue.binding import bind
from worker.queue.broker import with_context
from worker.queue.identity import job_id
from worker.schedule.declaration import Schedule


class Firing(NamedTuple):
    """A tick that fires; its job is due at *due_at*, or at once when None."""

    schedule: Schedule
    tick: datetime
    due_at: datetime | None = None


def send(conn: Connection[Any], firings: Sequence[Firing]) -> list[UUID | Exception]:
    """
    Send the jobs of *firings* in *conn*'s transaction; each finds schedule and tick in its Context.

    Returns:
        In order the job's id, or why its schedule can have none: then none of this schedule's jobs was sent.

    Raises:
        ArgumentError: A hook of the broker made one that cannot be stored; nothing was sent.
        psycopg.Error: The transaction has failed.
    """
    built = [_built(firing) for firing in firings]
    failed = {
        firing.schedule.name: one for firing, one in zip(firings, built, strict=True) if isinstance(one, Exception)
    }
    together: dict[Any, list[tuple[int, Any]]] = {}
    for number, (firing, message) in enumerate(zip(firings, built, strict=True)):
        if firing.schedule.name not in failed:
            together.setdefault(firing.schedule.actor.broker, []).append((number, message))
    sent: dict[int, UUID] = {}
    with bind(conn):
        for broker, messages in together.items():
            enqueued = broker.enqueue_many([message for _, message in messages])
            # A job that was there with the same unique key stands for ours, under its own id.
            sent.update((number, job_id(each.message_id)) for (number, _), each in zip(messages, enqueued, strict=True))
    return [sent[n] if n in sent else failed[firing.schedule.name] for n, firing in enumerate(firings)]


def _built(firing: Firing) -> Message[Any] | Exception:
    actor = firing.schedule.actor
    try:
        args, kwargs = firing.schedule.args_of(firing.tick)
        message: Message[Any] = actor.message_with_options(
            args=args,
            kwargs=kwargs,
            schedule=firing.schedule.name,
            scheduled_for=firing.tick.isoformat(),
            **({} if firing.due_at is None else {"eta": math.ceil(firing.due_at.timestamp() * 1000)}),
        )
        _check(actor.broker, message)
    except Exception as exc:
        # Whatever an author's function raises is this schedule's own affair.
        return exc
    # Of its own: schedules that tick together have nothing else to do with each other.
    return tracing.creating(message, with_context, schedule=firing.schedule.name, tick=firing.tick.isoformat())


def _check(broker: Broker, message: Message[Any]) -> None:
    # Once more when they are all written: what one has wrong must be known while the others can still do without it.
    broker.encode(message, None)  # type: ignore[attr-defined]  # of a PostgresBroker, which `worker run` asks for
