"""A row to be: what a send becomes before it is written."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from worker.queue.unique import JobKey


class NewJob(NamedTuple):
    """
    A row to be.

    Args:
        delay: Seconds from now by the database's clock; of a job with *at* only about so many.
        enqueued: Seconds since 1970.
        at: When it is due, if that was said as an instant.
    """

    id: UUID
    queue: str
    actor: str
    priority: int
    delay: float
    enqueued: float
    args: str | None
    options: str | None
    message: bytes | None
    at: datetime | None = None
    tags: tuple[str, ...] = ()
    key: JobKey | None = None

    @property
    def is_plain(self) -> bool:
        """Whether its row is all there is of it, so that one statement writes it with any number of others."""
        return self.key is None and not self.tags

    @property
    def size(self) -> int:
        """About how many bytes it carries."""
        return len(self.args or "") + len(self.options or "") + len(self.message or b"")


_COLUMNS = {
    "ids": "id",
    "queues": "queue",
    "actors": "actor",
    "priorities": "priority",
    "delays": "delay",
    "enqueued": "enqueued",
    "args": "args",
    "options": "options",
    "messages": "message",
    "instants": "at",
}


# In what the jobs of one bulk do not differ, as a rule. The delay of a job with an instant does not count.
_SHAPE = attrgetter("queue", "actor", "priority", "options", "at", "message")


def are_alike(jobs: Sequence[NewJob]) -> bool:
    """Whether *jobs* differ in nothing but id, arguments and when they were sent."""
    first = jobs[0]
    if first.message is not None or len(set(map(_SHAPE, jobs))) > 1:
        return False
    return first.at is not None or len({new.delay for new in jobs}) == 1


def alike_columns(jobs: Sequence[NewJob]) -> dict[str, Any]:
    """*jobs*, which are alike, as the statement that enqueues such takes them."""
    first = jobs[0]
    return {
        "queue": first.queue,
        "actor": first.actor,
        "priority": first.priority,
        "delay": first.delay,
        "at": first.at,
        "options": first.options,
        # One text each: psycopg would go through the elements of an array one by one.
        "ids": "{" + ",".join([new.id.hex for new in jobs]) + "}",
        "args": "[" + ",".join([new.args or "" for new in jobs]) + "]",
        "enqueued": "{" + ",".join([repr(new.enqueued) for new in jobs]) + "}",
    }


def as_json(jobs: Sequence[NewJob]) -> str:
    """*jobs* as one text, as the statement that enqueues them takes it."""
    # One by one: thousands of dictionaries at once would set the garbage collector off.
    return (b"[" + b",".join([msgspec.json.encode(_object(new)) for new in jobs]) + b"]").decode()


def _object(new: NewJob) -> dict[str, Any]:
    # What most have not is left out: what is not there is NULL.
    row: dict[str, Any] = {
        "id": new.id,
        "queue": new.queue,
        "actor": new.actor,
        "priority": new.priority,
        "delay": new.delay,
        "enqueued": new.enqueued,
    }
    if new.args is not None:
        row["args"] = msgspec.Raw(new.args.encode())
    if new.options is not None:
        row["options"] = msgspec.Raw(new.options.encode())
    if new.message is not None:
        row["message"] = new.message
    if new.at is not None:
        row["at"] = new.at
    return row


def columns(jobs: Sequence[NewJob], prefix: str = "") -> dict[str, list[Any]]:
    """*jobs* by column, as the statements take them."""
    return {prefix + name: [getattr(new, field) for new in jobs] for name, field in _COLUMNS.items()}
