"""A row to be: what a send becomes before it is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID


class NewJob(NamedTuple):
    """A row to be; *delay* in seconds from now by the database's clock, *enqueued* in seconds since 1970."""

    id: UUID
    queue: str
    actor: str
    priority: int
    delay: float
    enqueued: float
    args: str | None
    options: str | None
    message: bytes | None


def columns(jobs: Sequence[NewJob], prefix: str = "") -> dict[str, list[Any]]:
    """*jobs* by column, as the statements take them."""
    names = ("ids", "queues", "actors", "priorities", "delays", "enqueued", "args", "options", "messages")
    by_column = list(zip(*jobs, strict=True)) or [()] * len(names)
    return {prefix + name: list(column) for name, column in zip(names, by_column, strict=True)}
