"""What a job can know about itself while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, NoReturn, Protocol, TypeVar, overload
from uuid import UUID

import psycopg

from worker.errors import Refused
from worker.queue.snooze import Snooze
from worker.queue.stop_reason import StopReason

R = TypeVar("R")


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


class Step(Protocol):
    """
    One step of a job, as a block: `with`, or `async with` in `async def`; it gives itself.

    Python cannot skip a block, so the block asks: `if not step.done`.
    """

    name: str
    done: bool
    """Whether an earlier attempt has recorded it: then it is not to be done again."""
    value: Any
    """What was recorded; of a step that is not done, what is to be recorded at the end of the block: plain JSON."""

    @property
    def conn(self) -> Any:
        """
        A connection in the step's transaction: a `psycopg.Connection`, in `async with` a `psycopg.AsyncConnection`.

        Raises:
            Refused: The step is done already.
        """
        ...

    def __enter__(self) -> Step: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...
    async def __aenter__(self) -> Step: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class Abilities(Protocol):
    """What a worker lets a running job do through its context."""

    @property
    def stop_reason(self) -> StopReason | None: ...
    def wait(self, seconds: float) -> None: ...
    def finish(self) -> Finishing: ...
    def report(self, fraction: float | None, note: str | None) -> None: ...
    def step(self, name: str) -> Step: ...
    def do_step(self, name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Context:
    """
    What a job can know about itself while it runs; injected into a parameter annotated with it.

    Args:
        job_id: The job's row.
        attempt: The nth run, counted from 1.
        options: What the job was sent with, beside its arguments.
        abilities: What a worker adds; one that is made by hand, for a test, has none.
    """

    job_id: UUID
    actor: str
    queue: str
    attempt: int
    options: dict[str, Any]
    abilities: Abilities | None = field(default=None, repr=False, compare=False)

    @property
    def stopping(self) -> StopReason | None:
        """
        Why the job is asked to end, None while it is not: "timeout", "cancel", "shutdown" or "lost lease".

        At a shutdown it says so as soon as the grace begins, so that a long loop can end in order: `ctx.snooze(0)`
        gives the job back. The other reasons come with an interrupt.
        """
        return None if self.abilities is None else self.abilities.stop_reason

    def wait(self, seconds: float) -> StopReason | None:
        """
        Sleep for *seconds*, but no longer than until the job is asked to end; returns why, as `stopping`.

        For jobs of a plain `def`: a `time.sleep` hears of nothing, and in a coroutine this would block the loop.
        """
        if self.abilities is None:
            time.sleep(seconds)
        else:
            self.abilities.wait(seconds)
        return self.stopping

    def progress(self, fraction: float | None, note: str | None = None) -> None:
        """
        Say how far the job is, for `worker jobs show` and `worker.Jobs`; as often as you like.

        It costs nothing here: the dispatcher writes what was said last, about once a second, also while the job's
        transaction is open. It stays to be seen when the job is over, or until its next run says something.

        Args:
            fraction: From 0 to 1; None when nobody knows.
            note: At most 500 characters.

        Raises:
            ArgumentError: One of them cannot be stored.
        """
        if self.abilities is not None:
            self.abilities.report(fraction, note)

    @overload
    def step(self, name: str, /) -> Step: ...
    @overload
    def step(
        self, name: str, fn: Callable[..., Coroutine[Any, Any, R]], /, *args: Any, **kwargs: Any
    ) -> Coroutine[Any, Any, R]: ...
    @overload
    def step(self, name: str, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> R: ...

    def step(self, name: str, fn: Callable[..., Any] | None = None, /, *args: Any, **kwargs: Any) -> Any:
        """
        Do a part of the job that its next attempts do not do again: `amount = ctx.step("charge", charge_card, 42)`.

        Calls `fn(*args, **kwargs)` and records what it returns, plain JSON; in an attempt that finds it recorded,
        returns that instead. `await` it when *fn* is `async def`, as in an `async def` job it must be. The record
        waits out locks and a lost database; who dies, or is interrupted, between the call and the record does it again.

        A *fn* whose first parameter is annotated `psycopg.Connection` (`psycopg.AsyncConnection`) is given one: its
        writes and sends commit with the record, exactly once. So does a block, without *fn*:

            with ctx.step("book") as step:
                if not step.done:
                    step.conn.execute(...)
                    step.value = 42

        What was recorded counts for the job's id and arguments: also after a redrive, not when a unique send has
        replaced the arguments. It is forgotten with the job's history.

        Args:
            name: Of this step among those of the job, such as "charge" or "page 7"; at most 200 characters, and once
                in a run.

        Raises:
            Refused: The job takes a connection (then all of it is one transaction), or has begun `ctx.finish()`; the
                name was used before in this run, or is one too many; or no worker runs the job.
            ArgumentError: The name, or the kind of function, cannot work.
            UnrecordableStep: What it returned is not plain JSON, or larger than 64 KiB; the job is dead.
            LeaseLost: The job is another worker's by now: nothing was written. An interrupt, which ends the job.
        """
        if self.abilities is None:
            raise Refused("ctx.step() records what a job has done: only a worker can, and this run has none")
        return self.abilities.step(name) if fn is None else self.abilities.do_step(name, fn, args, kwargs)

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
        if self.abilities is None:
            raise Refused("ctx.finish() commits with a job's completion: only a worker can, and this run has none")
        return self.abilities.finish()

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
