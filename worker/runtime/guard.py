"""The guard: one job's body, and the right to interrupt it."""

from __future__ import annotations

import ctypes
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dramatiq.middleware import Interrupt, TimeLimitExceeded
from dramatiq.threading import raise_thread_exception

from worker import clock
from worker.pool import Pool
from worker.queue.delivery import Delivery
from worker.queue.stop_reason import StopReason
from worker.runtime.stack import stack_of_thread

_CANCEL_TIMEOUT = 3.0


class Guard(ABC):
    """
    One job's body, and the right to interrupt it, which is used once or given up.

    Either the body ends first, and no interrupt can come any more; or the watchdog fires first, and then the job waits
    until that is complete before it touches its connection. A lock decides: a plain one, because an interrupt can land
    between the taking of a `threading.Condition` and the block that gives it back, but not with a plain lock.
    """

    __slots__ = (
        "_complete", "_lock", "_over", "_put_off", "_shields", "delivery", "due_at", "due_reason", "fired_at", "met",
        "reason", "reported",
    )  # fmt: skip

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.due_at = float("inf")
        """When to fire it, monotonic, and ..."""
        self.due_reason: type[Interrupt] = TimeLimitExceeded
        """... what to fire it with."""
        self.reason: type[Interrupt] | None = None
        self.fired_at = float("inf")
        self.reported = False
        self.met = False
        """Whether the body has heard of the interrupt: what it does from here on is its own way of ending."""
        self._lock = threading.Lock()
        self._over = False
        self._shields = 0
        self._put_off = False
        self._complete: threading.Event | None = None  # made by the one in many that fires

    @property
    def job_thread(self) -> int | None:
        """The job thread that the body keeps from other jobs; None when it keeps none."""
        return None

    @abstractmethod
    def where(self) -> str:
        """The body's stack."""

    @abstractmethod
    def _interrupt(self, reason: type[Interrupt]) -> None:
        """Make the body end with *reason*."""

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


class ThreadGuard(Guard):
    """The guard of a plain `def`, on the thread that makes it."""

    __slots__ = ("_thread",)

    def __init__(self, delivery: Delivery) -> None:
        super().__init__(delivery)
        self._thread = threading.get_ident()

    @property
    def job_thread(self) -> int:
        return self._thread

    def where(self) -> str:
        return stack_of_thread(self._thread)

    def _interrupt(self, reason: type[Interrupt]) -> None:
        raise_thread_exception(self._thread, _telling(self, reason))


def _telling(guard: Guard, reason: type[Interrupt]) -> type[Interrupt]:
    """*reason*, which tells *guard* when the body meets it: only then is it made into an exception."""

    def tell(self: Interrupt, *args: Any) -> None:
        guard.met = True
        reason.__init__(self, *args)

    return type(reason.__name__, (reason,), {"__init__": tell, "__module__": reason.__module__})


def clear_interrupt() -> None:
    """Take back an interrupt that this thread was sent and has not met yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(threading.get_ident()), None)
