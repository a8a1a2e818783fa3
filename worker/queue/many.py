"""Sending messages of several jobs in one call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dramatiq import Message

from worker.queue.broker import postgres_broker


def send_many(messages: Iterable[Message[Any]]) -> list[Message[Any]]:
    """
    Enqueue *messages* of any actors, all or none, in one transaction: the one that a `send` here would join.

    Raises:
        ArgumentError: One cannot be enqueued; says which, counted from 0, and nothing was.
        ConfigError: Dramatiq's broker is none of ours.
    """
    return postgres_broker().enqueue_many(list(messages))


async def send_many_async(messages: Iterable[Message[Any]]) -> list[Message[Any]]:
    """`send_many` for coroutines: the loop goes on meanwhile."""
    return await postgres_broker().enqueue_async(list(messages))
