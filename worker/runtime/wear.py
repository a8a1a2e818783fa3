"""Wear: whether this process has run as many jobs, or grown as large, as it may, and should be replaced."""

from __future__ import annotations

import threading
from collections.abc import Callable

from worker.queue.last_words import resident


class Wear:
    """
    Counts jobs and looks at memory.

    Args:
        max_jobs: How many jobs may begin; no limit when None.
        max_memory: Bytes of resident memory; no limit when None.
        full: Called once, on the thread of the last job that may begin: from then on nothing should be claimed.
    """

    def __init__(self, max_jobs: int | None, max_memory: int | None, full: Callable[[], object]) -> None:
        self._max_jobs = max_jobs
        self._max_memory = max_memory
        self._full = full
        self._lock = threading.Lock()
        self._begun = 0

    def begin(self) -> None:
        """One more job begins; from any thread."""
        if self._max_jobs is None:
            return
        with self._lock:
            self._begun += 1
            is_last = self._begun == self._max_jobs
        if is_last:
            self._full()

    @property
    def told(self) -> dict[str, int] | None:
        """What is worn, for the log; None while nothing is."""
        if self._max_jobs is not None and self._begun >= self._max_jobs:
            return {"jobs": self._begun, "max_jobs": self._max_jobs}
        if self._max_memory is not None and (memory := resident()) > self._max_memory:
            return {"memory": memory, "max_memory": self._max_memory}
        return None
