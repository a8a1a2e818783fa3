"""The lending: connections of the supply are taken, given back, and taken from those who are gone."""

from __future__ import annotations

import asyncio
import os
import threading
from asyncio.events import _get_running_loop
from collections.abc import Callable, Coroutine
from contextlib import nullcontext, suppress
from datetime import datetime
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg_pool import PoolTimeout

from worker import clock, log
from worker.errors import PoolForked
from worker.pool.borrowed import Borrowed
from worker.pool.checkout import Checkout, Checkouts, shield
from worker.pool.connection import Connection
from worker.pool.lent import Lent
from worker.pool.options import AsyncMode, PoolOptions
from worker.pool.supply import Supply
from worker.pool.threaded import ThreadedConnection
from worker.pool.view import AsyncView
from worker.pool.waiting import LoopWaiter, Waiter, refuse_deadlock

logger = log.get_logger(__name__)

# How long who would rather have nothing than wait is kept by connections that must be asked first.
_AT_ONCE = 0.1
# What an idle connection gets to answer in, however little time its taker has left: it is not to blame for that.
_LEAST_TO_ASK = 0.05

# After a silence: for how long it is looked who waits in vain, and how often.
_LOST_WITHIN = 6.0
_LOOK_AGAIN = 1.0
_READ_STATES: LiteralString = """
    SELECT pid, state, state_change
    FROM pg_stat_activity
    WHERE pid = ANY(%s) AND starts_with(application_name || ' ', current_setting('application_name') || ' ')"""
_NOT_ASKED = ("", datetime.min)  # noqa: DTZ901  # equal to no time that a server tells

T = TypeVar("T")
W = TypeVar("W", bound=Waiter)


