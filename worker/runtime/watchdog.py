"""The watchdog: ends a job's body at its timeout, or when the worker drains or has lost its lease."""

from __future__ import annotations

import faulthandler
import threading
from collections.abc import Callable

from dramatiq.middleware import Interrupt, TimeLimitExceeded

from worker import clock, log
from worker.pool import Pool
from worker.queue.delivery import Delivery
from worker.queue.stop_reason import StopReason
from worker.runtime.guard import Guard
from worker.runtime.hook_watch import HookRun, HookWatch

logger = log.get_logger(__name__)

_CANCEL_TIMEOUT = 3.0
_CANCEL_INTERVAL = 0.1
# After its interrupt: a body that still runs is reported.
_REPORT = 3.0
# While the slot of one cannot be given to others: how often that is tried again.
_TRY_AGAIN = 0.5
# However short the limit of a body, the interpreter itself may stand still for so long.
_LEAST = 2.0


class Watchdog:
    """
    One thread that fires guards at their deadlines, and tells whose body or hooks do not end; a context manager.

    Args:
        stuck: Seconds after its interrupt when a body that still runs counts as `stuck`; after their time, of hooks.
    """

    def __init__(self, pool: Pool, *, stuck: float = 60.0) -> None:
        self.hooks = HookWatch()
        self.replace: Callable[[Guard], bool] | None = None
        """Called, on this thread, to give the slot of a body that was reported to others; whether that was done."""
        self._pool = pool
        self._limit = stuck
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._looks_at = 0.0  # while it sleeps: when it wakes by itself
        self._guards: set[Guard] = set()
        self._fired: set[Guard] = set()
        self._late: set[Guard] = set()  # all that were fired and whose body still runs
        self._unreplaced: set[Guard] = set()  # of these, the reported ones whose slots others could not be given
        self._cutting: type[Interrupt] | None = None
        self._announced: StopReason | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._stopped = True
            self._changed.notify()
        self._thread.join(_CANCEL_TIMEOUT * 2)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def watch(self, guard: Guard, timeout: float | None, reason: type[Interrupt]) -> None:
        """Fire *guard* in *timeout* seconds, unless it is released before."""
        with self._lock:
            self._guards.add(guard)
            if self._announced is not None:
                guard.delivery.stop(self._announced)
            if self._cutting is not None:
                timeout, reason = 0.0, self._cutting
            if timeout is not None:
                self._set_due(guard, clock.monotonic() + timeout, reason)

    def release(self, guard: Guard) -> None:
        """Forget *guard*; its body is over."""
        with self._lock:
            self._guards.discard(guard)
            if guard.reason is not None:
                self._fired.discard(guard)
                self._late.discard(guard)
                self._unreplaced.discard(guard)

    @property
    def stuck(self) -> list[Guard | HookRun]:
        """Those whose body has not heeded its interrupt for too long, and those whose hooks do not return."""
        with self._lock:
            bodies = [guard for guard in self._late if clock.monotonic() >= guard.fired_at + self._limit]
        return [*bodies, *self.hooks.overdue(self._limit)]

    def announce(self, reason: StopReason) -> None:
        """Tell every job, and those that come later, that it should end; it may do so in its own time."""
        with self._lock:
            self._announced = reason
            for guard in self._guards:
                if guard.reason is None:
                    guard.delivery.stop(reason)

    def cut(self, reason: type[Interrupt]) -> int:
        """Fire every guard now, and those that come later at once: a job may be on its way to its body."""
        with self._lock:
            self._cutting = reason
        return self.interrupt_all(reason)

    def interrupt_all(self, reason: type[Interrupt]) -> int:
        """Fire every guard now, from the calling thread; how many bodies it met."""
        return self.interrupt(reason, lambda _: True)

    def interrupt(self, reason: type[Interrupt], chosen: Callable[[Delivery], bool]) -> int:
        """Fire the guards of the *chosen* deliveries now; how many bodies it met."""
        with self._lock:
            guards = [guard for guard in self._guards if chosen(guard.delivery)]
        return sum(self._fire(guard, reason) for guard in guards)

    def interrupt_soon(self, reason: type[Interrupt], chosen: Callable[[Delivery], bool]) -> None:
        """The same on the watchdog's own thread, for callers that must not wait for the network."""
        now = clock.monotonic()
        with self._lock:
            for guard in self._guards:
                if guard.reason is None and chosen(guard.delivery):
                    self._set_due(guard, now, reason)

    def _set_due(self, guard: Guard, due_at: float, reason: type[Interrupt]) -> None:
        """Under the lock. It is not woken when it will look in time anyway, as it will for all but short limits."""
        guard.due_at, guard.due_reason = due_at, reason
        if due_at < self._looks_at:
            self._looks_at = due_at
            self._changed.notify()

    def _fire(self, guard: Guard, reason: type[Interrupt]) -> bool:
        if not guard.fire(reason, self._pool):
            return False
        with self._lock:
            if guard in self._guards:
                self._fired.add(guard)
                self._late.add(guard)
                self._changed.notify()
        return True

    def _run(self) -> None:
        try:
            while not self._stopped:
                self._put_off_end()
                self._run_once()
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _put_off_end(self) -> None:
        """C code that does not let go of the interpreter stops this thread as well, but not the timer."""
        faulthandler.dump_traceback_later(max(self._limit, _LEAST), exit=True, file=2)

    def _run_once(self) -> None:
        with self._lock:
            if self._stopped:
                return
            seconds = self._seconds_to_next()
            self._looks_at = clock.monotonic() + seconds
            self._changed.wait(seconds)
            self._looks_at = 0.0
            due = self._take_due()
            fired, late, kept = list(self._fired), self._take_late(), list(self._unreplaced)
        for guard in late:
            self._report(guard.delivery, guard.reason.__name__ if guard.reason else None, guard.fired_at, guard.where())
        self._replace([*late, *kept])
        for run in self.hooks.overdue():
            if not run.reported:
                run.reported = True
                self._report(run.delivery, f"in its hooks {run.where_in}", run.since, run.where())
        for guard in fired:
            self._put_off_end()  # a cancel waits for the network, and there may be many
            if not guard.cancel_again(self._pool):
                self._fired.discard(guard)
        for guard, reason in due:
            self._put_off_end()
            if self._fire(guard, reason):
                event = "job.timed_out" if reason is TimeLimitExceeded else "job.cancelled"
                claim = guard.delivery.claim
                logger.warning(event, job_id=str(claim.id), actor=claim.actor, attempt=claim.attempt)

    def _report(self, delivery: Delivery, reason: str | None, since: float, stack: str) -> None:
        claim = delivery.claim
        logger.error(
            "job.stuck", job_id=str(claim.id), actor=claim.actor, attempt=claim.attempt,
            reason=reason, since=round(clock.monotonic() - since, 1), stack=stack,
        )  # fmt: skip

    def _replace(self, guards: list[Guard]) -> None:
        """Give the slots of *guards* to others; in a drain there are none."""
        for guard in guards:
            if self.replace is None or self._announced is not None:
                return
            replaced = self.replace(guard)
            with self._lock:
                if replaced:
                    self._unreplaced.discard(guard)
                elif guard in self._late:
                    self._unreplaced.add(guard)

    def _take_late(self) -> list[Guard]:
        now = clock.monotonic()
        late = [guard for guard in self._late if not guard.reported and now >= guard.fired_at + _REPORT]
        for guard in late:
            guard.reported = True
        return late

    def _seconds_to_next(self) -> float:
        now = clock.monotonic()
        reports = [guard.fired_at + _REPORT - now for guard in self._late if not guard.reported]
        until_due = [guard.due_at - now for guard in self._guards]
        again = [*([_CANCEL_INTERVAL] if self._fired else []), *([_TRY_AGAIN] if self._unreplaced else [])]
        return max(0.0, min([max(self._limit, _LEAST) / 4, *reports, *until_due, *again]))

    def _take_due(self) -> list[tuple[Guard, type[Interrupt]]]:
        now = clock.monotonic()
        due = [guard for guard in self._guards if guard.due_at <= now]
        for guard in due:
            guard.due_at = float("inf")
        return [(guard, guard.due_reason) for guard in due]
