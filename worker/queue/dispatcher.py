"""The dispatcher: one thread on the reserved connection that settles, sends, renews, rescues and claims."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar
from uuid import UUID

import psycopg
from psycopg import sql

from worker import clock, log
from worker.pool import Pool
from worker.queue.alarm import Alarm
from worker.queue.claim import Claim
from worker.queue.group_commit import GroupCommit
from worker.queue.history import History
from worker.queue.insertion import insert
from worker.queue.lease import Lease
from worker.queue.new_job import NewJob
from worker.queue.schema import Schema
from worker.queue.settlement import Outcome, Settlement
from worker.queue.statements import CLAIM_JOBS, PROMOTE_DUE

logger = log.get_logger(__name__)

T = TypeVar("T")

# Polling is the truth and NOTIFY the hurry: a lost notification costs at most this.
_POLL = 2.0
# Closer while other workers run jobs, which may be lost with them ...
_POLL_WITH_OTHERS = 1.0
# ... and closer still while the countdown of one of them is running.
_POLL_IN_RESCUE = 0.25
_RECONNECT = 0.2
_HOUSEKEEPING = 3600.0
# After one that failed: without a partition for today no job can be recorded as done.
_HOUSEKEEPING_AGAIN = 10.0
# Nothing here may wait for somebody else's lock for as long as to miss a heartbeat: whoever is in the way, say a
# transaction that sends a running job again and stays open, is passed by and met again later.
_LOCK_TIMEOUT = "SET lock_timeout = '250ms'"
# Statistics of a table that was empty a moment ago make a scan of it all look cheap.
_NO_SCANS = "SET enable_seqscan = off"
# Where a scan cannot be avoided, the one before makes its cost look astronomic, and the server would spend a second
# on compiling a statement of a millisecond.
_NO_JIT = "SET jit = off"


class Room(NamedTuple):
    """How many more jobs, of which queues and actors, can start."""

    queues: Sequence[str]
    actors: Sequence[str]
    limit: int


class Feed(Protocol):
    """What puts claimed jobs before the slots. Called on the dispatcher's thread; must not block."""

    def rooms(self) -> Iterable[Room]:
        """What can start now; with a limit of 0 what this process serves at all. Read one by one, between puts."""

    def put(self, claims: list[Claim]) -> None:
        """Start these."""

    def lost(self, claims: list[Claim]) -> None:
        """These belong to others by now."""


