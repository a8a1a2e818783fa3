"""Enqueueing: a message becomes a row, in the caller's own transaction if there is one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import msgspec
import psycopg
from dramatiq import Actor, Message
from dramatiq.common import q_name

from worker.errors import ArgumentError
from worker.queue.actor import Job
from worker.queue.identity import job_id
from worker.queue.new_job import NewJob, columns
from worker.queue.schema import Schema
from worker.queue.signature import NUL_ESCAPE
from worker.queue.statements import INSERT_JOBS

_bound: ContextVar[psycopg.Connection[Any] | None] = ContextVar("bound", default=None)

_PRIORITY_LIMIT = 1_000_000
_MAX_DELAY = 100 * 366 * 86400.0


def bound_connection() -> psycopg.Connection[Any] | None:
    """The connection that a send on this thread or task belongs to, if any."""
    return _bound.get()


@contextmanager
def bind(conn: psycopg.Connection[Any]) -> Iterator[None]:
    """
    Make every send within the block part of *conn*'s transaction: the jobs exist only if it commits.

    Raises:
        TypeError: *conn* is not a `psycopg.Connection`.
    """
    if not isinstance(conn, psycopg.Connection):
        raise TypeError(
            f"bind() takes a psycopg.Connection, not {type(conn).__module__}.{type(conn).__qualname__};"
            " of a SQLAlchemy session that is session.connection().connection.driver_connection"
        )
    token = _bound.set(conn)
    try:
        yield
    finally:
        _bound.reset(token)


def encode(message: Message[Any], delay: int | None, actor: Actor[..., Any] | None) -> NewJob:
    """
    The row of *message*, which may be a MessageProxy.

    Args:
        delay: Milliseconds, as Dramatiq counts them; without one an `eta` among the options counts.

    Raises:
        ArgumentError: The arguments or options cannot be stored.
    """
    options = {name: value for name, value in message.options.items() if name != "eta"}
    wait = delay / 1000 if delay is not None else _until(message.options.get("eta"))
    if not wait <= _MAX_DELAY:
        raise ArgumentError(f"job {message.actor_name!r}: a delay of {wait:g} s is more than the 100 years allowed")
    priority = max(-_PRIORITY_LIMIT, min(_PRIORITY_LIMIT, actor.priority if actor is not None else 0))
    queue = q_name(message.queue_name)
    head = (job_id(message.message_id), queue, message.actor_name, priority, wait, message.message_timestamp / 1000)
    if isinstance(actor, Job):
        args = actor.signature.encode(message.args, message.kwargs)
        if actor.limit is not None:
            options["lane"] = actor.limit.lane(message.actor_name, args, actor.signature.parameters)
        return NewJob(*head, args, encode_options(options, message.actor_name), None)
    plain: Message[Any] = Message(
        queue, message.actor_name, message.args, message.kwargs, options, message.message_id, message.message_timestamp
    )
    return NewJob(*head, None, None, plain.encode())


def check_delay(actor: str, delay: object) -> None:
    """Refuse what is no delay, while its sender can still be told."""
    if not isinstance(delay, int | float) or isinstance(delay, bool) or not delay >= 0:
        raise ArgumentError(
            f"job {actor!r}: delay={delay!r}: expected milliseconds from now, 0 or more, or a timedelta"
        )


def encode_options(options: dict[str, Any], actor: str) -> str:
    """*options* as JSON that `jsonb` takes; a NUL, as tracebacks may hold one, becomes U+FFFD."""
    try:
        return NUL_ESCAPE.sub(rb"\1\\ufffd", msgspec.json.encode(options)).decode()
    except (TypeError, ValueError) as exc:
        raise ArgumentError(f"job {actor!r}: options {sorted(options)}: {exc}") from None


def _until(eta: Any) -> float:
    # Whatever else stands there means now, as Dramatiq's own worker treats it.
    if isinstance(eta, int | float) and not isinstance(eta, bool):
        return max(0.0, eta / 1000 - time.time())
    return 0.0


def insert(conn: psycopg.Connection[Any], schema: Schema, jobs: Sequence[NewJob]) -> None:
    """Insert *jobs* on *conn*, within its transaction if it is in one; workers wake when it commits."""
    conn.execute(
        schema.render(INSERT_JOBS).encode(),
        {
            **schema.channels,
            **columns(jobs),
        },
    )
