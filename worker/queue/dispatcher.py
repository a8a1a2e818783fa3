"""The dispatcher: one thread on the reserved connection that settles, sends, renews, rescues and claims."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from psycopg import sql

from worker import clock, log
from worker.pool import Pool
from worker.queue import lanes, rates, session, turns
from worker.queue.alarm import Alarm
from worker.queue.claim import Claim
from worker.queue.exchange import Errand, Reply, exchange, follow
from worker.queue.feed import Feed, Room
from worker.queue.flow import Flow
from worker.queue.group_commit import GroupCommit, Pending
from worker.queue.history import History
from worker.queue.horizon import HorizonWatch
from worker.queue.last_words import LastWords, last_words
from worker.queue.lease import Lease, Look
from worker.queue.marks import Marks
from worker.queue.new_job import NewJob
from worker.queue.progress import Reports
from worker.queue.ration import Ration
from worker.queue.schema import Schema
from worker.queue.sends import Send, Sends
from worker.queue.settlement import CANCELLED, Outcome, Settlement
from worker.queue.submissions import Submissions

logger = log.get_logger(__name__)

T = TypeVar("T")

# A job that is cancelled may be on its way to its body, where no interrupt reaches it yet.
_POLL_IN_CANCEL = 0.25
# Between two attempts to work with the server, growing. At most a third of what others wait until they take a worker
# without a session for dead (`lease._COUNTDOWN`): all come back at once, and not all in the same moment.
_RECONNECT, _RECONNECT_MOST = 0.1, 0.4
# A heartbeat that looks at all that runs, and takes so long, comes near to its timeout.
_TOO_LONG = 1.0
# After housekeeping that failed: without a partition for today no job can be recorded as done.
_HOUSEKEEPING_AGAIN = 10.0
# A lane that another worker was just opening is looked at again after this ...
_ADMIT_AGAIN = 0.02
# ... and one whose knock went astray, because the head of its line was locked by a transaction that came to nothing.
_SWEEP = 10.0
# After a statement's own timeout, until nothing more is expected of the network either.
_ON_THE_WAY = 0.5


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
        self._outcomes = GroupCommit(schema, history, self._settled)
        self._sends = Sends(schema)
        self._submitted = Submissions()
        self.reports = Reports()
        self._outstanding: dict[tuple[UUID, int], Claim] = {}
        self._unmarked: list[Claim] = []  # running by now, which the database was to be told when their row was locked
        self._lost: set[tuple[UUID, int]] = set()
        self._claiming = True
        self._flow = Flow()
        self._marks = Marks()
        self._full_looks = Ration(too_long=_TOO_LONG)
        self._num_workers = 1
        self._watch = HorizonWatch()
        self._left_held = self._left_throttled = False
        self._stop_by: float | None = None
        self._connected = False
        self._num_failed = 0
        self._hungry = True
        self._renew_at = self._keep_house_at = 0.0
        self._next_due = self._admit_at = self._clear_at = float("inf")
        self._sweep_at = 0.0
        self.failure: BaseException | None = None
        self.passed_at = clock.monotonic()
        """When the last pass, or attempt to connect, began."""
        self._busy_since: float | None = None
        self.answer: Callable[[psycopg.Connection[Any]], None] | None = None
        """What this worker says about itself when it is asked, on the connection that it is given."""
        self.on_schedules: Callable[[], None] | None = None
        """Called when somebody has changed a schedule in the database, and after each loss of the connection."""

    def __enter__(self) -> Dispatcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # From any thread

    def settle(self, settlement: Settlement, *, wake: bool = True) -> Future[bool]:
        """
        Write an outcome with the next group commit.

        Args:
            wake: Have it now; False when there is more to come.

        Returns:
            Whether the token still held, once it is durable. After the end it did not: the job was given back.
        """
        written: Future[bool] = Future()
        self._add(settlement, written)
        if wake:
            self.wake()
        return written

    def settle_unawaited(self, settlement: Settlement) -> None:
        """The same for who does not wait for it, frees a slot next, and wakes for both."""
        self._add(settlement)

    def _add(self, settlement: Settlement, written: Future[bool] | None = None) -> None:
        self._outcomes.add(settlement, written)
        if self._over:
            self._abandon()

    def forget(self, claim: Claim) -> None:
        """This job was settled in its own transaction. Whoever frees its slot wakes."""
        self._outstanding.pop(claim.proof, None)
        self._lost.discard(claim.proof)
        self.reports.forget(claim.proof)

    def send(self, jobs: Sequence[NewJob], sender: tuple[UUID, int] | None = None) -> Future[None]:
        """
        Enqueue *jobs*, which must be plain, with the next group commit; durable when the future is done.

        Of a *sender*, the proof of a run, nothing is enqueued when its lease is lost: the future has a `LeaseLost`.
        """
        self._check_not_over()
        sent = self._sends.add(jobs, sender)
        self.wake()
        return sent

    def has_lost(self, proof: tuple[UUID, int]) -> bool:
        """Whether the job of this run, which goes on here, is another worker's by now."""
        return proof in self._lost

    def submit(self, work: Callable[[psycopg.Connection[Any]], T]) -> Future[T]:
        """Run *work* on the reserved connection, in a transaction of its own. It must be short: everything waits."""
        self._check_not_over()
        future = self._submitted.add(work)
        self.wake()
        return future

    def submit_statement(self, work: Callable[[psycopg.Connection[Any]], T]) -> Future[T]:
        """`submit` for a look of one statement: without the two round it, or a claim behind it."""
        self._check_not_over()
        future = self._submitted.add(work, atomic=False)
        self.wake()
        return future

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

    def resume(self) -> None:
        """Claim again."""
        self._claiming = self._hungry = True
        self.wake()

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
    def is_connected(self) -> bool:
        return self._connected and self.is_alive

    @property
    def busy_for(self) -> float:
        """Seconds that the pass under way has taken, which is milliseconds for most; 0 between passes."""
        since = self._busy_since
        return 0.0 if since is None else clock.monotonic() - since

    @property
    def thread(self) -> int | None:
        """The identity of its thread, to look where it is."""
        return self._thread.ident

    @property
    def num_outstanding(self) -> int:
        """Jobs claimed and not settled."""
        return len(self._outstanding)

    @property
    def num_locked(self) -> int:
        """Outcomes that wait for somebody else's lock on their job."""
        return self._outcomes.num_locked

    def _check_not_over(self) -> None:
        if self._over:
            raise psycopg.OperationalError("the worker has stopped: nothing can be written any more")

    @property
    def _over(self) -> bool:
        return self.failure is not None or (self._stop_by is not None and not self._thread.is_alive())

    def _abandon(self) -> None:
        """Nobody writes what is still pending: whoever waits for it must know."""
        self._sends.abandon()
        self._submitted.abandon()
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
        self.passed_at = clock.monotonic()
        try:
            with self._pool.pinned(patience=self._statement_timeout + _ON_THE_WAY) as conn:
                self._attach(conn)
                while not self._finished:
                    seconds = self._run_once(conn)
                    self._say_connected()
                    self._wait(conn, seconds)
                self._detach(conn)
        except (psycopg.OperationalError, psycopg.InternalError) as exc:
            # Internal errors are among others the refusals of a server that is read-only or half way through failover.
            if self._connected:
                logger.warning("dispatcher.disconnected", reason=str(exc).strip())
            self._connected = False
            self._busy_since = None
            self._back_off()

    def _say_connected(self) -> None:
        """Behind a pass: a server in trouble may take a connection, and then refuse again what is to be written."""
        if not self._connected:
            logger.info("dispatcher.connected", worker=str(self.lease.worker_id))
        self._connected = True
        self._num_failed = 0

    def _back_off(self) -> None:
        """Pause, whoever rings for what the server cannot do; only the news that it is to end is heard at once."""
        stopping = self._stop_by is not None
        most = min(_RECONNECT_MOST, _RECONNECT * 2**self._num_failed)
        self._num_failed = min(self._num_failed + 1, 10)
        until = clock.monotonic() + most * random.uniform(0.5, 1.0)  # noqa: S311  # no secret
        while (stopping or self._stop_by is None) and (left := until - clock.monotonic()) > 0:
            self._alarm.wait(left)

    @property
    def _finished(self) -> bool:
        if self._stop_by is None:
            return False
        idle = not (self._outcomes or self._sends or self._submitted)
        return (idle and self._connected) or clock.monotonic() >= self._stop_by

    @property
    def _statement_timeout(self) -> float:
        return max(1.0, self.lease.duration * 0.3)

    def _attach(self, conn: psycopg.Connection[Any]) -> None:
        self._busy_since = clock.monotonic()
        session.prepare(conn, statement_timeout=self._statement_timeout)
        conn.add_notify_handler(lambda notification: self._told(notification.channel))
        for channel in self.schema.channels.values():
            conn.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        self.schema.check(conn)
        self._flow = self.lease.register(conn, self._feed.rooms())
        self._reconcile(conn)
        if not self._marks.are_used:
            self._full_looks = Ration(too_long=_TOO_LONG)
        self._marks.forget()
        # The last session may have been lost over its house-keeping: without today's partition no job can be done.
        self._renew_at = self._keep_house_at = 0.0
        self._tell_of_schedules()

    def _detach(self, conn: psycopg.Connection[Any]) -> None:
        pending = self._outcomes.proofs
        for claim in list(self._outstanding.values()):
            if claim.proof not in pending:
                self._release(claim)
        self._outcomes.write_apart(conn, self._outcomes.take(last=True))
        self.lease.unregister(conn)

    def _run_once(self, conn: psycopg.Connection[Any]) -> float:
        """One pass; returns seconds to the next."""
        self._busy_since = self.passed_at = clock.monotonic()
        # What was written may be a job for us; our own notification comes with the next read only.
        self._hungry |= self._submitted.run(conn)
        self._keep_house(conn)
        self._pool.mend(conn)
        for claim in self._feed.overdue():
            self._release(claim)
        self._sweep_lanes(conn)
        self._exchange(conn)
        self._watch.look(conn, dear=self._marks.are_used)
        next_at = (
            self._renew_at,
            self._next_due,
            self._admit_at,
            self._clear_at,
            self._keep_house_at,
            self._outcomes.again_at,
            self._feed.look_at,
            self._marks.again_at if self._claiming else float("inf"),
        )
        return max(0.0, min(next_at) - clock.monotonic())

    def _keep_house(self, conn: psycopg.Connection[Any]) -> None:
        if (now := clock.monotonic()) >= self._keep_house_at:
            # Before working, so that an error cannot keep us from everything else.
            self._keep_house_at = now + _HOUSEKEEPING_AGAIN
            self._keep_house_at = now + self._history.maintain(conn)

    def _sweep_lanes(self, conn: psycopg.Connection[Any]) -> None:
        limited = bool(self._flow.limited_queues)
        if (self._has_lanes or self._has_rates or limited) and (now := clock.monotonic()) >= self._sweep_at:
            self._sweep_at = now + _SWEEP
            if self._has_lanes:
                lanes.sweep(conn, self.schema)
            if self._has_rates:
                rates.sweep(conn, self.schema, self._feed.rooms())
            elif limited:
                rates.sweep_starts(conn, self.schema)

    @property
    def _has_lanes(self) -> bool:
        # Jobs keep the limit and the rate that they were sent with, also when the code has dropped them since.
        return self._feed.has_lanes or self._left_held

    @property
    def _has_rates(self) -> bool:
        return self._feed.has_rates or self._left_throttled

    def _release(self, claim: Claim) -> None:
        self._outcomes.add(Settlement(claim.id, claim.token, Outcome.RELEASED))

    # The exchange

    def _exchange(self, conn: psycopg.Connection[Any]) -> None:
        """Writes first, because they free slots and make jobs; all in one trip unless something is wrong with it."""
        now = clock.monotonic()
        taken = self._outcomes.take(last=self._stop_by is not None)
        outcomes, sends = self._outcomes.write_special(conn, taken), self._sends.take(self._lost)
        # What these make available is claimed behind them in the same trip.
        self._hungry |= any(one.settlement.makes_available for one in taken)
        errand = self._errand(now, outcomes, sends)
        if not errand.num_statements:
            # Limited queues would be looked at again, and there is no slot: one that gets free rings.
            self._admit_at = self._clear_at = float("inf")
            return
        # Until it is known which of them were marked: the feed tells of each once.
        self._unmarked = [*errand.begun]
        try:
            reply = exchange(conn, self.schema, self.lease, errand)
        except psycopg.Error as exc:
            if conn.broken or not (outcomes or sends or errand.said):
                self._outcomes.put_back(outcomes)
                self._sends.fail(sends, exc)
                raise
            logger.info("dispatcher.parted", reason=str(exc).strip())
            self._write_apart(conn, outcomes, sends)
            outcomes, sends = [], []
            reply = exchange(conn, self.schema, self.lease, errand._replace(settlements=(), new=(), said=()))
        self.reports.confirm(errand.said, reply.heard)
        self._outcomes.confirm(outcomes, reply.lost)
        self._sends.confirm(sends)
        self._follow(conn, errand, reply, now)

    def _errand(self, now: float, outcomes: list[Pending], sends: list[Send]) -> Errand:
        """What is to be said and asked in this pass. Hungry, if what is due or sent may be a job for us."""
        promoting = now >= self._next_due
        # What is due after those that are promoted, only the heartbeat knows.
        renewing = promoting or now >= self._renew_at
        new = [one for jobs, _, _ in sends for one in jobs]
        self._hungry |= promoting or any(one.delay <= 0 for one in new)
        # Each pass may be due to a job that has left its lane, and the next of the lane is claimed in the same trip.
        # The same with rates, whose time is known from the last look.
        admitting, clearing = self._has_lanes, self._has_rates
        self._hungry |= admitting or clearing
        # With whatever else is to be written, and with the heartbeat when there is nothing else.
        said = self.reports.take(self._outstanding, {one.settlement.proof for one in outcomes}) if self.reports else []
        # Each pass may be due to a job of a limited queue that is over, too.
        hungry = self._hungry or bool(self._flow.limited_queues)
        searching = self._marks.are_used and self._claiming
        served = self._feed.rooms() if renewing or searching or (hungry and self._claiming) else ()
        flowing = self._flow.through(served)
        rooms = self._rooms(flowing)
        return Errand(
            settlements=[one.settlement for one in outcomes],
            new=new,
            begun=[*self._unmarked, *self._feed.begun()],
            rooms=rooms,
            promoting=promoting,
            admitting=admitting,
            clearing=clearing,
            renewing=renewing,
            served=served,
            flow=self._flow,
            last_words=last_words(self._pool, list(self._outstanding.values())) if renewing else LastWords(),
            said=said,
            marks=self._marks,
            search=self._marks.search(flowing, moving=bool(rooms) or renewing) if searching else None,
            mine=self._looked_at() if renewing else None,
        )

    def _follow(self, conn: psycopg.Connection[Any], errand: Errand, reply: Reply, now: float) -> None:
        """Do what the *reply* to an *errand* of *now* says: run what was claimed, look again when it is time."""
        self._unmarked = [
            claim for claim in errand.begun if claim.id not in reply.marked and claim.proof in self._outstanding
        ]
        self._next_due = min([self._next_due, *(now + one.delay for one in errand.new if one.delay > 0)])
        self._admit_at = now + _ADMIT_AGAIN if reply.knocking else float("inf")
        # A moment late rather than a moment too soon, which would be one look more.
        opens_in = float("inf") if reply.opens_in is None else max(0.0, reply.opens_in) + 0.002
        self._clear_at = clock.monotonic() + opens_in
        for claims in reply.claims:
            self._take(claims)
        if follow(errand, reply, self._num_workers):
            self._hungry = True
            self.wake()
        if errand.renewing and self._heard(conn, reply.look) and not errand.rooms:
            self.wake()

    def _looked_at(self) -> list[UUID] | None:
        """Of all running jobs the heartbeat looks at these only; None when a look at all of them is due."""
        if self._full_looks.is_due:
            self._full_looks.begin()
            return None
        return [job_id for job_id, _ in list(self._outstanding)]

    def _write_apart(self, conn: psycopg.Connection[Any], outcomes: list[Pending], sends: list[Send]) -> None:
        """Something in an exchange was refused, and all of it undone."""
        try:
            self._outcomes.write_apart(conn, outcomes)
        except psycopg.Error as exc:
            self._sends.fail(sends, exc)
            raise
        self._sends.write_apart(conn, sends)

    def _settled(self, settlement: Settlement, held: bool) -> None:
        self._outstanding.pop(settlement.proof, None)
        self._lost.discard(settlement.proof)
        self.reports.forget(settlement.proof)
        if held and settlement.delay > 0 and settlement.outcome in (Outcome.RETRY, Outcome.RELEASED):
            self._next_due = min(self._next_due, clock.monotonic() + settlement.delay)
        for new in settlement.following:
            if new.delay > 0:
                self._next_due = min(self._next_due, clock.monotonic() + new.delay)

    def _rooms(self, served: Sequence[Room]) -> list[Room]:
        """What to claim for. Hungry afterwards if there may be more: a slot that gets free rings."""
        if not (self._claiming and (self._hungry or any(room.limited for room in served))):
            return []
        rooms = [room for room in served if room.limit > 0]
        self._hungry = any(room.is_tight for room in served)
        return rooms

    def _take(self, claims: list[Claim]) -> None:
        self._outstanding.update((claim.proof, claim) for claim in claims)
        self._feed.put(claims)
        # Fewer than asked for is no sign that there are no more: some are claimed only alone, or not ahead of a slot.
        self._hungry |= bool(claims)

    # Living

    def _heard(self, conn: psycopg.Connection[Any], look: Look | None) -> bool:
        """Follow what the heartbeat saw; whether there is something to claim."""
        if look is None:
            logger.error("worker.declared_dead", worker=str(self.lease.worker_id))
            self._flow = self.lease.register(conn, self._feed.rooms())
            self._reconcile(conn)
            self._full_looks.hurry()  # nothing was seen by the one that was under way, if it was one
            return False
        now = clock.monotonic()
        rescue = self.lease.rescue(conn) if look.needs_rescue else None
        rescued = rescue is not None and rescue.jobs > 0
        if look.flow != self._flow:
            # What is resumed by this was not looked for.
            self._flow = look.flow
            self._hungry = True
            # What is paused by this may have been cleared for a start.
            self._sweep_at = 0.0
            self.wake()
        if rescued or look.workers < self._num_workers:
            # With the rank that they had. Nobody tells what another has rescued, but its worker is gone.
            self._marks.hurry()
        self._num_workers = look.workers
        if look.has_held is not None and look.has_throttled is not None:
            self._left_held, self._left_throttled = look.has_held, look.has_throttled
            self._full_looks.spend(look.took, look.workers)
        self._hungry |= look.has_available or rescued
        self._next_due = float("inf") if look.next_due is None else now + max(0.0, look.next_due)
        period = min(turns.period(look.workers, others_run=look.others_run), self.lease.duration / 3)
        turn = turns.until_turn(look.at, look.nth, look.workers, period) if look.workers > 1 else period
        self._renew_at = now + (turn if rescue is None else min(rescue.again_in, period))
        if look.cancelled:
            self._renew_at = min(self._renew_at, now + _POLL_IN_CANCEL)
            self._cancel(look.cancelled)
        return look.has_available or rescued

    def _cancel(self, cancelled: dict[str, int]) -> None:
        """End what somebody has cancelled; and what no run of ours is behind, which nobody else would."""
        proofs = {(UUID(job_id), token) for job_id, token in cancelled.items()}
        running = [claim for claim in list(self._outstanding.values()) if claim.proof in proofs]
        for job_id, token in proofs - {claim.proof for claim in running} - self._outcomes.proofs:
            self._outcomes.add(Settlement(job_id, token, Outcome.DEAD, error=CANCELLED))
        if running:
            self._feed.cancel(running)

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
            self._lost.update(claim.proof for claim in lost)
            self._feed.lost(lost)

    # Waiting

    def _wait(self, conn: psycopg.Connection[Any], seconds: float) -> None:
        self._busy_since = None
        if self._sends or self._submitted or self._stop_by is not None:
            seconds = 0.0
        elif self._outcomes:
            seconds = min(seconds, self._feed.leisure)
        # What came with the last reply has been read already, and makes no socket readable.
        if self._hear(conn):
            return
        if self._alarm.wait(min(seconds, turns.LONGEST), conn.fileno()):
            conn.pgconn.consume_input()
            self._hear(conn)

    def _hear(self, conn: psycopg.Connection[Any]) -> bool:
        heard = False
        while notification := conn.pgconn.notifies():
            self._told(notification.relname.decode())
            heard = True
        return heard

    def _told(self, channel: str) -> None:
        if channel in (self.schema.channels["later"], self.schema.channels["cancel"]):
            # When the next job is due and which ones are cancelled, the heartbeat knows.
            self._renew_at = 0.0
        elif channel == self.schema.channels["ask"]:
            if self.answer is not None:
                self.submit(self.answer)
        elif channel == self.schema.channels["schedules"]:
            self._tell_of_schedules()
        else:
            self._hungry = True

    def _tell_of_schedules(self) -> None:
        if self.on_schedules is not None:
            self.on_schedules()
