"""Retries: Dramatiq's, and what a job may say about its own; each failed attempt is remembered."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import dramatiq
from dramatiq import middleware

from worker import clock
from worker.errors import ArgumentError, UnreadableJob
from worker.queue.delivery import Delivery, describe
from worker.queue.settlement import storable
from worker.queue.snooze import Snooze

# The newest so many, each so long: the row is written anew at every attempt.
_MAX_ERRORS = 10
_MAX_LENGTH = 1000


class Retry(dramatiq.Retry):
    """
    Raised by a job that should be tried again; costs an attempt, and is told in one line instead of a traceback.

    Args:
        delay: Seconds, or a timedelta, until then; the job's usual backoff when None.
    """

    def __init__(self, message: str = "", delay: float | timedelta | None = None) -> None:
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
        if seconds is not None and not 0 <= seconds < float("inf"):
            raise ArgumentError(f"Retry(delay={delay!r}): expected seconds from now, 0 or more, or a timedelta")
        super().__init__(message, delay=None if seconds is None else int(seconds * 1000))


class Retries(middleware.Retries):
    """Dramatiq's, but for what no retry can help, and with a memory of the attempts."""

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if isinstance(exception, Snooze | UnreadableJob):
            return  # concluded otherwise
        if exception is not None and isinstance(message, Delivery):
            _remember(message, exception)
        super().after_process_message(broker, message, result=result, exception=exception)  # type: ignore[no-untyped-call]  # Dramatiq has no annotation


def _remember(delivery: Delivery, exception: BaseException) -> None:
    """Among the options, so that it travels with the retry; what the last attempt died of, the row says by itself."""
    error = {
        "attempt": delivery.claim.attempt,
        "at": clock.now().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "error": storable(describe(exception), _MAX_LENGTH),
    }
    delivery.options["errors"] = [*delivery.options.get("errors", []), error][-_MAX_ERRORS:]
