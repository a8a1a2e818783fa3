"""Why a run is asked to end."""

from __future__ import annotations

from enum import StrEnum

from dramatiq.middleware import Interrupt, TimeLimitExceeded

from worker.errors import Cancelled, LeaseLost


class StopReason(StrEnum):
    """Why a run is asked to end; each is its own word, so that `ctx.stopping == "shutdown"` holds."""

    TIMEOUT = "timeout"
    CANCEL = "cancel"
    SHUTDOWN = "shutdown"
    LOST_LEASE = "lost lease"

    @classmethod
    def of(cls, interrupt: type[Interrupt]) -> StopReason:
        """What an *interrupt* means to the run that meets it."""
        for kind, reason in ((TimeLimitExceeded, cls.TIMEOUT), (Cancelled, cls.CANCEL), (LeaseLost, cls.LOST_LEASE)):
            if issubclass(interrupt, kind):
                return reason
        return cls.SHUTDOWN
