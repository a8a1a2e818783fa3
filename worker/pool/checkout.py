"""A checkout: a connection that is out of the pool, and who has had it since when and from where."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from types import CodeType

import psycopg_pool

from worker import clock
from worker.pool.connection import Connection

# Set around each job, so that a checkout names the job and not just a thread of ours.
holder: ContextVar[str | None] = ContextVar("holder", default=None)

# How the running job's interrupts are put off for a moment, set by whoever may interrupt it. One that met the pool
# while it hands over a connection would lose that connection, or leave a lock taken for ever.
shield: ContextVar[Callable[[], AbstractContextManager[None]]] = ContextVar("shield", default=nullcontext)

_DEPTH = 4
_OURS = str(Path(__file__).parent)
_PLUMBING = (_OURS, str(Path(psycopg_pool.__file__).parent), str(Path(threading.__file__).with_name("contextlib.py")))


class Checkout:
    """A connection that is out of the pool."""

    __slots__ = ("conn", "holder", "lock", "since", "thread", "where")

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.holder = holder.get()
        self.thread = threading.current_thread()
        # Held to cancel its statement and to end it: a cancel must never meet the statement of the next holder.
        self.lock = threading.Lock()
        self.since = clock.monotonic()
        # Code and line only: keeping frames would keep the job's local variables alive.
        self.where = _callers()

    @property
    def age(self) -> float:
        """Seconds since it was taken."""
        return clock.monotonic() - self.since

    def __str__(self) -> str:
        who = self.holder or f"thread {self.thread.name}"
        at = " < ".join(f"{Path(code.co_filename).name}:{line} {code.co_name}" for code, line in self.where)
        return f"{who} for {self.age:.1f} s, taken at {at}"


def _callers() -> list[tuple[CodeType, int]]:
    callers: list[tuple[CodeType, int]] = []
    frame = sys._getframe(2)
    while frame is not None and len(callers) < _DEPTH:
        if not frame.f_code.co_filename.startswith(_PLUMBING):
            callers.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back  # type: ignore[assignment]  # typed as never None where the loop begins
    return callers
