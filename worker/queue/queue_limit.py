"""The limit of a queue, as people set it: how many of its jobs run at once, and start within some seconds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from worker.errors import ConfigError
from worker.queue.rate import MAX_PER, MAX_SIZE, is_per, is_size, seconds_of


@dataclass(frozen=True, kw_only=True)
class QueueLimit:
    """
    What all workers together keep to; None is no limit.

    Args:
        running: How many jobs of the queue run at once.
        starts: How many of them start within any *per* seconds. A start is a claim, as the history has it.
        per: Seconds, at most a year.
    """

    running: int | None = None
    starts: int | None = None
    per: float | None = None

    @classmethod
    def of(cls, queue: str, running: int | None, starts: int | None, per: float | timedelta | None) -> QueueLimit:
        """
        The limit of *queue*.

        Raises:
            ConfigError: A value cannot work, or one that belongs to another is missing.
        """
        for name, number in (("running", running), ("starts", starts)):
            if number is not None and not is_size(number):
                raise ConfigError(f"queue {queue!r}: {name} {number!r}: expected a whole number from 1 to {MAX_SIZE}")
        if per is not None and not is_per(per):
            raise ConfigError(f"queue {queue!r}: per {per!r}: expected seconds from 0.001 to {MAX_PER:.0f}")
        if (starts is None) != (per is None):
            given, missing = ("starts", "per") if per is None else ("per", "starts")
            raise ConfigError(
                f"queue {queue!r}: {given} without {missing}: expected so many starts per so many seconds"
            )
        if running is None and starts is None:
            raise ConfigError(f"queue {queue!r}: a limit of nothing: expected running, or starts and per")
        return cls(running=running, starts=starts, per=None if per is None else seconds_of(per))

    def __str__(self) -> str:
        parts = [] if self.running is None else [f"{self.running} running"]
        parts += [] if self.starts is None else [f"{self.starts} starts in {self.per:.15g} s"]
        return ", ".join(parts)
