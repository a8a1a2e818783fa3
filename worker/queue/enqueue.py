"""Enqueueing: a message becomes a row to be."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import msgspec
from dramatiq import Actor, Message
from dramatiq.common import q_name

from worker.errors import ArgumentError
from worker.queue.actor import Job
from worker.queue.identity import job_id
from worker.queue.json_values import NUL_ESCAPE
from worker.queue.new_job import NewJob
from worker.queue.send_options import MAX_DELAY, MAX_PRIORITY, OF_THE_ROW, check_priority, check_tags, read_unique
from worker.queue.unique import JobKey


def encode(message: Message[Any], delay: int | None, actor: Actor[..., Any] | None, *, max_size: int) -> NewJob:
    """
    The row of *message*, which may be a MessageProxy.

    Args:
        delay: Milliseconds, as Dramatiq counts them; without one an `eta` among the options counts.
        max_size: Of the encoded arguments, in bytes.

    Raises:
        ArgumentError: The arguments or options cannot be stored.
    """
    name, queue, chosen = message.actor_name, q_name(message.queue_name), message.options
    at = _instant(chosen["eta"]) if "eta" in chosen else None
    wait = delay / 1000 if delay is not None else _until(at)
    if not wait <= MAX_DELAY:
        raise ArgumentError(f"job {name!r}: a delay of {wait:g} s is more than the 100 years allowed")
    args = options = body = None
    if isinstance(actor, Job):
        args = actor.signature.encode(message.args, message.kwargs)
        options = _options(message, actor.lane(name, args) if actor.is_limited else None)
    else:
        body = _plain(message, queue)
    _check_size(name, args, body, max_size)
    tags = chosen.get("tags")
    # By place, which costs less than by name; in the order of the class.
    return NewJob(
        getattr(message, "row_id", None) or job_id(message.message_id),
        queue,
        name,
        _priority(message, actor),
        wait,
        message.message_timestamp / 1000,
        args,
        options,
        body,
        at if delay is None else None,
        () if tags is None else check_tags(name, tags),
        _key(message, actor, args, waits=delay is not None or at is not None),
    )


def encode_options(options: dict[str, Any], actor: str) -> str:
    """*options* as JSON that `jsonb` takes; a NUL, as tracebacks may hold one, becomes U+FFFD."""
    try:
        return NUL_ESCAPE.sub(rb"\1\\ufffd", msgspec.json.encode(options)).decode()
    except (TypeError, ValueError) as exc:
        raise ArgumentError(f"job {actor!r}: options {sorted(options)}: {exc}") from None


def _options(message: Message[Any], lane: Any) -> str:
    if not message.options and lane is None:
        return "{}"
    options = {name: value for name, value in message.options.items() if name not in OF_THE_ROW}
    if lane is not None:
        options["lane"] = lane
    return encode_options(options, message.actor_name)


def _plain(message: Message[Any], queue: str) -> bytes:
    options = {name: value for name, value in message.options.items() if name != "eta"}
    plain: Message[Any] = Message(
        queue, message.actor_name, message.args, message.kwargs, options, message.message_id, message.message_timestamp
    )
    return plain.encode()


def _priority(message: Message[Any], actor: Actor[..., Any] | None) -> int:
    if (given := message.options.get("priority")) is not None:
        return check_priority(message.actor_name, given)
    priority = 0 if actor is None else actor.priority
    return priority if abs(priority) <= MAX_PRIORITY else max(-MAX_PRIORITY, min(MAX_PRIORITY, priority))


def _key(message: Message[Any], actor: Actor[..., Any] | None, args: str | None, *, waits: bool) -> JobKey | None:
    name = message.actor_name
    given = message.options.get("unique")
    unique = actor.unique if given is None and isinstance(actor, Job) else read_unique(name, given)
    if unique is None:
        return None
    if unique.on_conflict == "debounce" and not waits:
        raise ArgumentError(f"job {name!r}: unique on_conflict='debounce' waits for a pause: give it by delay= or at=")
    try:
        return unique.holding(args)
    except ArgumentError as exc:
        raise ArgumentError(f"job {name!r}: {exc}") from None


def _check_size(name: str, args: str | None, message: bytes | None, limit: int) -> None:
    if args is not None and 4 * len(args) <= limit:
        return  # no character is longer
    size = len(args.encode()) if args is not None else len(message or b"")
    if size > limit:
        raise ArgumentError(
            f"job {name!r}: its arguments are {size:,} bytes of JSON, expected at most {limit:,}"
            " (WORKER_MAX_ARGS): keep what is large in a table or a file, and send its id"
        )


def _instant(eta: Any) -> datetime | None:
    # Whatever else stands there means now, as Dramatiq's own worker treats it.
    if not isinstance(eta, int | float) or isinstance(eta, bool):
        return None
    try:
        return datetime.fromtimestamp(eta / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.max.replace(tzinfo=UTC) if eta > 0 else None


def _until(at: datetime | None) -> float:
    return 0.0 if at is None else max(0.0, at.timestamp() - time.time())
