"""What a job can know about itself while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, NoReturn, Protocol
from uuid import UUID

import psycopg

from worker.errors import Refused
from worker.queue.snooze import Snooze


class Finishing(Protocol):
    """A block, `with` or `async with`, whose connection is in the run's transaction."""

    def __enter__(self) -> psycopg.Connection[Any]: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...
    async def __aenter__(self) -> psycopg.AsyncConnection[Any]: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


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
    finishing: Callable[[], Finishing] | None = field(default=None, repr=False, compare=False)

    def finish(self) -> Finishing:
        """
        The transaction with which a job ends that has talked to the network before: `with ctx.finish() as conn:`.

        For jobs without a connection parameter, once in a run, at its end. It commits when the job returns, together
        with its completion, result and next steps, and only if this run still owns the job; sends within the block
        join it. What the block or the job raises undoes it all.

        Raises:
            Refused: The run has its transaction already, or no worker runs it.
            PoolTimeout: No connection became free.
        """
        if self.finishing is None:
            raise Refused("ctx.finish() commits with a job's completion: only a worker can, and this run has none")
        return self.finishing()

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
