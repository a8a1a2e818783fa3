"""The watchdog: ends a job's body at its timeout, or when the worker drains or has lost its lease."""

from __future__ import annotations

import ctypes
import heapq
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dramatiq.middleware import Interrupt, TimeLimitExceeded

from worker import clock, log
from worker.pool import Pool
from worker.queue.delivery import Delivery

logger = log.get_logger(__name__)

_CANCEL_TIMEOUT = 3.0
_CANCEL_INTERVAL = 0.1


class Guard:
    """
    One job's body, and the right to interrupt it, which is used once or given up.

    Either the body ends first, and no interrupt can come any more; or the watchdog fires first, and then the job waits
    until that is complete before it touches its connection. A lock decides: a plain one, because an interrupt can land
    between the taking of a `threading.Condition` and the block that gives it back, but not with a plain lock.
    """

    def __init__(self, delivery: Delivery, interrupt: Callable[[type[Interrupt]], None]) -> None:
        self.delivery = delivery
        self.reason: type[Interrupt] | None = None
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
        self.delivery.stop()
        with self._lock:
            if self._over or self.reason is not None:
                return False
            self.reason = reason
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

    def wait_complete(self) -> None:
        """Until an interrupt that has begun is over, whatever the network does."""
        if self._complete is not None:
            self._complete.wait(_CANCEL_TIMEOUT * 2)


class Watchdog:
    """One thread that fires guards at their deadlines; a context manager."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._changed = threading.Condition()
        self._deadlines: list[tuple[float, int, Guard, type[Interrupt]]] = []
        self._order = itertools.count()
        self._guards: set[Guard] = set()
        self._fired: set[Guard] = set()
        self._cutting: type[Interrupt] | None = None
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

    def _fire(self, guard: Guard, reason: type[Interrupt]) -> bool:
        if not guard.fire(reason, self._pool):
            return False
        with self._changed:
            if guard in self._guards:
                self._fired.add(guard)
                self._changed.notify()
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._stopped:
                    return
                self._changed.wait(self._seconds_to_next())
                due = self._take_due()
                fired = list(self._fired)
            for guard in fired:
                if not guard.cancel_again(self._pool):
                    self._fired.discard(guard)
            for guard, reason in due:
                if self._fire(guard, reason) and reason is TimeLimitExceeded:
                    claim = guard.delivery.claim
                    logger.warning("job.timed_out", job_id=str(claim.id), actor=claim.actor, attempt=claim.attempt)

    def _forget_released(self) -> None:
        """Drop the entries of ended jobs when they are the most of it: a deadline may be far beyond its job's end."""
        if len(self._deadlines) > 2 * len(self._guards) + 64:
            self._deadlines = [entry for entry in self._deadlines if entry[2] in self._guards]
            heapq.heapify(self._deadlines)

    def _seconds_to_next(self) -> float | None:
        until_due = max(0.0, self._deadlines[0][0] - clock.monotonic()) if self._deadlines else None
        if not self._fired:
            return until_due
        return _CANCEL_INTERVAL if until_due is None else min(until_due, _CANCEL_INTERVAL)

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