class Lending(Supply):
    """
    A supply whose connections are lent, in the order of asking; the books say to whom.

    Threads and coroutines of any event loop stand in one line.
    """

    def __init__(self, options: PoolOptions) -> None:
        super().__init__(options)
        self._checkouts = Checkouts()
        self._num_timeouts = self._num_reclaimed = 0
        self._suspects: dict[int, tuple[str, datetime] | None] = {}
        self._looked_at = 0.0

    # Taking

    def connection(self, timeout: float | None = None) -> Borrowed[Connection, psycopg.AsyncConnection[Any]]:  # type: ignore[override]  # more than a generator: it serves `async with` too
        """
        A connection for a block, `with` or `async with`; its end commits, or rolls back what raised.

        Raises:
            PoolTimeout: None became free within *timeout* seconds (`acquire_timeout` when None); names who holds what
                since when.
            PoolDeadlock: None can become free, because everybody who holds one waits, this caller included.
            PoolClosed: The pool is closed or closing.
            PoolForked: This process was forked from the one that opened the pool.
        """
        return Borrowed(self, timeout)

    def begin(self, timeout: float | None = None) -> Borrowed[Connection, psycopg.AsyncConnection[Any]]:
        """Like `connection`, in a transaction that has begun, and that the block cannot end by itself."""
        return Borrowed(self, timeout, begin=True)

    def try_begin(self) -> Borrowed[Connection | None, psycopg.AsyncConnection[Any] | None]:
        """Like `begin`, but the block gets None if no connection is idle or others wait for one."""
        return Borrowed(self, begin=True, wait=False)

    def acquire(self, timeout: float | None = None) -> Connection:
        """
        Take a connection, to be given back with `release`; prefer `connection()`, which cannot forget it.

        Raises:
            PoolTimeout, PoolDeadlock, PoolClosed, PoolForked: As `connection`.
        """
        shielded = shield.get()
        if shielded is nullcontext:  # the rule outside of jobs; entering it costs as much as the hand-over itself
            return self._acquire(timeout)
        with shielded():
            return self._acquire(timeout)

    def _acquire(self, timeout: float | None) -> Connection:
        deadline: float | None = None
        again = False
        while True:
            checkout = Checkout()
            if deadline is None:
                deadline = checkout.since + (self.timeout if timeout is None else timeout)
            got = self._ask(Waiter, checkout, first=again)
            conn = got if isinstance(got, Connection) else self._wait(got, deadline)
            if self._is_handed_out(conn, deadline):
                return conn
            again = True

    def try_acquire(self) -> Connection | None:
        """A connection if one is idle and nobody waits for it, else None at once; to be given back with `release`."""
        deadline = clock.monotonic() + _AT_ONCE
        with shield.get()():
            while (conn := self._take_idle()) is not None:
                if self._is_handed_out(conn, deadline):
                    return conn
                if clock.monotonic() >= deadline:
                    break
        return None

    async def acquire_async(self, timeout: float | None = None) -> psycopg.AsyncConnection[Any]:  # noqa: ASYNC109  # as in `acquire`
        """`acquire` for coroutines; waits in the same line as threads. To be given back with `release_async`."""
        deadline = clock.monotonic() + (self.timeout if timeout is None else timeout)
        again = False
        while True:
            got = self._ask(LoopWaiter, Checkout(), first=again)
            conn = got if isinstance(got, Connection) else await self._wait_async(got, deadline)
            if await self._is_handed_out_async(conn, deadline):
                return self._given_as_view(conn)
            again = True

    async def try_acquire_async(self) -> psycopg.AsyncConnection[Any] | None:
        """`try_acquire` for coroutines."""
        deadline = clock.monotonic() + _AT_ONCE
        while (conn := self._take_idle()) is not None:
            if await self._is_handed_out_async(conn, deadline):
                return self._given_as_view(conn)
            if clock.monotonic() >= deadline:
                break
        return None

    def getconn(self, timeout: float | None = None) -> Connection:
        """psycopg_pool's name of `acquire`."""
        return self.acquire(timeout)

    def _given_as_view(self, conn: Connection) -> psycopg.AsyncConnection[Any]:
        view = self.view(conn)
        if conn.checkout is not None:
            # Earlier users may know the connection for a while yet, if only in garbage that nobody has collected.
            conn.checkout.give_view(view)
        return view

    def view(self, conn: Connection) -> psycopg.AsyncConnection[Any]:
        """A connection that is out, for use by coroutines instead of threads."""
        if self.options.async_mode is AsyncMode.THREAD:
            return ThreadedConnection(conn)  # type: ignore[return-value]  # it has the methods
        return AsyncView(conn)

    def _ask(self, kind: type[W], checkout: Checkout, *, first: bool) -> Connection | W:
        """An idle connection, on the books already, or a place in the line; the *first* for whose last one was bad."""
        if self._forked:
            self._refuse_fork()
        with self._lock:
            if self._closed:
                self._check_open_getconn()
            self._stats[self._REQUESTS_NUM] += 1
            if self._pool:
                conn = self._pool.popleft()
                self._checkouts.begin(checkout, conn)
                return conn
            refuse_deadlock(checkout, self._waiting, self._checkouts, self._max_size)
            self._stats[self._REQUESTS_QUEUED] += 1
            waiter = kind(checkout, self._checkouts)
            if first:
                self._waiting.appendleft(waiter)
            else:
                self._waiting.append(waiter)
            self._maybe_grow_pool()
            return waiter

    def _take_idle(self) -> Connection | None:
        self._refuse_fork()
        checkout = Checkout()
        with self._lock:
            self._check_open_getconn()
            if self._waiting or not self._pool:
                return None
            conn = self._pool.popleft()
            self._checkouts.begin(checkout, conn)
            return conn

    def _wait(self, waiter: Waiter, deadline: float) -> Connection:
        started = clock.monotonic()
        try:
            return waiter.wait(max(0.0, deadline - started))
        except BaseException as exc:
            self._leave_line(waiter, exc, started)
            raise
        finally:
            self._count_wait(started)

    async def _wait_async(self, waiter: LoopWaiter, deadline: float) -> Connection:
        started = clock.monotonic()
        try:
            return await waiter.wait_async(max(0.0, deadline - started))
        except GeneratorExit:
            waiter.abandon()
            raise
        except BaseException as exc:
            self._leave_line(waiter, exc, started)
            raise
        finally:
            self._count_wait(started)

    def _count_wait(self, started: float) -> None:
        self._stats[self._REQUESTS_WAIT_MS] += round((clock.monotonic() - started) * 1000)

    def _leave_line(self, waiter: Waiter, exc: BaseException, started: float) -> None:
        """Nobody waits at *waiter* any more: what it was given meanwhile goes to the next."""
        waiter.fail(PoolTimeout("given up"))
        with self._lock, suppress(ValueError):
            self._waiting.remove(waiter)
        if waiter.conn is not None and self._end_checkout(waiter.conn):
            self._add_to_pool(waiter.conn)
            self._checkouts.settled(waiter.checkout)
        if isinstance(exc, PoolTimeout):
            self._num_timeouts += 1
            raise PoolTimeout(self._why_none_is_free(clock.monotonic() - started)) from None

    def _is_handed_out(self, conn: Connection, deadline: float) -> bool:
        """Whether *conn* is fit for its taker; one that is not is replaced, and its taker notices nothing."""
        fit: bool | None = False
        try:
            fit = self._seems_fit(conn, clock.monotonic())
            if fit is None:
                fit = self._is_fit(conn, _time_to_ask(deadline))
        finally:
            if fit:
                conn._pool = self
            else:
                self._refuse(conn)
        return fit is True

    async def _is_handed_out_async(self, conn: Connection, deadline: float) -> bool:
        fit: bool | None = False
        try:
            fit = self._seems_fit(conn, clock.monotonic())
            if fit is None:
                fit = await in_thread(lambda: self._is_fit(conn, _time_to_ask(deadline)))
        finally:
            if fit:
                conn._pool = self
            else:
                self._refuse(conn)
        return fit is True

    def _refuse(self, conn: Connection) -> None:
        """Dead or too old, say after a restart of the server; or its taker was interrupted while it was asked."""
        checkout = conn.checkout
        if checkout is not None and self._checkouts.end(checkout):
            try:
                self.retire_soon(conn)
            finally:
                self._checkouts.settled(checkout)

    # Giving back

    def release(self, conn: psycopg.Connection[Any]) -> None:
        """
        Give back a connection taken with `acquire`; what it left behind is undone, and one that is broken is replaced.

        Raises:
            ValueError: It is not one of this pool's that are out. One that was reclaimed meanwhile is let pass.
        """
        if not isinstance(conn, Connection) or (conn.checkout is None and not conn.revoked):
            raise ValueError(f"cannot take back {conn}: it is not out of {self!r}; was it given back before?")
        if self._forked:
            return
        shielded = shield.get()
        if shielded is nullcontext:
            self._release(conn)
            return
        with shielded():
            self._release(conn)

    def _release(self, conn: Connection) -> None:
        checkout = conn.checkout
        if checkout is None or not self._checkouts.end(checkout):
            return  # reclaimed, and replaced by now
        try:
            self._take_back(conn, checkout)
        finally:
            self._checkouts.settled(checkout)

    async def release_async(self, view: psycopg.AsyncConnection[Any]) -> None:
        """
        Give back what `acquire_async` gave.

        Raises:
            ValueError: As `release`.
        """
        if _get_running_loop() is None:
            return  # the garbage collector closes a coroutine whose loop is gone: see `Borrowed.__aexit__`
        if not isinstance(view, Lent) or view.is_given_back:
            raise ValueError(f"cannot take back {view}: it is not out of {self!r}; was it given back before?")
        conn = view.pooled
        if not (conn.revoked or (conn.checkout is not None and self._checkouts.holds(conn.checkout))):
            raise ValueError(f"cannot take back {view}: it is not out of {self!r}")
        view.let_go()
        if isinstance(view, AsyncView) and view.lock.locked():
            await to_its_end(self._release_in_use(view, conn))
            return
        takes_long = self._closed or self._after_release or conn.closed or self._is_expired(conn, clock.monotonic())
        if takes_long or not self.hygiene.is_clean(conn):
            await in_thread(lambda: self.release(conn))
        else:
            self.release(conn)

    async def _release_in_use(self, view: AsyncView, conn: Connection) -> None:
        await view.end_statements()
        await asyncio.to_thread(self.release, conn)

    def putconn(self, conn: Connection) -> None:
        """psycopg_pool's name of `release`."""
        self.release(conn)

    def _take_back(self, conn: Connection, checkout: Checkout) -> None:
        if not self._closed:
            if not self.hygiene.is_clean(conn):
                self.hygiene.restore(conn, checkout)
            if self._may_stay(conn):
                self._add_to_pool(conn)
                return
        self.retire(conn)

    def _end_checkout(self, conn: Connection) -> bool:
        """Take *conn* off the books; False when it was off already."""
        checkout = conn.checkout
        return checkout is not None and self._checkouts.end(checkout)

    def is_held_by(self, holder: str) -> bool:
        """Whether *holder* has a connection out."""
        return bool(self._checkouts.held_by(holder))

    def reclaim(self, holder: str) -> None:
        """
        End what *holder* still has out: it is over, and nobody else will return it.

        The connection is never handed on, because its session may be in any state; another takes its place.
        """
        for checkout in self._checkouts.held_by(holder):
            self._reclaim(checkout, "its job is over")

    def _reclaim(self, checkout: Checkout, why: str) -> None:
        if self._book_leak(checkout, why):
            self._revoke(checkout)

    def _book_leak(self, checkout: Checkout, why: str) -> bool:
        """Take *checkout* off the books and name it; False when it was off already."""
        if not self._checkouts.end(checkout, revoking=True):
            return False
        self._num_reclaimed += 1
        logger.error("pool.leaked", why=why, checkout=str(checkout), statement=checkout.last_statement)
        return True

    def _revoke(self, checkout: Checkout) -> None:
        """End the session of *checkout*, which is off the books; the connection may be in use, or be no more."""
        assert checkout.pgconn is not None  # noqa: S101  # it was out
        conn = checkout.conn or Connection(checkout.pgconn)
        conn._pool = None
        try:
            conn.revoke(by_coroutine=self.options.async_mode is AsyncMode.VIEW and checkout.is_looped)
        finally:
            self._vacate(conn)
            self._checkouts.settled(checkout)

    def cancel(self, holder: str, *, timeout: float) -> None:
        """Cancel on the server what *holder*'s connections are doing now; each within *timeout* seconds."""
        for checkout in self._checkouts.held_by(holder):
            self._cancel(checkout, timeout)

    def _cancel(self, checkout: Checkout, timeout: float) -> None:
        with checkout.lock:
            conn = checkout.conn
            if conn is not None and self._checkouts.holds(checkout) and conn.is_busy:
                try:
                    conn.cancel_safe(timeout=timeout)
                except psycopg.Error as exc:
                    logger.warning("pool.cancel_failed", reason=str(exc))

    def wake_lost(self, conn: psycopg.Connection[Any]) -> None:
        """
        Wake those who wait for an answer that will not come, for some seconds after something fell silent.

        Somebody waits for an answer, and his session does not exist or waits for him, twice within a second: then it is
        not the one at the other end.

        Args:
            conn: A session that works, in autocommit.
        """
        now = clock.monotonic()
        if not (self._doubted_at < now < self._doubted_at + _LOST_WITHIN) or now < self._looked_at + _LOOK_AGAIN:
            return
        self._looked_at = now
        out = [checkout.conn for checkout in self.checkouts()]
        waiting = {one.server_pid: one for one in out if one is not None and one.is_busy and not one.is_pooled}
        rows = conn.execute(_READ_STATES, [[*waiting, conn.info.backend_pid]]).fetchall() if waiting else []
        states = {pid: (state, since) for pid, state, since in rows}
        if conn.info.backend_pid not in states:
            return  # a pooler in between makes up the numbers of sessions
        suspects = {
            pid: states.get(pid) for pid in waiting if (state := states.get(pid)) is None or state[0] != "active"
        }
        for pid, state in suspects.items():
            if self._suspects.get(pid, _NOT_ASKED) == state and waiting[pid].is_busy:
                logger.warning("pool.lost", server_pid=pid, reason="no answer will come on this connection")
                with self._lock:
                    self._ghosts.append(pid)
                waiting[pid].wake()
        self._suspects = suspects

    def reclaim_abandoned(self) -> None:
        """Take back what nobody can return any more; warn once about what is kept for long."""
        with self._lock:
            gone = [waiter for waiter in self._waiting if waiter.is_gone]
            for waiter in gone:
                self._waiting.remove(waiter)
        for checkout in self._checkouts.listed():
            if why := checkout.abandoned():
                if self._book_leak(checkout, why):
                    # By itself: a server that is silent takes seconds, and the next leak is to be found meanwhile.
                    threading.Thread(target=self._revoke, args=(checkout,), name="pool-revoke", daemon=True).start()
            elif not checkout.warned and checkout.age > self.options.warn_after:
                checkout.warned = True
                logger.warning("pool.held_long", checkout=str(checkout), statement=checkout.last_statement)

    # Seeing

    @property
    def num_out(self) -> int:
        """Connections that are checked out."""
        return len(self._checkouts)

    def checkouts(self) -> list[Checkout]:
        """Every connection that is out, longest first."""
        return self._checkouts.listed()

    def _why_none_is_free(self, waited: float) -> str:
        reasons = [str(checkout) for checkout in self.checkouts()]
        if self._lingering:
            reasons.append(f"{len(self._lingering)} were closed, but the server has not ended their sessions yet")
        if not reasons and (self._failure is None or isinstance(self._failure, psycopg.Error)):
            reasons.append(f"none of them is out: the server is away ({self._failure or 'no answer yet'})")
        elif not reasons:
            reasons.append(f"none of them is out, because none could be made or handed out: {self._failure}")
        return f"no connection within {waited:.1f} s, pool of {self.max_size}: {'; '.join(reasons)}"

    @property
    def is_forked(self) -> bool:
        """Whether this process is a child of the one that opened the pool."""
        return self._forked

    def _refuse_fork(self) -> None:
        if self._forked:
            raise PoolForked(
                f"the pool was opened by process {self._pid}, and this is process {os.getpid()}, forked from it:"
                " its sessions are the parent's; open one here, worker.get_pool() does, or start children with spawn"
            )


def _time_to_ask(deadline: float) -> float:
    return max(_LEAST_TO_ASK, deadline - clock.monotonic())


async def in_thread(call: Callable[[], T]) -> T:
    """Run *call* in a thread to its end, even if the caller is cancelled: it must not lose a connection half way."""
    return await to_its_end(asyncio.to_thread(call))


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Do *work* to its end, even if the caller is cancelled."""
    working = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working})
        raise
