"""The one pool of a process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import psycopg_pool
from psycopg_pool import PoolTimeout

from worker import clock, log
from worker.config import redacted
from worker.errors import DatabaseUnavailable
from worker.pool.checkout import Checkout, shield
from worker.pool.connection import Connection
from worker.pool.options import PoolOptions

logger = log.get_logger(__name__)

# A session whose client vanished notices it within this time even in the middle of a query, so that neither its locks
# nor its place under the server's limit outlive the client. Refused where the server's platform cannot do it.
_CHECK_CLIENT = "SET client_connection_check_interval = '2s'"


class Pool(psycopg_pool.ConnectionPool[Connection]):
    """
    The one pool of a process: at most `max_size` sessions on the server, whatever happens.

    Make it with `connect`. Take connections with `connection()`, which commits or rolls back and always returns them.
    """

    def __init__(self, options: PoolOptions) -> None:
        self.options = options
        self._checkouts: dict[int, Checkout] = {}
        self._returned = threading.Condition()
        self._reserved = 0
        super().__init__(
            options.conninfo,
            connection_class=Connection,
            kwargs=options.connect_kwargs(),
            # The first connection is made by `connect` itself, which wants its error; the minimum holds from then on.
            min_size=0,
            max_size=options.max_size,
            open=False,
            configure=_configure,
            name="worker",
            timeout=options.acquire_timeout,
            max_lifetime=options.max_lifetime,
            max_idle=options.idle_timeout,
            reconnect_timeout=options.reconnect_timeout,
        )

    @classmethod
    def connect(cls, options: PoolOptions) -> Pool:
        """
        Open a pool with one connection made now.

        Raises:
            DatabaseUnavailable: With the server's or the network's own reason, and no password.
        """
        pool = cls(options)
        pool.open()
        try:
            first = pool._connect()
        except psycopg.Error as exc:
            pool.close(0)
            raise DatabaseUnavailable(f"cannot connect to {redacted(options.conninfo)}: {exc}") from exc
        with pool._lock:
            pool._nconns += 1
            pool._min_size = options.min_size
        pool._add_to_pool(first)
        logger.info("pool.opened", database=redacted(options.conninfo), max_size=options.max_size)
        return pool

    # Taking and returning

    def getconn(self, timeout: float | None = None) -> Connection:
        """
        Take a connection; prefer `connection()`, which cannot forget to return it.

        Raises:
            PoolTimeout: None became free within *timeout* seconds; names who holds what since when.
            PoolClosed: The pool is closed or closing.
        """
        timeout = self.timeout if timeout is None else timeout
        with shield.get()():
            conn = self._take_live(timeout)
            self._checkouts[id(conn)] = Checkout(conn)
        return conn

    def _take_live(self, timeout: float) -> Connection:
        deadline = clock.monotonic() + timeout
        while True:
            try:
                conn = super().getconn(max(0.0, deadline - clock.monotonic()))
            except PoolTimeout:
                raise PoolTimeout(self._why_none_is_free(timeout)) from None
            if conn.is_live():
                return conn
            # Found dead while idle, say after a restart of the server: let the caller notice nothing.
            self._retire(conn)

    def putconn(self, conn: Connection) -> None:
        """Return a connection taken with `getconn`; a broken one is replaced."""
        with shield.get()():
            self._end(self._checkouts.get(id(conn)))
            super().putconn(conn)
            with self._returned:
                self._returned.notify_all()

    def reclaim(self, holder: str) -> None:
        """
        End what *holder* still has out: it is over, and nobody else will return it.

        The connection is never handed on, because its session may be in any state; another takes its place.
        """
        for checkout in self.checkouts():
            if checkout.holder == holder and self._end(checkout):
                logger.error("pool.leaked", checkout=str(checkout))
                self._retire(checkout.conn)

    def cancel(self, holder: str, *, timeout: float) -> None:
        """Cancel on the server what *holder*'s connections are doing now; each within *timeout* seconds."""
        for checkout in self.checkouts():
            if checkout.holder == holder:
                with checkout.lock:
                    if self._checkouts.get(id(checkout.conn)) is checkout and checkout.conn.is_busy:
                        _cancel(checkout.conn, timeout)

    def _end(self, checkout: Checkout | None) -> bool:
        """Take *checkout* off the books; False when it was off already."""
        if checkout is None:
            return False
        with checkout.lock:
            return self._checkouts.pop(id(checkout.conn), None) is not None

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
                self._retire(super().getconn())
            yield
        finally:
            with self._lock:
                self._max_size += 1
                self._reserved -= 1

    @contextmanager
    def pinned(self) -> Iterator[Connection]:
        """
        The reserved connection, in autocommit; made at once by the calling thread, whatever the pool's own back-off.

        It is closed at the end rather than returned, because its session listens and has settings that no job should
        inherit.

        Raises:
            psycopg.OperationalError: The database is out of reach.
        """
        conn = self._take_idle() or self._connect()
        conn._pool = None
        try:
            conn.autocommit = True
            yield conn
        finally:
            conn.close()

    def _take_idle(self) -> Connection | None:
        with self._lock:
            if not self._pool:
                return None
            conn = self._pool.popleft()
            self._nconns -= 1
        if conn.is_live():
            return conn
        conn.close()
        return None

    def _retire(self, conn: Connection) -> None:
        """End a session for good; whoever waits gets another, made when this one no longer counts on the server."""
        conn._pool = None
        conn.close()
        with self._lock:
            self._nconns -= 1
            if self._waiting and not self._closed:
                self._maybe_grow_pool()

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
    def num_out(self) -> int:
        """Connections that are checked out."""
        return len(self._checkouts)

    @property
    def is_closed(self) -> bool:
        """Whether it was opened and is closed by now."""
        return self._opened and self._closed

    def checkouts(self) -> list[Checkout]:
        """Every connection that is out, longest first."""
        return sorted(self._checkouts.values(), key=lambda checkout: checkout.since)

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else f"{self.num_idle} idle, {self.num_out} out of {self.max_size}"
        return f"<Pool {redacted(self.options.conninfo)!r}: {state}>"

    def _why_none_is_free(self, timeout: float) -> str:
        held = "; ".join(str(checkout) for checkout in self.checkouts()) or "none of them is out: the server is away"
        return f"no connection within {timeout:.1f} s, pool of {self.max_size}: {held}"

    # Closing

    def close(self, grace: float = 5.0) -> None:
        """
        Close the pool: no more connections from now on, those out get *grace* seconds to come back.

        Idle ones end with Terminate. Those still out after the grace have their statements cancelled, are named in the
        log, and are closed when they come back. Closing twice is harmless.
        """
        if self._closed:
            return
        with self._lock:
            waiting, self._waiting = list(self._waiting), type(self._waiting)()
        for waiter in waiting:
            waiter.fail(psycopg_pool.PoolClosed(f"the pool {self.name!r} is closing"))
        super().close(timeout=max(1.0, self.options.connect_timeout))
        if not self._all_returned_within(grace):
            for checkout in self.checkouts():
                logger.warning("pool.checkout_left", checkout=str(checkout))
                checkout.conn.cancel_safe(timeout=1.0)
            self._all_returned_within(1.0)
        logger.info("pool.closed", left=self.num_out)

    def _all_returned_within(self, seconds: float) -> bool:
        with self._returned:
            return self._returned.wait_for(lambda: not self._checkouts, seconds)


def _cancel(conn: psycopg.Connection[Any], timeout: float) -> None:
    try:
        conn.cancel_safe(timeout=timeout)
    except psycopg.Error as exc:
        logger.warning("pool.cancel_failed", reason=str(exc))


def _configure(conn: psycopg.Connection[Any]) -> None:
    conn.autocommit = True
    try:
        conn.execute(_CHECK_CLIENT)
    except psycopg.errors.DatabaseError as exc:
        logger.debug("pool.no_client_check", reason=str(exc))
    finally:
        conn.autocommit = False
