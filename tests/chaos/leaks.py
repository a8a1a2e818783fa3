"""Leaks made and leaks reclaimed, holder by holder."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter

from structlog.typing import EventDict


class Leaks:
    """
    The books of what was never given back.

    A leak counts as made when its holder has got a connection, will never return it, and is known to be over: its
    job was reported over, its thread is dead, its loop closed, its connection dropped. What the server or the killer
    did to the session before or after does not matter: the pool still has to find the checkout and free its seat.

    One kind cannot be counted beforehand: coroutines that were waiting for a connection, or were in the middle of a
    block, when their loop was closed under them. Whether such a one was handed a connection in that very moment only
    the pool knows. They are announced with `possible` and counted apart, as made when the pool reports them.
    """

    def __init__(self) -> None:
        self.made_by_kind: Counter[str] = Counter()
        self.reclaimed_by_kind: Counter[str] = Counter()
        self.found_after: list[tuple[float, str]] = []
        self._open: Counter[str] = Counter()
        self._possible: set[str] = set()
        self._over_at: dict[str, float] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def name(self, kind: str) -> str:
        """A name for a holder, never used before."""
        return f"{kind}:{next(self._numbers)}"

    def made(self, holder: str, count: int = 1) -> None:
        """*holder* is over with *count* connections out."""
        with self._lock:
            self.made_by_kind[_kind(holder)] += count
            self._over_at[holder] = time.monotonic()
            self._balance(holder, count)

    def possible(self, holder: str) -> None:
        """*holder*'s loop is closed; it may have one connection."""
        with self._lock:
            self._possible.add(holder)

    def reclaimed(self, event: EventDict) -> None:
        """The pool says that it has taken one back."""
        holder = str(event["checkout"]).partition(" for ")[0]
        with self._lock:
            if holder in self._possible:
                self._possible.discard(holder)
                self.made_by_kind[_kind(holder)] += 1
                self.reclaimed_by_kind[_kind(holder)] += 1
                return
            self.reclaimed_by_kind[_kind(holder)] += 1
            if over_at := self._over_at.get(holder):
                self.found_after.append((time.monotonic() - over_at, holder))
            self._balance(holder, -1)

    def _balance(self, holder: str, change: int) -> None:
        self._open[holder] += change
        if not self._open[holder]:
            del self._open[holder]
            self._over_at.pop(holder, None)

    @property
    def num_made(self) -> int:
        return self.made_by_kind.total()

    @property
    def num_reclaimed(self) -> int:
        return self.reclaimed_by_kind.total()

    def unsettled(self) -> dict[str, int]:
        """Holders whose leaks were not found (above zero), or who were robbed although they would have returned."""
        with self._lock:
            return dict(self._open)


def _kind(holder: str) -> str:
    return holder.partition(":")[0]
