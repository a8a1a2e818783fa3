"""A post: the place of one of the processes, whoever fills it."""

from __future__ import annotations

from worker import clock, log
from worker.config import Config
from worker.processes.backoff import Backoff
from worker.processes.child import Child

logger = log.get_logger(__name__)

# Seconds of work; a process that is too large before that would be as soon again.
_WORTH_A_START = 1.0


class Post:
    """
    Filled by one child after the other.

    Args:
        wanted: What the next child is to be; None when there is to be none.
    """

    def __init__(self, number: int, wanted: Config | None) -> None:
        self.number = number
        self.wanted = wanted
        self.child: Child | None = None
        self._backoff = Backoff()
        self._again_at = clock.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether a child is to be started now."""
        return self.child is None and self.wanted is not None and clock.monotonic() >= self._again_at

    @property
    def is_filled(self) -> bool:
        """Whether a child works here as it is wanted."""
        return self.child is not None and self.child.works and not self.is_outdated

    @property
    def is_outdated(self) -> bool:
        """Whether its child is not as it is wanted."""
        return self.child is not None and self.child.config is not self.wanted

    @property
    def size(self) -> int:
        """How many sessions its child may hold."""
        return 0 if self.child is None else self.child.config.pool_size

    def fill(self) -> None:
        """Start a child, or try again later if the system gives no process."""
        assert self.wanted is not None  # noqa: S101  # as it is due
        try:
            self.child = Child(self.number, self.wanted)
        except OSError as exc:
            delay = self._backoff.after(0.0)
            self._again_at = clock.monotonic() + delay
            logger.error("process.not_started", process=self.number, reason=str(exc), again_in=delay)  # noqa: TRY400  (the system's doing)

    def vacate(self, child: Child, *, as_asked: bool, recycled: bool = False) -> float:
        """
        Its child has ended; returns the seconds until the next one starts.

        None after one that ended *as_asked*, or *recycled* itself after it had worked: that is no crash, however soon.
        """
        self.child = None
        was_well = as_asked or (recycled and child.worked_for >= _WORTH_A_START)
        delay = 0.0 if was_well else self._backoff.after(child.worked_for)
        self._again_at = clock.monotonic() + delay
        return delay
