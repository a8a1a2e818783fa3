"""What a job can know about itself while it runs."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NoReturn
from uuid import UUID

from worker.queue.snooze import Snooze


@dataclass(frozen=True, kw_only=True)
class Context:
    """
    What a job can know about itself while it runs; injected into a parameter annotated with it.

    Args:
        job_id: The job's row.
        attempt: The nth run, counted from 1.
        options: What the job was sent with, beside its arguments.
        stopping: Set when the job should end: it ran into its timeout, or the worker drains or lost its lease.
    """

    job_id: UUID
    actor: str
    queue: str
    attempt: int
    options: dict[str, Any]
    stopping: threading.Event = field(repr=False)

    @property
    def schedule(self) -> str | None:
        """The schedule that sent this job; None when somebody else did."""
        return self.options.get("schedule")

    @property
    def scheduled_for(self) -> datetime | None:
        """The tick that this job was sent for, aware UTC, however late it runs; of a run by hand the time of asking."""
        tick = self.options.get("scheduled_for")
        return None if tick is None else datetime.fromisoformat(tick)

    def snooze(self, seconds: float | timedelta) -> NoReturn:
        """
        End this run and begin anew in *seconds*, as if it had not been: it costs no attempt, its writes are undone.

        Raises:
            Snooze: Always; that is what ends it.
        """
        raise Snooze(seconds)
