"""Submissions: short work of other threads that is to be done on the reserved connection."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeVar

import psycopg

from worker.queue.sends import accepted

T = TypeVar("T")


class _Work(NamedTuple):
    call: Callable[[psycopg.Connection[Any]], Any]
    atomic: bool


class Submissions:
    """Work that is still to be done. `add` is for any thread, everything else for the dispatcher's."""

    def __init__(self) -> None:
        self._pending: deque[tuple[_Work, Future[Any]]] = deque()

    def __bool__(self) -> bool:
        return bool(self._pending)

    def add(self, work: Callable[[psycopg.Connection[Any]], T], *, atomic: bool = True) -> Future[T]:
        """Have *work* done in a transaction of its own; in none unless *atomic*, for a look of one statement."""
        future: Future[T] = Future()
        self._pending.append((_Work(work, atomic), future))
        return future

    def run(self, conn: psycopg.Connection[Any]) -> bool:
        """Do all of it; whether it may have made a job, which a mere look has not."""
        batch = accepted(self._pending)
        for work, future in batch:
            try:
                with conn.transaction() if work.atomic else nullcontext():
                    result = work.call(conn)
            except Exception as exc:
                future.set_exception(exc)
            else:
                future.set_result(result)
        return any(work.atomic for work, _ in batch)

    def abandon(self) -> None:
        """Nobody does any more."""
        for _, future in self._pending:
            future.cancel()
