"""The loop watch: says when something keeps the event loop from all other coroutines, and when that is over."""

from __future__ import annotations

from typing import Any

from worker import clock, log
from worker.runtime.job_loop import JobLoop
from worker.runtime.slot_feed import SlotFeed
from worker.runtime.stack import context_in_loop, stack_of_thread

logger = log.get_logger(__name__)

# A turn of the loop takes milliseconds. With a look before and one behind it, what does not end is noticed within 2 s.
_SLOW_TURN = 1.0


class LoopWatch:
    """
    Has the job loop come to a callback, one at a time, while jobs run there: `look` twice a second, on one thread.

    Who keeps it is interrupted at its job's timeout, and ends the process like any body that is stuck. Until the loop
    goes on, nothing more is claimed for it, and what it has not begun is given back: others can run that.
    """

    def __init__(self, loop: JobLoop, feed: SlotFeed) -> None:
        self._loop = loop
        self._feed = feed
        self._sent_at: float | None = None  # the callback that it has not come to yet, monotonic
        self._is_stuck = False

    def look(self) -> None:
        """Say once that the loop does not come to it, and once that it has."""
        sent_at = self._sent_at
        if sent_at is not None:
            busy_for = clock.monotonic() - sent_at
            if busy_for >= _SLOW_TURN:
                if not self._is_stuck:
                    self._is_stuck = True
                    self._say(busy_for)
                self._feed.leave_loop()
            return
        if self._is_stuck:
            self._is_stuck = False
            logger.info("job_loop.goes_on")
            self._feed.return_to_loop()
        if self._loop.has_jobs:
            self._sent_at = clock.monotonic()
            self._loop.call_soon(self._has_come)

    def _has_come(self) -> None:
        self._sent_at = None

    def _say(self, busy_for: float) -> None:
        job = _job_on(self._loop.thread)
        logger.error(
            "job_loop.stuck", busy_for=round(busy_for, 3), job_id=job.get("job_id"), actor=job.get("actor"),
            stack=stack_of_thread(self._loop.thread),
        )  # fmt: skip


def _job_on(thread: int | None) -> dict[str, Any]:
    """What log lines of the job carry that has the loop at this moment; nothing when it is none, or not known."""
    context = context_in_loop(thread)
    make = None if context is None else context.get(log.fields)
    return {} if make is None else make()
