"""APScheduler as a timer and nothing more: it calls a function when a trigger ticks, on its one thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from apscheduler.executors.base import BaseExecutor
from apscheduler.job import Job
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.date import DateTrigger

from worker.schedule.trigger import NEVER, Trigger

# APScheduler's defaults drop a tick that is a second late or whose last call still runs, with no trace. Ours pass all.
_JOB_DEFAULTS = {"misfire_grace_time": None, "coalesce": False, "max_instances": 1_000_000}


class Timer:
    """
    Calls functions at instants. They run on the timer's thread, one after another, and so must return at once.

    `start` once, then `stop` once.

    Args:
        called: Called after all that was due at one wake-up was.
    """

    def __init__(self, called: Callable[[], None] = lambda: None) -> None:
        self._scheduler = _Background(
            called, timezone=UTC, executors={"default": _AtOnce()}, job_defaults=_JOB_DEFAULTS
        )
        self._thread: threading.Thread | None = None

    def repeat(
        self, trigger: Trigger, call: Callable[[datetime], None], *, first: datetime | None = None
    ) -> Callable[[], None]:
        """Call *call* with each tick of *trigger*, and at *first*, until the function returned is called."""
        # Without a first time APScheduler asks the trigger; None would mean that it waits to be resumed.
        first_time = {} if first is None else {"next_run_time": first}
        job = self._scheduler.add_job(_call, _Ticking(trigger), args=[call], **first_time)

        def cancel() -> None:
            # It has ended by itself when the trigger has no further tick.
            with suppress(JobLookupError):
                job.remove()

        return cancel

    def once(self, at: datetime, call: Callable[[datetime], None]) -> None:
        """Call *call* at the instant *at*."""
        self._scheduler.add_job(_call, DateTrigger(at), args=[call])

    def start(self) -> None:
        """Start the thread, called `schedule-timer`."""
        self._scheduler.start()
        # APScheduler has no public word for it.
        thread: threading.Thread = self._scheduler._thread
        thread.name = "schedule-timer"
        self._thread = thread

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs; without it no tick is noticed."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self, timeout: float) -> bool:
        """End the thread; False when a call on it did not return within *timeout* seconds."""
        # APScheduler waits for its thread without a limit; a thread of our own makes one.
        closer = threading.Thread(
            target=self._scheduler.shutdown, kwargs={"wait": False}, name="schedule-timer-stop", daemon=True
        )
        closer.start()
        closer.join(timeout)
        return not closer.is_alive()


class _Background(BackgroundScheduler):  # type: ignore[misc]  # APScheduler 3 ships no types
    """APScheduler's, which tells when a wake-up is over."""

    def __init__(self, called: Callable[[], None], **settings: Any) -> None:
        super().__init__(**settings)
        self._called = called

    def _process_jobs(self) -> float | None:
        try:
            wait: float | None = super()._process_jobs()
        except JobLookupError:
            if self.running:
                raise
            # It was stopped while a call for once was under way, and has forgotten it already.
            return None
        self._called()
        return wait


class _Ticking(BaseTrigger):  # type: ignore[misc]  # APScheduler 3 ships no types
    """Our trigger in APScheduler's terms: one call per wake-up, however many ticks were slept through."""

    def __init__(self, trigger: Trigger) -> None:
        self._trigger = trigger

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime | None:
        # A machine that was suspended for a week wakes to one call, not to a call for each second of it.
        tick = self._trigger.after(now if previous is None else max(previous, now))
        return tick if tick < NEVER else None


class _AtOnce(BaseExecutor):  # type: ignore[misc]  # APScheduler 3 ships no types
    """Calls on the timer's own thread; the only place where APScheduler tells which time a call was due."""

    def _do_submit_job(self, job: Job, run_times: list[datetime]) -> None:
        job.func(*job.args, *run_times)
        self._run_job_success(job.id, [])


def _call(call: Callable[[datetime], None], *run_times: datetime) -> None:
    # APScheduler checks beforehand that a function can be called with the arguments it knows, and the time is not one.
    for run_time in run_times:
        call(run_time)
