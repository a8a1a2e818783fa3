"""A grave: what is left to do for a process that died, and did not close its connections itself."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any
from uuid import UUID

from worker import clock, log
from worker.processes.child import Child

logger = log.get_logger(__name__)

_AGAIN = 0.1
# For an answer of a sibling, which writes to the database between its passes.
_PATIENCE = 5.0
# The server itself notices within 2 s that the client of a session is gone, in the middle of a query as well.
_UNATTENDED = 3.0
# A database that is away ends all sessions by being away.
_MOST = 20.0


class Grave:
    """
    The sessions of a dead process count until the server has ended them; only then another may take its place.

    The supervisor has no connection, so a sibling looks, ends them, and records how the process died: whoever rescues
    its jobs writes that to them. Without a sibling the server is given the time it needs, and the next process records.

    Args:
        how: How it died, in words.
        size: The most sessions it can have had.
    """

    def __init__(self, worker_id: UUID, how: str, size: int) -> None:
        self._worker_id = worker_id
        self._how = how
        self._size = size
        self._died_at = self._look_at = clock.monotonic()
        self._answer: Future[Any] | None = None
        self._asked_at = 0.0
        self._recorded = self._empty = False

    @property
    def size(self) -> int:
        """How many sessions may be left of it."""
        return 0 if self._empty else self._size

    @property
    def is_done(self) -> bool:
        return (self._recorded and self._empty) or self._age > _MOST

    def attend(self, sibling: Child | None) -> None:
        """One look; with the help of *sibling*, if there is one that works. Never waits."""
        now = clock.monotonic()
        if self._answer is not None:
            self._hear(self._answer, now)
        elif sibling is not None and now >= self._look_at:
            self._asked_at = now
            self._answer = sibling.ask("bury", worker_id=str(self._worker_id), how=self._how)
        elif sibling is None and self._age > _UNATTENDED:
            self._empty = True
        if self._age > _MOST:
            self._empty = True

    @property
    def _age(self) -> float:
        return clock.monotonic() - self._died_at

    def _hear(self, answer: Future[Any], now: float) -> None:
        if answer.done():
            self._answer = None
            self._look_at = now + _AGAIN
            if answer.exception() is None:
                self._recorded = True
                self._empty = answer.result() == 0
        elif now - self._asked_at > _PATIENCE:
            self._answer = None
