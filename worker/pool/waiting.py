"""Waiters: who waits for a connection, threads and coroutines in one line."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from psycopg_pool import PoolTimeout
from psycopg_pool.pool import WaitingClient

from worker import clock
from worker.errors import PoolDeadlock
from worker.pool.checkout import Checkout, Checkouts
from worker.pool.connection import Connection


class Waiter(WaitingClient[Connection]):
    """
    A place in the line, for a thread.

    The connection is on the books from the moment it is handed over, whether or not its taker still wakes up.
    """

    __slots__ = ("_checkouts", "checkout")

    def __init__(self, checkout: Checkout, checkouts: Checkouts) -> None:
        super().__init__()
        self.checkout = checkout
        self._checkouts = checkouts

    @property
    def is_waiting(self) -> bool:
        """Whether it has got neither a connection nor an error yet."""
        return self.conn is None and self.error is None

    @property
    def is_gone(self) -> bool:
        """Whether nobody waits here any more, without having left the line."""
        return not self.is_waiting

    def set(self, conn: Connection) -> bool:
        """Hand *conn* over; False when nobody waits here any more."""
        with self._cond:
            if not self.is_waiting or not self._wake():
                return False
            self.conn = conn
            self.checkout.since = clock.monotonic()
            self._checkouts.begin(self.checkout, conn)
            self._cond.notify_all()
            return True

    def fail(self, error: Exception) -> bool:
        """Tell that there will be no connection; False when nobody waits here any more."""
        with self._cond:
            if not self.is_waiting:
                return False
            self.error = error
            self._wake()
            self._cond.notify_all()
            return True

    def _wake(self) -> bool:
        return True


class LoopWaiter(Waiter):
    """A place in the same line, for a coroutine."""

    __slots__ = ("_loop", "_woken")

    def __init__(self, checkout: Checkout, checkouts: Checkouts) -> None:
        super().__init__(checkout, checkouts)
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()

    async def wait_async(self, timeout: float) -> Connection:  # noqa: ASYNC109  # as in `wait`
        """
        Wait without blocking the loop.

        Raises:
            PoolTimeout: After *timeout* seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._woken.wait()
        except TimeoutError:
            pass  # unless a connection came in the same moment, which is looked at below
        except asyncio.CancelledError as exc:
            with self._cond:
                self.error = self.error or exc
            raise
        with self._cond:
            if self.conn is None:
                self.error = self.error or PoolTimeout(f"none after {timeout:.2f} s")
                raise self.error
            return self.conn

    @property
    def is_gone(self) -> bool:
        return not self.is_waiting or self._loop.is_closed()

    def abandon(self) -> None:
        """
        The coroutine was closed rather than cancelled, mostly by the garbage collector after the end of its loop.

        That can happen in the middle of anything, so no lock may be taken. What was handed over in this very moment
        the sweep will find.
        """
        self.error = self.error or PoolTimeout("given up")

    def _wake(self) -> bool:
        """
        Called before the connection is handed over, and under the lock: the coroutine cannot look before it is.

        The loop of a waiter can be closed while it waits. Then the connection goes to the next one.
        """
        try:
            self._loop.call_soon_threadsafe(self._woken.set)
        except RuntimeError as exc:
            self.error = exc
            return False
        return True


def refuse_deadlock(asking: Checkout, waiters: Iterable[Waiter], checkouts: Checkouts, seats: int) -> None:
    """
    Refuse to wait when nobody is left who could ever return a connection.

    Somebody who holds a connection may well wait for another, as long as one of those that are out belongs to somebody
    who does not wait. *seats* is how many can be out at most.

    Raises:
        PoolDeadlock: Every connection is out, and all who have one would wait. Names both places in the code.
    """
    if len(checkouts) < seats:
        return
    held = checkouts.listed()
    mine = next((checkout for checkout in held if _returned_only_after(checkout, asking)), None)
    if mine is None:
        return  # the rule, in a crowd
    if any(checkout.abandoned() for checkout in held):
        return  # the sweep will end that one, and somebody gets its seat
    asked = [waiter.checkout for waiter in list(waiters) if waiter.is_waiting]
    asked.append(asking)
    if all(any(_returned_only_after(checkout, wanted) for wanted in asked) for checkout in held):
        raise PoolDeadlock(
            f"{asking.who} asks for a second connection at {asking.taken_at} while it holds one taken at"
            f" {mine.taken_at}, and all {seats} connections for jobs are held by callers who wait like this one:"
            " use the one it has, return it first, or make the pool larger than the number of such callers"
        )


def _returned_only_after(held: Checkout, asked: Checkout) -> bool:
    """Whether *held* cannot come back before *asked* is answered."""
    if held.flow is asked.flow:
        return True
    return held.spans_job and held.holder is not None and held.holder == asked.holder
