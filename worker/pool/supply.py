"""The supply: how the pool's connections are made, kept up to date, and ended."""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue
from typing import Any, LiteralString, Never
from weakref import WeakSet

import psycopg
import psycopg_pool
from psycopg_pool.base import AttemptWithBackoff
from psycopg_pool.pool import AddConnection, MaintenanceTask

from worker import clock, log
from worker.errors import Refused
from worker.pool.connection import Connection
from worker.pool.hygiene import Hygiene
from worker.pool.options import ConnectOptions, PoolOptions
from worker.pool.waiting import Waiter
from worker.secrecy import redacted

logger = log.get_logger(__name__)

# An idle session whose client vanished is given up by the server after 30 + 3 x 10 s, as the client gives up the server
# (`_KEEPALIVES` of the options), not after the hours of the system's default; over a Unix socket it has no effect.
_KEEP_ALIVE: LiteralString = (
    "SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3;"
    " SET tcp_user_timeout = '30s'"
)
# One in the middle of a query notices it within this time, so that neither its locks nor its place under the server's
# limit outlive the client. Refused where the server's platform cannot do it.
_CHECK_CLIENT: LiteralString = "SET client_connection_check_interval = '2s'"
# How many connections are made at once: one at a time, as psycopg_pool does it, a cold pool of 20 with a distant server
# does not serve its first 20 callers within their 5 s.
_PARALLEL = 4
# How long the end of a session is waited for where it is ended; what takes longer keeps its seat, and is watched.
_GOODBYE = 0.25
# After which a session whose end nobody confirmed counts as ended: the server has given it up by then (`_KEEP_ALIVE`,
# and `_CHECK_CLIENT` within a query), unless its platform can do neither.
_LINGER = 90.0
# The same for one that broke: within a query the server looks each 2 s (`_CHECK_CLIENT`), and at once between two.
_NOTICED = 2.5
# An idle connection may have been forgotten by something on its way that drops it silently: asked before it is used.
_ASK_AFTER = 30.0
_ASK_TIMEOUT = 1.0
_ASK_AT_ONCE = 32
# What a session's set-up may take, once it is there.
_SET_UP_TIMEOUT = 5.0
# Ended by ourselves, with the help of a session that works, when the end of others is not confirmed by then.
_END_AFTER = 2.0
# By name too, behind which a job's may be: the number may be another's by now.
_END_SESSIONS: LiteralString = """
    SELECT pid, pg_terminate_backend(pid)
    FROM pg_stat_activity
    WHERE pid = ANY(%s) AND starts_with(application_name || ' ', current_setting('application_name') || ' ')"""
_HOOK_FAILED = "raised by the pool's hook after_connect"


class Backoff(AttemptWithBackoff):
    """Attempts to connect: soon at first, at least once a second for as long as somebody needs it."""

    def update_delay(self, now: float) -> None:
        self.delay = psycopg_pool.ConnectionPool._jitter(min(1.0, self.delay * 2 or 0.1), -0.1, 0.0)


class Retirement(MaintenanceTask):
    """Ends a connection on one of the pool's own threads."""

    def __init__(self, pool: Supply, conn: Connection) -> None:
        super().__init__(pool)
        self._conn = conn

    def run(self) -> None:
        """Run it in a pool that is closing too, where psycopg_pool's own tasks are dropped: it is a goodbye."""
        if (pool := self.pool()) is not None:
            self._run(pool)

    def _run(self, pool: psycopg_pool.ConnectionPool[Any]) -> None:
        assert isinstance(pool, Supply)  # noqa: S101  # it was made with one
        pool.retire(self._conn)