class Dispatcher:
    """
    The one thread of a process that talks to the queue.

    Opening it (a context manager) starts the thread; leaving writes what is still to be written, gives back what is
    still claimed, and ends it within *closing* seconds.
    """

    def __init__(
        self, pool: Pool, schema: Schema, lease: Lease, feed: Feed, *, history: History, closing: float = 5.0
    ) -> None:
        self.lease = lease
        self._pool = pool
        self.schema = schema
        self._feed = feed
        self._history = history
        self._closing = closing
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        self._alarm = Alarm()
        self._outcomes = GroupCommit(schema, history)
        self._sending: deque[tuple[Sequence[NewJob], Future[None]]] = deque()
        self._submitted: deque[tuple[Callable[[psycopg.Connection[Any]], Any], Future[Any]]] = deque()
        self._outstanding: dict[tuple[UUID, int], Claim] = {}
        self._claiming = True
        self._stop_by: float | None = None
        self._connected = False
        self._hungry = True
        self._renew_at = self._keep_house_at = 0.0
        self._next_due = float("inf")
        self.failure: BaseException | None = None
        self.answer: Callable[[psycopg.Connection[Any]], None] | None = None
        """What this worker says about itself when it is asked, on the connection that it is given."""

    def __enter__(self) -> Dispatcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # From any thread

    def settle(self, settlement: Settlement) -> Future[bool]:
        """
        Write an outcome with the next group commit.

        Returns:
            Whether the token still held, once it is durable. After the end it did not: the job was given back.
        """
        written = self._outcomes.add(settlement)
        self.wake()
        if self._over:
            self._abandon()
        return written

    def forget(self, claim: Claim) -> None:
        """This job was settled in its own transaction: its slot is free."""
        self._outstanding.pop(claim.proof, None)
        self.wake()

    def send(self, jobs: Sequence[NewJob]) -> Future[None]:
        """Enqueue *jobs* with the next group commit; durable when the future is done."""
        return self._defer(self._sending, jobs)

    def submit(self, work: Callable[[psycopg.Connection[Any]], T]) -> Future[T]:
        """Run *work* on the reserved connection, in a transaction of its own. It must be short: everything waits."""
        return self._defer(self._submitted, work)

    def wake(self) -> None:
        """Look now instead of at the next poll."""
        self._alarm.ring()

    def keep_house(self) -> None:
        """Make the history's partitions now instead of at the next hour."""
        self._keep_house_at = 0.0
        self.wake()

    def pause(self) -> None:
        """Claim nothing more; everything else goes on."""
        self._claiming = False

    def stop(self) -> None:
        """Write what is to be written, give back what is claimed, end the thread. Twice is harmless."""
        self._claiming = False
        if self._stop_by is None:
            self._stop_by = clock.monotonic() + self._closing
        self.wake()
        if self._thread.ident is not None:
            self._thread.join(self._closing + 1.0)
        self._abandon()
        if not self._thread.is_alive():
            self._alarm.close()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def num_outstanding(self) -> int:
        """Jobs claimed and not settled."""
        return len(self._outstanding)

    @property
    def num_locked(self) -> int:
        """Outcomes that wait for somebody else's lock on their job."""
        return self._outcomes.num_locked

    def _defer(self, pending: deque[Any], item: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if self._over:
            raise psycopg.OperationalError("the worker has stopped: nothing can be written any more")
        pending.append((item, future))
        self.wake()
        return future

    @property
    def _over(self) -> bool:
        return self.failure is not None or (self._stop_by is not None and not self._thread.is_alive())

    def _abandon(self) -> None:
        """Nobody writes what is still pending: whoever waits for it must know."""
        for _, future in [*self._sending, *self._submitted]:
            future.cancel()
        if self._over:
            self._outcomes.abandon()

    # The thread

    def _run(self) -> None:
        try:
            with self._pool.reserve():
                while not self._finished:
                    self._run_connected()
        except BaseException as exc:
            self.failure = exc
            logger.critical("dispatcher.failed", exc_info=True)
            self._abandon()

    def _run_connected(self) -> None:
        """Passes on one connection, until it is lost or the work is over."""
        try:
            with self._pool.pinned() as conn:
                self._attach(conn)
                while not self._finished:
                    self._wait(conn, self._run_once(conn))
                self._detach(conn)
        except (psycopg.OperationalError, psycopg.InternalError) as exc:
            # Internal errors are among others the refusals of a server that is read-only or half way through failover.
            if self._connected:
                logger.warning("dispatcher.disconnected", reason=str(exc).strip())
            self._connected = False
            self._alarm.wait(_RECONNECT)

    @property
    def _finished(self) -> bool:
        if self._stop_by is None:
            return False
        idle = not (self._outcomes or self._sending or self._submitted)
        return (idle and self._connected) or clock.monotonic() >= self._stop_by

    def _attach(self, conn: psycopg.Connection[Any]) -> None:
        conn.execute(f"SET statement_timeout = {max(1000, int(self.lease.duration * 300))}".encode())
        conn.execute(_LOCK_TIMEOUT)
        conn.execute(_NO_SCANS)
        conn.execute(_NO_JIT)
        conn.add_notify_handler(lambda notification: self._told(notification.channel))
        for channel in self.schema.channels.values():
            conn.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        self.schema.check(conn)
        self.lease.register(conn)
        self._reconcile(conn)
        logger.info("dispatcher.connected", worker=str(self.lease.worker_id))
        self._connected = True
        # The last session may have been lost over its house-keeping: without today's partition no job can be done.
        self._renew_at = self._keep_house_at = 0.0

    def _detach(self, conn: psycopg.Connection[Any]) -> None:
        for claim in list(self._outstanding.values()):
            self._outcomes.add(Settlement(claim.id, claim.token, Outcome.RELEASED))
        self._write_outcomes(conn)
        self.lease.unregister(conn)

    def _run_once(self, conn: psycopg.Connection[Any]) -> float:
        """One pass: writes first, because they free slots and make jobs; returns seconds to the next."""
        self._write_outcomes(conn)
        self._write_sends(conn)
        self._run_submitted(conn)
        now = clock.monotonic()
        if now >= self._keep_house_at:
            # Before working, so that an error cannot keep us from everything else.
            self._keep_house_at = now + _HOUSEKEEPING_AGAIN
            if self._history.maintain(conn):
                self._keep_house_at = now + _HOUSEKEEPING
        if now >= self._next_due:
            self._promote(conn)
        if now >= self._renew_at:
            self._renew(conn)
        if self._hungry and self._claiming:
            self._claim(conn)
        next_at = min(self._renew_at, self._next_due, self._keep_house_at, self._outcomes.again_at)
        return max(0.0, next_at - clock.monotonic())

    # Writing

    def _write_outcomes(self, conn: psycopg.Connection[Any]) -> None:
        for settlement, held in self._outcomes.write(conn, last=self._stop_by is not None):
            self._outstanding.pop((settlement.id, settlement.token), None)
            if held and settlement.makes_available:
                self._hungry = True
            elif held and settlement.outcome in (Outcome.RETRY, Outcome.RELEASED):
                self._next_due = min(self._next_due, clock.monotonic() + settlement.delay)
            for new in settlement.following:
                self._next_due = min(self._next_due, clock.monotonic() + new.delay)

    def _write_sends(self, conn: psycopg.Connection[Any]) -> None:
        batch = _accepted(self._sending)
        if not batch:
            return
        try:
            insert(conn, self.schema, [new for jobs, _ in batch for new in jobs])
        except psycopg.Error as exc:
            for jobs, sent in batch:
                # A lost confirmation may hide a commit: the sender must hear that it is not known. What the server
                # refused is tried one by one, so that nobody fails for his neighbour's job.
                _complete(sent, exc if conn.broken else partial(insert, conn, self.schema, jobs))
            if conn.broken:
                raise
        else:
            for _, sent in batch:
                sent.set_result(None)

    def _run_submitted(self, conn: psycopg.Connection[Any]) -> None:
        for work, future in _accepted(self._submitted):

            def run(work: Callable[[psycopg.Connection[Any]], Any] = work) -> Any:
                with conn.transaction():
                    return work(conn)

            _complete(future, run)
            # What was written may be a job for us; our own notification comes with the next read only.
            self._hungry = True

    # Claiming

    def _claim(self, conn: psycopg.Connection[Any]) -> None:
        """Claim what there is room for. Hungry afterwards if there may be more: a slot that gets free rings."""
        self._hungry = False
        for room in self._feed.rooms():
            if room.limit <= 0:
                self._hungry = True
                continue
            parameters = {
                "queues": list(room.queues),
                "actors": list(room.actors),
                "limit": room.limit,
                "worker": self.lease.worker_id,
            }
            rows = conn.execute(self.schema.render(CLAIM_JOBS).encode(), parameters).fetchall()
            claims = [Claim(*row) for row in rows]
            self._outstanding.update((claim.proof, claim) for claim in claims)
            self._feed.put(claims)
            self._hungry |= len(claims) == room.limit

    def _promote(self, conn: psycopg.Connection[Any]) -> None:
        if conn.execute(self.schema.render(PROMOTE_DUE).encode()).rowcount:
            self._hungry = True
        # What is due next, the heartbeat knows.
        self._next_due = float("inf")
        self._renew_at = 0.0

    # Living

    def _renew(self, conn: psycopg.Connection[Any]) -> None:
        rooms = list(self._feed.rooms())
        queues = sorted({queue for room in rooms for queue in room.queues})
        actors = sorted({actor for room in rooms for actor in room.actors})
        look = self.lease.renew(conn, queues, actors)
        if look is None:
            logger.error("worker.declared_dead", worker=str(self.lease.worker_id))
            self.lease.register(conn)
            self._reconcile(conn)
            return
        now = clock.monotonic()
        self._hungry |= look.has_available
        self._next_due = float("inf") if look.next_due is None else now + max(0.0, look.next_due)
        if look.needs_rescue:
            self._hungry |= self.lease.rescue(conn) > 0
            self._renew_at = now + _POLL_IN_RESCUE
        else:
            self._renew_at = now + min(_POLL_WITH_OTHERS if look.others_run else _POLL, self.lease.duration / 3)

    def _reconcile(self, conn: psycopg.Connection[Any]) -> None:
        """Compare the books: a reply to a claim can be lost with its connection, and a lease with time."""
        owned = self.lease.claimed(conn)
        pending = self._outcomes.proofs
        for job_id, token in owned.items():
            if (job_id, token) not in self._outstanding:
                self._outcomes.add(Settlement(job_id, token, Outcome.RELEASED))
        lost = [claim for claim in list(self._outstanding.values()) if owned.get(claim.id) != claim.token]
        # What is about to be settled may have been settled already, in the exchange whose reply is missing.
        lost = [claim for claim in lost if claim.proof not in pending]
        if lost:
            self._feed.lost(lost)

    # Waiting

    def _wait(self, conn: psycopg.Connection[Any], seconds: float) -> None:
        if self._outcomes or self._sending or self._submitted or self._stop_by is not None:
            seconds = 0.0
        if self._alarm.wait(min(seconds, _POLL), conn.fileno()):
            conn.pgconn.consume_input()
            while notification := conn.pgconn.notifies():
                self._told(notification.relname.decode())

    def _told(self, channel: str) -> None:
        if channel == self.schema.channels["later"]:
            # When the next job is due, the heartbeat knows.
            self._renew_at = 0.0
        elif channel == self.schema.channels["ask"]:
            if self.answer is not None:
                self.submit(self.answer)
        else:
            self._hungry = True


def _accepted(pending: deque[Any]) -> list[Any]:
    """Everything in *pending* whose future nobody has given up."""
    taken = []
    while pending:
        item = pending.popleft()
        if item[1].set_running_or_notify_cancel():
            taken.append(item)
    return taken


def _complete(future: Future[Any], outcome: Callable[[], Any] | BaseException) -> None:
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
        return
    try:
        future.set_result(outcome())
    except Exception as exc:
        future.set_exception(exc)
