"""The one pool of a process."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, overload
from weakref import WeakSet

import psycopg
from psycopg_pool import PoolClosed

from worker import clock, log
from worker.errors import ConfigError, DatabaseUnavailable
from worker.pool.close_event import CloseEvent
from worker.pool.connection import Connection
from worker.pool.lending import Lending, in_thread
from worker.pool.options import PoolOptions
from worker.pool.stats import PoolStats
from worker.pool.sweep import Sweep
from worker.secrecy import redacted

logger = log.get_logger(__name__)

T = TypeVar("T")

# What statements that were cancelled at the end get to return their connections.
_LET_GO = 1.0
_CANCEL_INTERVAL = 0.1
_CANCEL_TIMEOUT = 1.0
# The pool's own threads end at once, unless they are in the middle of connecting to a server that does not answer.
_JOIN = 2.0
# Until the runtime goes on without the server's word that its last session has ended: a heartbeat that waited longer
# could cost the lease.
_PATIENCE = 2.0


class Pool(Lending):
    """
    The one pool of a process: at most `max_size` sessions on the server, whatever happens.

    Make it with `connect` or `connect_lazy`. Take connections with `connection()`, which commits or rolls back and
    always returns them: `with` in threads, `async with` in coroutines of any event loop. Whoever has to wait is served
    in the order of asking, threads and coroutines alike.
    """

    def __init__(self, options: PoolOptions) -> None:
        super().__init__(options)
        self._reserved = 0
        self._close_event = CloseEvent()
        self._closing = threading.Lock()
        self._ended = threading.Event()
        self._closer: threading.Thread | None = None
        self._sweep = Sweep(self.sweep_once)
        self._num_revoked = 0
        self._last_pin: Connection | None = None

    # Opening

    @classmethod
    def connect(cls, options: PoolOptions) -> Pool:
        """
        Open a pool with one connection made now.

        Raises:
            DatabaseUnavailable: With the server's or the network's own reason, and no password.
            ConfigError: Another pool of this process is open.
        """
        pool = cls.connect_lazy(options)
        try:
            first = pool._connect()
        except psycopg.Error as exc:
            pool.close(0)
            raise DatabaseUnavailable(f"cannot connect to {redacted(options.conninfo)}: {exc}") from exc
        except BaseException:
            pool.close(0)
            raise
        with pool._lock:
            pool._nconns += 1
            pool._min_size = options.min_size
        pool._add_to_pool(first)
        logger.info("pool.opened", database=redacted(options.conninfo), max_size=options.max_size)
        return pool

    @classmethod
    def connect_lazy(cls, options: PoolOptions) -> Pool:
        """
        Open a pool that makes its first connection when somebody asks for one; `min_size` holds from then on.

        Raises:
            ConfigError: Another pool of this process is open.
        """
        pool = cls(options)
        pool.open()
        return pool

    def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        """
        Open the pool, with no connection made yet; a second call does nothing. `connect` is what most should use.

        Raises:
            ConfigError: Another pool of this process is open.
            PoolClosed: It was closed before.
        """
        with _opening:
            if self.options.alone and self._closed:
                _refuse_second()
            super().open()
            if self not in _open:
                _open.add(self)
                self._sweep.start()
        if wait:
            self.wait(timeout)

    # The runtime's own connection

    @contextmanager
    def reserve(self) -> Iterator[None]:
        """
        Set one of the `max_size` connections aside for `pinned` while the block lasts.

        Jobs can never take it, not even while it is broken and being made again: a runtime that starved among its
        own jobs could not renew its lease, and would be taken for dead.
        """
        with self._lock:
            self._max_size -= 1
            self._reserved += 1
        try:
            while self._nconns > self._max_size:
                conn = self.acquire()
                checkout = conn.checkout
                if checkout is not None and self._checkouts.end(checkout):
                    self.retire(conn)
                    self._checkouts.settled(checkout)
            yield
        finally:
            with self._lock:
                self._max_size += 1
                self._reserved -= 1

    @contextmanager
    def pinned(self, patience: float | None = None) -> Iterator[Connection]:
        """
        The reserved connection, in autocommit; made at once by the calling thread, whatever the pool's own back-off.

        It is closed at the end rather than returned, because its session listens and has settings that no job should
        inherit. When it is lost, the pool doubts all that are idle.

        Args:
            patience: Seconds that an answer may take; the statement then ends with an `OperationalError`. None for as
                long as the network believes that somebody is there.

        Raises:
            psycopg.OperationalError: The database is out of reach.
        """
        self._wait_for_last_pin()
        conn = (self._take_out() if self.options.direct is None else None) or self._connect_directly()
        conn._pool = None
        try:
            conn.autocommit = True
            conn.patience = patience
            yield conn
        except psycopg.OperationalError:
            self.doubt()
            raise
        finally:
            conn.close()
            if conn.is_unconfirmed:
                self._leave_to_successor(conn)
            self._last_pin = None if conn.has_ended() else conn

    def _wait_for_last_pin(self) -> None:
        """The seat is free when its last session has ended; but a server that does not say so must not stop us."""
        last, self._last_pin = self._last_pin, None
        if last is not None:
            if not last.has_ended(0.0 if last.is_silent else _PATIENCE):
                logger.warning("pool.session_lingers", reason="the last reserved session has not ended yet")
                self._leave_to_successor(last)
            last.forget_end()

    def _leave_to_successor(self, conn: Connection) -> None:
        """The next session that works has the server end that of *conn*, which is closed."""
        with self._lock:
            self._ghosts.append(conn.server_pid)
        conn.forget_end()

    def _take_out(self) -> Connection | None:
        """An idle connection that is the pool's no more."""
        with self._lock:
            if not self._pool:
                return None
            conn = self._pool.popleft()
        if conn.idle_since <= self._doubted_at:
            self.retire_soon(conn)
            return None
        if not conn.is_live():
            self.retire(conn)
            return None
        with self._lock:
            self._nconns -= 1
        return conn

    # Keeping

    def forget_lingering(self) -> None:
        super().forget_lingering()
        last, self._last_pin = self._last_pin, None
        if last is not None:
            last.forget_end()

    def mend(self, conn: psycopg.Connection[Any]) -> None:
        """
        What a network that fell silent has left behind is put right with the help of *conn*; nothing to do is free.

        Args:
            conn: A session that works: the pinned one.
        """
        self.wake_lost(conn)
        self.end_lingering(conn)

    def sweep_once(self) -> None:
        """One pass over what nobody returns any more, what is too old, and what is missing."""
        self.reclaim_abandoned()
        self.sweep_supply()

    def _forget_parent(self) -> None:
        """In a forked child: whatever is still done with a connection of the parent must not reach its server."""
        self._closed = self._forked = True
        nowhere = os.open(os.devnull, os.O_RDWR)
        for conn in list(self._sessions):
            if not conn.closed:
                os.dup2(nowhere, conn.pgconn.socket)
        os.close(nowhere)

    # Seeing

    @property
    def max_size(self) -> int:
        """The most sessions this pool ever holds, the reserved one included."""
        return self.options.max_size

    @property
    def size(self) -> int:
        """Connections that exist or are being made, the reserved one included."""
        return int(self._nconns) + self._reserved

    @property
    def num_idle(self) -> int:
        """Connections that wait in the pool."""
        return len(self._pool)

    @property
    def is_closed(self) -> bool:
        """Whether it was opened and is closed by now."""
        return self._opened and self._closed

    def stats(self) -> PoolStats:
        """Numbers of this moment and since the pool was opened."""
        counted = self._stats
        return PoolStats(
            max_size=self.max_size,
            min_size=self._min_size,
            size=self.size,
            idle=self.num_idle,
            out=self.num_out,
            reserved=self._reserved,
            waiting=len(self._waiting),
            oldest_checkout=max((checkout.age for checkout in self.checkouts()), default=0.0),
            requests_total=counted[self._REQUESTS_NUM],
            queued_total=counted[self._REQUESTS_QUEUED],
            waited_seconds_total=counted[self._REQUESTS_WAIT_MS] / 1000,
            timeouts_total=self._num_timeouts,
            connects_total=counted[self._CONNECTIONS_NUM],
            connect_errors_total=counted[self._CONNECTIONS_ERRORS],
            reclaimed_total=self._num_reclaimed,
            dirty_total=self.hygiene.num_dirty,
        )

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else f"{self.num_idle} idle, {self.num_out} out of {self.max_size}"
        return f"<Pool {redacted(self.options.conninfo)!r}: {state}>"

    # Closing

    def close_event(self) -> CloseEvent:
        """Set when this pool begins to close."""
        return self._close_event

    @overload
    def do_until(self, work: Awaitable[T]) -> Awaitable[T]: ...

    @overload
    def do_until(self, work: Callable[[], T]) -> T: ...

    def do_until(self, work: Any) -> Any:
        """`CloseEvent.do_until`: do *work* until this pool begins to close."""
        return self._close_event.do_until(work)

    def close(self, grace: float = 5.0) -> None:
        """
        Close the pool: no more connections from now on, those out get *grace* seconds to come back.

        Idle ones end with Terminate. Those still out after the grace have their statements cancelled, and a second
        later they are revoked and named in the log. A second call, from wherever, waits for the same end; in a forked
        child the call does nothing.
        """
        if not (isinstance(grace, int | float) and grace >= 0):
            raise ConfigError(f"pool: close(grace={grace!r}): expected seconds, 0 or more")
        if self.is_forked or not self._opened or not self._is_mine_to_close():
            return
        try:
            self._close_event.set()
            self._stop_serving()
            self._let_return(grace)
            self.forget_lingering()
            self._ended.set()
        finally:
            # If it was interrupted, the next call goes on with it.
            self._closer = None
            self._closing.release()
        logger.info("pool.closed", revoked=self._num_revoked)

    def _is_mine_to_close(self) -> bool:
        """Whether the caller is the one who closes it; if not, returns when it is closed."""
        if self._closer is threading.current_thread():
            return False
        while not self._ended.is_set():
            if self._closing.acquire(timeout=_CANCEL_INTERVAL):
                self._closer = threading.current_thread()
                if not self._ended.is_set():
                    return True
                self._closer = None
                self._closing.release()
        return False

    async def close_async(self, grace: float = 5.0) -> None:
        """`close` for coroutines: those of the same loop can go on, and return what they have."""
        await in_thread(lambda: self.close(grace))

    def _stop_serving(self) -> None:
        """Waiters fail, idle connections end, the pool's threads too."""
        with self._lock:
            self._closed = True
            waiting, idle = list(self._waiting), list(self._pool)
            self._waiting.clear()
            self._pool.clear()
            threads = self._signal_stop_worker()
        for waiter in waiting:
            waiter.fail(PoolClosed(f"the pool {self.name!r} is closing"))
        deadline = clock.monotonic() + _JOIN
        self._sweep.stop(_JOIN)
        _side_by_side(self.retire, idle)
        for thread in threads:
            thread.join(max(0.0, deadline - clock.monotonic()))

    def _let_return(self, grace: float) -> None:
        """Wait for those out, cancel what they do, revoke what does not come back."""
        deadline = clock.monotonic() + grace
        while (left := deadline - clock.monotonic()) > 0:
            until = self._close_event.threads
            for checkout in self.checkouts():
                if checkout.thread in until:
                    self._cancel(checkout, _CANCEL_TIMEOUT)
            if self._checkouts.wait_until_none(min(left, _CANCEL_INTERVAL) if until else left):
                return
        _side_by_side(lambda checkout: self._cancel(checkout, _CANCEL_TIMEOUT), self.checkouts())
        self._checkouts.wait_until_none(_LET_GO)
        left_over = [checkout for checkout in self.checkouts() if self._checkouts.end(checkout, revoking=True)]
        for checkout in left_over:
            self._num_revoked += 1
            logger.warning("pool.revoked", checkout=str(checkout), statement=checkout.last_statement)
        _side_by_side(self._revoke, left_over)


def _side_by_side(call: Callable[[T], object], items: list[T]) -> None:
    """Call it for each item on a thread of its own: a server that does not answer costs its timeout only once."""
    if len(items) <= 1:
        for item in items:
            call(item)
        return
    threads = [threading.Thread(target=call, args=(item,), name="pool-close", daemon=True) for item in items]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


_opening = threading.Lock()
_open: WeakSet[Pool] = WeakSet()


def _refuse_second() -> None:
    for pool in _open:
        if not (pool.is_closed or pool.is_forked) and pool.options.alone:
            raise ConfigError(f"this process has a pool already: {pool!r}; use worker.get_pool()")


def _forget_parents() -> None:
    global _opening
    _opening = threading.Lock()
    for pool in list(_open):
        pool._forget_parent()
    _open.clear()


def _close_all() -> None:
    """The net under those who forgot: sessions that end with the process, without a word, trouble the server's log."""
    for pool in list(_open):
        pool.close(0)


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_parents)