class Supply(psycopg_pool.ConnectionPool[Connection]):
    """
    Connections that exist, at most `max_size`: those idle here, those out, those being made and those being ended.

    A seat is given free only when the server has ended the session that had it.
    """

    _waiting: deque[Waiter]  # type: ignore[assignment]  # ours, of psycopg_pool's kind

    def __init__(self, options: PoolOptions) -> None:
        self.options = options
        self.hygiene = Hygiene(options.hygiene)
        self._before_acquire, self._after_release = options.before_acquire, options.after_release
        self._pid = os.getpid()
        self._forked = False
        self._sessions: WeakSet[Connection] = WeakSet()
        self._num_growing = 0
        self._lingering: list[tuple[Connection, float]] = []
        self._ghosts: list[int] = []
        """Numbers of sessions that may live on, although their seats are free or were never counted."""
        self._doubted_at = float("-inf")
        self._failing_since: float | None = None
        self._unmade: BaseException | None = None
        self._refused: Refused | None = None
        super().__init__(
            connection_class=Connection,
            # The first connection is made by who opens the pool, and wants its error; the minimum holds from then on.
            min_size=0,
            max_size=options.max_size,
            open=False,
            name="worker",
            timeout=options.acquire_timeout,
            max_lifetime=options.max_lifetime,
            max_idle=options.idle_timeout,
            num_workers=_PARALLEL + 1,
        )
        # The garbage collector may close a generator that has a connection, in a thread that is at work in here.
        self._lock = threading.RLock()
        self.connect_options = options.connect_options()

    @property
    def connect_options(self) -> ConnectOptions:
        """
        Where connections lead and how they are made; setting it is for future ones, those that exist stay.

        A plain connection string is completed by this pool's options; a `ConnectOptions` is taken as it is.

        Raises:
            ConfigError: When it is set to what cannot be read; it stays as it was.
        """
        return self._connect_options

    @connect_options.setter
    def connect_options(self, options: ConnectOptions | str) -> None:
        if not isinstance(options, ConnectOptions):
            options = replace(self.options, conninfo=options).connect_options()
        self._connect_options = options
        self.conninfo, self.kwargs = options.conninfo, options.parameters

    def _start_workers(self) -> None:
        # A generator with a dead connection, which the garbage collector closes in a thread that is inside of `get`,
        # gives its seat free, and that puts a task: a `queue.Queue` would wait for itself, SimpleQueue is re-entrant.
        self._tasks = SimpleQueue()  # type: ignore[assignment]  # it has what workers use: get and put_nowait
        super()._start_workers()

    # Making

    def _connect(self, timeout: float | None = None) -> Connection:
        conn = super()._connect(timeout)
        conn.is_pooled = self.options.direct is not None
        self._complete(conn)
        return conn

    def _connect_directly(self) -> Connection:
        """A session past the pooler, if there is one."""
        if (options := self.options.direct_options()) is None:
            return self._connect()
        conn = Connection.connect(options.conninfo, **options.parameters)
        self._complete(conn)
        return conn

    def _complete(self, conn: Connection) -> None:
        self._sessions.add(conn)
        try:
            conn.server_pid = conn.info.backend_pid
            if not conn.is_pooled:  # else it is the next one's too
                _set_up(conn)
            self._call_after_connect(conn)
            self.hygiene.remember(conn)
        except BaseException:
            self._give_up(conn)
            raise

    def _call_after_connect(self, conn: Connection) -> None:
        if (hook := self.options.after_connect) is None:
            return
        try:
            hook(conn)
            conn.commit()
        except BaseException as exc:
            # It may look like the server's fault, and be one of psycopg's own errors.
            exc.add_note(f"{_HOOK_FAILED}={_name(hook)}")
            raise

    def _give_up(self, conn: Connection) -> None:
        """End one that could not be set up; a session that lives on gets a seat of its own until it has ended."""
        try:
            conn.close()
        finally:
            with self._lock:
                if not _is_gone(conn):
                    self._nconns += 1
                    self._lingering.append((conn, clock.monotonic()))

    def _maybe_grow_pool(self) -> None:
        """Begin to make as many connections as somebody waits for, or the minimum needs. Under the lock."""
        missing = self._min_size - self._nconns
        wanted = min(_PARALLEL, max(len(self._waiting), missing + self._num_growing))
        while self._num_growing < wanted and self._nconns < self._max_size and not self._closed:
            self._nconns += 1
            self._num_growing += 1
            self.run_task(AddConnection(self, growing=True))

    def _add_connection(self, attempt: AttemptWithBackoff | None, growing: bool = False) -> None:
        """Make the connection of a seat that is taken already; again and again as long as somebody needs it."""
        try:
            conn = self._connect()
        except BaseException as exc:  # a hook may raise SystemExit: neither this thread nor the seat may go with it
            self._say_unreachable(exc)
            with self._lock:
                needed = bool(self._waiting) or self._nconns <= self._min_size
                # The session of the last attempt may live on, and have this seat: the next is made when it has ended.
                needed = needed and self._nconns <= self._max_size
                if not needed:
                    self._nconns -= 1
                    self._num_growing -= growing
            if needed:
                attempt = attempt or Backoff(timeout=0.0)
                attempt.update_delay(clock.monotonic())
                self.schedule_task(AddConnection(self, attempt, growing=growing), attempt.delay)
            return
        self._say_reachable()
        self._add_to_pool(conn)
        with self._lock:
            self._num_growing -= growing
            self._min_size = min(self.options.min_size, self._max_size)
            self._maybe_grow_pool()

    def _say_unreachable(self, exc: BaseException) -> None:
        by_hook = next((note for note in getattr(exc, "__notes__", ()) if note.startswith(_HOOK_FAILED)), None)
        self._unmade = exc if by_hook is None else Refused(f"{by_hook}: {exc!r}")
        if self._failing_since is not None:
            return
        self._failing_since = clock.monotonic()
        if by_hook is None:
            reason = str(exc).strip() or repr(exc)
            logger.warning("pool.unreachable", database=redacted(self.connect_options.conninfo), reason=reason)
        else:
            logger.warning("pool.hook_failed", hook=_name(self.options.after_connect), reason=repr(exc))

    @property
    def _failure(self) -> BaseException | None:
        """
        Why nobody was served: what kept the last connection from being made, or from being handed out.

        One of psycopg's errors is the server's or the network's own reason, and `Refused` is a hook's or a setting's.
        """
        return self._unmade or self._refused

    def _say_reachable(self) -> None:
        since, self._failing_since, self._unmade = self._failing_since, None, None
        if since is not None:
            logger.info("pool.reachable", after=round(clock.monotonic() - since, 3))

    # Judging

    def _is_stale(self, conn: Connection, now: float) -> bool:
        """Whether it is to be replaced although it works."""
        return self._is_expired(conn, now) or now - conn.idle_since >= self.max_idle

    def _seems_fit(self, conn: Connection, now: float) -> bool | None:
        """Whether it can be handed out; None when it must be asked first, which takes a round trip."""
        idle = now - conn.idle_since
        # `_is_stale`, written out: each call would be a tenth of what a checkout costs.
        if conn.closed or conn._expire_at <= now or conn._created_at <= self._drained_at or idle >= self.max_idle:
            self._refused = self._why_stale(conn, now)
            return False
        if self._before_acquire is not None or idle > _ASK_AFTER or conn.has_news():
            return None
        if conn.idle_since <= self._doubted_at:
            return None
        self._refused = None
        return True

    def doubt(self) -> None:
        """One was lost: whatever is idle at this moment is asked before it is used."""
        self._doubted_at = clock.monotonic()

    def _why_stale(self, conn: Connection, now: float) -> Refused:
        if conn.closed:
            return Refused("the last connection was closed while it was idle")
        if conn._expire_at <= now:
            return Refused(f"the last connection was older than max_lifetime={self.max_lifetime:g} s")
        if conn._created_at <= self._drained_at:
            return Refused("the last connection was made before the pool was drained")
        return Refused(f"the last connection was idle for longer than idle_timeout={self.max_idle:g} s")

    def _is_fit(self, conn: Connection, timeout: float) -> bool:
        """Ask it: a round trip of at most *timeout* seconds, and the hook's own."""
        refused = None
        if not conn.answers(max(0.0, min(_ASK_TIMEOUT, timeout))):
            # At the end of its caller's time even a healthy one may not answer: an earlier reason is the better one.
            earlier = self._refused if timeout < _ASK_TIMEOUT else None
            refused = earlier or Refused("the last connection did not answer")
        elif not _allowed_by(self._before_acquire, conn):
            refused = Refused(f"the hook before_acquire={_name(self._before_acquire)} refused the last connection")
        self._refused = refused
        return refused is None

    def _may_stay(self, conn: Connection) -> bool:
        """Whether one that came back goes on."""
        now = conn.idle_since = clock.monotonic()
        if conn.closed or self._is_expired(conn, now):
            return False
        try:
            return self._after_release is None or _allowed_by(self._after_release, conn)
        except BaseException:
            self.retire(conn)
            raise

    def _is_expired(self, conn: Connection, now: float) -> bool:
        return conn._expire_at <= now or conn._created_at <= self._drained_at

    # Ending

    def retire_soon(self, conn: Connection) -> None:
        """`retire` on a thread of the pool's, for callers with a deadline: the server may never say goodbye."""
        if conn.closed or self._closed:
            self.retire(conn)
        else:
            self.run_task(Retirement(self, conn))

    def retire(self, conn: Connection) -> None:
        """End a session for good; its seat is free when the server has ended it too."""
        conn._pool = None
        try:
            conn.close(_GOODBYE)
        finally:
            self._vacate(conn)

    def _vacate(self, conn: Connection) -> None:
        """*conn* is closed: give its seat to who waits, now or when its session is gone."""
        with self._lock:
            if _is_gone(conn):
                self._nconns -= 1
                self._maybe_grow_pool()
            else:
                self._lingering.append((conn, clock.monotonic()))

    def end_lingering(self, conn: psycopg.Connection[Any]) -> None:
        """
        Have the server end the sessions whose end it has not confirmed for 2 s; when they are gone, so are their seats.

        Args:
            conn: A session that works, in autocommit; after a failover it is another server's, which has none of them.
        """
        before = clock.monotonic() - _END_AFTER
        with self._lock:
            lingering = [one for one, since in self._lingering if since <= before or one.is_unconfirmed]
            ghosts = list(self._ghosts)
        if not (lingering or ghosts):
            return
        pids = [*ghosts, *(one.server_pid for one in lingering)]
        left = {row[0] for row in conn.execute(_END_SESSIONS, [pids])}
        with self._lock:
            self._ghosts = [pid for pid in self._ghosts if pid in left or pid not in ghosts]
            gone = [one for one, _ in self._lingering if one in lingering and one.server_pid not in left]
            self._lingering = [(one, since) for one, since in self._lingering if one not in gone]
        for one in gone:
            one.forget_end()
            self._vacate(one)

    def drain(self) -> None:
        """Replace every connection: idle ones as soon as their sessions have ended, those out when they come back."""
        with self._lock:
            self._drained_at = clock.monotonic()
            idle = list(self._pool)
            self._pool.clear()
        for conn in idle:
            self.retire_soon(conn)

    def check(self) -> None:
        """Ask every idle connection whether it answers, at most a second; one that does not is replaced."""
        with self._lock:
            idle = list(self._pool)
            self._pool.clear()
        self._examine(idle)

    def resize(self, min_size: int, max_size: int | None = None) -> Never:
        """
        Not offered: the sizes are fixed when the pool opens.

        Raises:
            Refused: Always; names the options that set them.
        """
        raise Refused(
            f"resize({min_size}, {max_size}) is refused, because the cap of an open pool is relied on: open it with"
            " PoolOptions(min_size=..., max_size=...), and in a worker set WORKER_POOL_SIZE"
        )

    def forget_lingering(self) -> None:
        """Watch no longer for the end of sessions: nobody needs their seats any more."""
        with self._lock:
            lingering, self._lingering = self._lingering, []
        for conn, _ in lingering:
            conn.has_ended(_GOODBYE)
            conn.forget_end()

    def _shrink_pool(self) -> None:
        """Ours is the sweep: psycopg_pool's closes one connection per idle timeout, and none below the minimum."""

    def sweep_supply(self) -> None:
        """Replace what is stale, notice sessions that have ended meanwhile, keep up the minimum."""
        now = clock.monotonic()
        with self._lock:
            stale = [conn for conn in self._pool if conn.closed or self._is_stale(conn, now)]
            # Ended by the server or on the way, most likely: so that the minimum is made again although nobody asks.
            suspect = [
                conn
                for conn in self._pool
                if conn not in stale and (conn.has_news() or max(conn.idle_since, conn.answered_at) <= self._doubted_at)
            ]
            for conn in [*stale, *suspect]:
                self._pool.remove(conn)
            lingering, self._lingering = self._lingering, []
        for conn in stale:
            self.retire_soon(conn)
        self._examine(suspect)
        for conn, since in lingering:
            if not conn.closed:  # who ended it was interrupted
                self.retire_soon(conn)
            elif conn.has_ended() or now - since > (_NOTICED if conn.is_unconfirmed else _LINGER):
                conn.forget_end()
                self._vacate(conn)
            else:
                self._lingering.append((conn, since))
        with self._lock:
            self._maybe_grow_pool()

    def _examine(self, conns: list[Connection]) -> None:
        """Ask those that were taken out, side by side: however many are silent, that costs one timeout."""
        if len(conns) <= 1:
            for conn in conns:
                self._put_back_if_live(conn)
            return
        with ThreadPoolExecutor(min(len(conns), _ASK_AT_ONCE), "pool-ask") as threads:
            for conn in conns:
                threads.submit(self._put_back_if_live, conn)

    def _put_back_if_live(self, conn: Connection) -> None:
        live = False
        try:
            live = not conn.closed and conn.answers(_ASK_TIMEOUT)
        finally:
            if live:
                self._add_to_pool(conn)
            else:
                self.retire_soon(conn)


