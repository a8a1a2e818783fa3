"""The watchdog: ends a job's body at its timeout, or when the worker drains or has lost its lease."""

from __future__ import annotations

import ctypes
import faulthandler
import heapq
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dramatiq.middleware import Interrupt, TimeLimitExceeded

from worker import clock, log
from worker.pool import Pool
from worker.queue.delivery import Delivery
from worker.queue.stop_reason import StopReason
from worker.runtime.hook_watch import HookRun, HookWatch

logger = log.get_logger(__name__)

_CANCEL_TIMEOUT = 3.0
_CANCEL_INTERVAL = 0.1
# After its interrupt: a body that still runs is reported.
_REPORT = 3.0
# However short the limit of a body, the interpreter itself may stand still for so long.
_LEAST = 2.0


class Guard:
    """
    One job's body, and the right to interrupt it, which is used once or given up.

    Either the body ends first, and no interrupt can come any more; or the watchdog fires first, and then the job waits
    until that is complete before it touches its connection. A lock decides: a plain one, because an interrupt can land
    between the taking of a `threading.Condition` and the block that gives it back, but not with a plain lock.
    """

    def __init__(
        self, delivery: Delivery, interrupt: Callable[[type[Interrupt]], None], where: Callable[[], str] = str
    ) -> None:
        self.delivery = delivery
        self.where = where
        """Tells the body's stack."""
        self.reason: type[Interrupt] | None = None
        self.fired_at = float("inf")
        self.reported = False
        self.met = False
        """Whether the body has heard of the interrupt: what it does from here on is its own way of ending."""
        self._interrupt = interrupt
        self._lock = threading.Lock()
        self._over = False
        self._shields = 0
        self._put_off = False
        self._complete: threading.Event | None = None  # made by the one in many that fires

    def fire(self, reason: type[Interrupt], pool: Pool) -> bool:
        """Interrupt the body and cancel what its connections are doing; False when it is over already."""
        with self._lock:
            if self._over or self.reason is not None:
                return False
            self.delivery.stop(StopReason.of(reason))
            self.reason = reason
            self.fired_at = clock.monotonic()
            complete = self._complete = threading.Event()
            if self._shields:
                self._put_off = True
            else:
                self._interrupt(reason)
        self._cancel(pool, complete)
        return True

    def cancel_again(self, pool: Pool) -> bool:
        """
        Cancel again what a body that was interrupted is doing; False when it has heard, or is over.

        A cancel can come a moment before the statement that it is meant for, and a thread that waits for the server
        within psycopg hears of no interrupt before its statement ends.
        """
        with self._lock:
            if self._over or self.met or self._complete is None:
                return False
            complete = self._complete
            complete.clear()
        self._cancel(pool, complete)
        return True

    def _cancel(self, pool: Pool, complete: threading.Event) -> None:
        try:
            # By holder, which covers the injected connection and what the body took from the pool by itself.
            pool.cancel(self.delivery.holder, timeout=_CANCEL_TIMEOUT)
        finally:
            complete.set()

    def disarm(self) -> bool:
        """Give up the right; False when it was used: then wait for `complete`."""
        with self._lock:
            self._over = True
            return self.reason is None

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Put an interrupt off to the end of the block; for what must not be left half done, and is short."""
        with self._lock:
            self._shields += 1
        try:
            yield
        finally:
            with self._lock:
                self._shields -= 1
                due = self._put_off and not self._shields
                self._put_off = self._put_off and not due
            if due and self.reason is not None:
                self.met = True
                raise self.reason()

    def verdict(self) -> Interrupt | None:
        """What its job fails with when the body goes on after its interrupt."""
        if self.reason is None:
            return None
        return self.reason(f"it went on after its interrupt, so its process was ended\n{self.where()}".rstrip())

    def wait_complete(self) -> None:
        """Until an interrupt that has begun is over, whatever the network does."""
        if self._complete is not None:
            self._complete.wait(_CANCEL_TIMEOUT * 2)


class Watchdog:
    """
    One thread that fires guards at their deadlines, and tells whose body or hooks do not end; a context manager.

    Args:
        stuck: Seconds after its interrupt when a body that still runs counts as `stuck`; after their time, of hooks.
    """

    def __init__(self, pool: Pool, *, stuck: float = 60.0) -> None:
        self.hooks = HookWatch()
        self._pool = pool
        self._limit = stuck
        self._changed = threading.Condition()
        self._deadlines: list[tuple[float, int, Guard, type[Interrupt]]] = []
        self._order = itertools.count()
        self._guards: set[Guard] = set()
        self._fired: set[Guard] = set()
        self._late: set[Guard] = set()  # all that were fired and whose body still runs
        self._cutting: type[Interrupt] | None = None
        self._announced: StopReason | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join(_CANCEL_TIMEOUT * 2)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def watch(self, guard: Guard, timeout: float | None, reason: type[Interrupt]) -> None:
        """Fire *guard* in *timeout* seconds, unless it is released before."""
        with self._changed:
            self._guards.add(guard)
            if self._announced is not None:
                guard.delivery.stop(self._announced)
            if self._cutting is not None:
                timeout, reason = 0.0, self._cutting
            if timeout is None:
                return
            self._forget_released()
            heapq.heappush(self._deadlines, (clock.monotonic() + timeout, next(self._order), guard, reason))
            if self._deadlines[0][2] is guard:
                self._changed.notify()

    def release(self, guard: Guard) -> None:
        """Forget *guard*; its body is over."""
        with self._changed:
            self._guards.discard(guard)
            self._fired.discard(guard)
            self._late.discard(guard)

    @property
    def stuck(self) -> list[Guard | HookRun]:
        """Those whose body has not heeded its interrupt for too long, and those whose hooks do not return."""
        with self._changed:
            bodies = [guard for guard in self._late if clock.monotonic() >= guard.fired_at + self._limit]
        return [*bodies, *self.hooks.overdue(self._limit)]

    def announce(self, reason: StopReason) -> None:
        """Tell every job, and those that come later, that it should end; it may do so in its own time."""
        with self._changed:
            self._announced = reason
            for guard in self._guards:
                if guard.reason is None:
                    guard.delivery.stop(reason)

    def cut(self, reason: type[Interrupt]) -> int:
        """Fire every guard now, and those that come later at once: a job may be on its way to its body."""
        with self._changed:
            self._cutting = reason
        return self.interrupt_all(reason)

    def interrupt_all(self, reason: type[Interrupt]) -> int:
        """Fire every guard now, from the calling thread; how many bodies it met."""
        return self.interrupt(reason, lambda _: True)

    def interrupt(self, reason: type[Interrupt], chosen: Callable[[Delivery], bool]) -> int:
        """Fire the guards of the *chosen* deliveries now; how many bodies it met."""
        with self._changed:
            guards = [guard for guard in self._guards if chosen(guard.delivery)]
        return sum(self._fire(guard, reason) for guard in guards)

    def interrupt_soon(self, reason: type[Interrupt], chosen: Callable[[Delivery], bool]) -> None:
        """The same on the watchdog's own thread, for callers that must not wait for the network."""
        with self._changed:
            for guard in self._guards:
                if guard.reason is None and chosen(guard.delivery):
                    heapq.heappush(self._deadlines, (clock.monotonic(), next(self._order), guard, reason))
            self._changed.notify()

    def _fire(self, guard: Guard, reason: type[Interrupt]) -> bool:
        if not guard.fire(reason, self._pool):
            return False
        with self._changed:
            if guard in self._guards:
                self._fired.add(guard)
                self._late.add(guard)
                self._changed.notify()
        return True

    def _run(self) -> None:
        try:
            # C code that does not let go of the interpreter stops this thread as well, but not the timer.
            while not self._stopped:
                faulthandler.dump_traceback_later(max(self._limit, _LEAST), exit=True, file=2)
                self._run_once()
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _run_once(self) -> None:
        with self._changed:
            if self._stopped:
                return
            self._changed.wait(self._seconds_to_next())
            due = self._take_due()
            fired, late = list(self._fired), self._take_late()
        for guard in late:
            self._report(guard.delivery, guard.reason.__name__ if guard.reason else None, guard.fired_at, guard.where())
        for run in self.hooks.overdue():
            if not run.reported:
                run.reported = True
                self._report(run.delivery, f"in its hooks {run.where_in}", run.since, run.where())
        for guard in fired:
            if not guard.cancel_again(self._pool):
                self._fired.discard(guard)
        for guard, reason in due:
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

    def _take_late(self) -> list[Guard]:
        now = clock.monotonic()
        late = [guard for guard in self._late if not guard.reported and now >= guard.fired_at + _REPORT]
        for guard in late:
            guard.reported = True
        return late

    def _forget_released(self) -> None:
        """Drop the entries of ended jobs when they are the most of it: a deadline may be far beyond its job's end."""
        if len(self._deadlines) > 2 * len(self._guards) + 64:
            self._deadlines = [entry for entry in self._deadlines if entry[2] in self._guards]
            heapq.heapify(self._deadlines)

    def _seconds_to_next(self) -> float:
        now = clock.monotonic()
        reports = [guard.fired_at + _REPORT - now for guard in self._late if not guard.reported]
        until_due = [self._deadlines[0][0] - now] if self._deadlines else []
        again = [_CANCEL_INTERVAL] if self._fired else []
        return max(0.0, min([max(self._limit, _LEAST) / 4, *reports, *until_due, *again]))

    def _take_due(self) -> list[tuple[Guard, type[Interrupt]]]:
        due = []
        now = clock.monotonic()
        # Entries of jobs that ended long before their deadline go with the first look that finds them in front.
        while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][2] not in self._guards):
            _, _, guard, reason = heapq.heappop(self._deadlines)
            if guard in self._guards:
                due.append((guard, reason))
        return due


def clear_interrupt() -> None:
    """Take back an interrupt that this thread was sent and has not met yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(threading.get_ident()), None)