def _is_gone(conn: Connection) -> bool:
    return conn.closed and conn.has_ended()


def _allowed_by(hook: Any, conn: Connection) -> bool:
    """Whether *hook* lets *conn* go on; what it left in the middle of a transaction does not."""
    if hook is None:
        return True
    try:
        allowed = hook(conn) is not False
        if conn.pgconn.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            conn.commit()
        return allowed
    except Exception as exc:
        logger.warning("pool.hook_failed", hook=_name(hook), reason=repr(exc))
        return False


def _name(hook: Any) -> str:
    return getattr(hook, "__name__", None) or repr(hook)


def _set_up(conn: Connection) -> None:
    before, conn.autocommit = conn.autocommit, True
    conn.patience = _SET_UP_TIMEOUT
    try:
        # One trip; what a server refuses is left out.
        if not _accepts(conn, f"{_CHECK_CLIENT}; {_KEEP_ALIVE}"):
            _accepts(conn, _KEEP_ALIVE)
    finally:
        conn.patience = None
        conn.autocommit = before


def _accepts(conn: Connection, settings: LiteralString) -> bool:
    try:
        conn.execute(settings)
    except psycopg.errors.DatabaseError as exc:
        if conn.closed:
            raise
        logger.debug("pool.no_client_check", reason=str(exc))
        return False
    return True
