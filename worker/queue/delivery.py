"""A delivery: one run of a claimed job, from its claim to its settlement."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import dramatiq
import psycopg
from dramatiq import Actor, Message, MessageProxy
from dramatiq.common import compute_backoff
from dramatiq.middleware import Interrupt, Shutdown, TimeLimitExceeded
from psycopg_pool import PoolClosed, PoolTimeout

from worker import log, tracing
from worker.errors import LeaseLost
from worker.pool import Connection, Pool
from worker.pool.lent import Lent
from worker.queue.claim import Claim
from worker.queue.context import Abilities, Context
from worker.queue.job_transaction import JobTransaction
from worker.queue.new_job import NewJob
from worker.queue.scope import Scope
from worker.queue.settlement import Settlement
from worker.queue.stop_reason import StopReason

logger = log.get_logger(__name__)

# Between the thread that runs a job and the job's own code, in a traceback.
_MACHINERY = tuple(f"{folder}{os.sep}" for folder in (Path(__file__).parents[1], Path(dramatiq.__file__).parent))

_making = threading.Lock()
current: ContextVar[Delivery | None] = ContextVar("delivery", default=None)

# admin_shutdown, crash_shutdown, cannot_connect_now
_LEAVING = ("57P01", "57P02", "57P03")
_CONFLICTS = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)
# The server takes no writes at the moment: half way through a failover, or without room.
_REFUSALS = (psycopg.errors.ReadOnlySqlTransaction, psycopg.errors.DiskFull)
_DEFAULT_RETRIES = 20
_MAX_CUTS = 5
_MIN_BACKOFF_MS = 15_000
_MAX_BACKOFF_MS = 7 * 24 * 3600 * 1000


class Delivery(MessageProxy):
    """
    One run of a claimed job: Dramatiq's proxy of its message, plus the proof and the means to settle it.

    Enqueues made while it is *collecting* are kept here and written by its settlement, so that they exist only if
    the settlement does.

    Args:
        actor: None when this process does not know the job's actor.
    """

    def __init__(self, claim: Claim, message: Message[Any], actor: Actor[..., Any] | None, pool: Pool) -> None:
        super().__init__(message)
        self.claim = claim
        self.actor = actor
        self.pool = pool
        self.scope = Scope()  # what this run has borrowed: its connection, its place in the context
        # Every hook asks for these; the proxy would look each time whether it has them itself.
        self.actor_name = message.actor_name
        self.options = message.options
        self.sent_options = dict(message.options)  # before the middleware adds its own
        self.holder = claim.holder
        """What a checkout of this run is called."""
        self.following: list[NewJob] = []

    # As a run begins; most never change.
    conn: Connection | None = None
    transaction: JobTransaction | None = None
    stop_reason: StopReason | None = None
    collecting = False
    started = False
    connected = True
    settled = False
    lost = False  # its lease, as the commit found
    step_cut = False  # whether its latest step lost its connection or a conflict
    settlement: Settlement | None = None
    rescheduled: NewJob | None = None
    broken: Exception | None = None
    abilities: Callable[[Delivery], Abilities] | None = None
    _in_body = False
    _stopping: threading.Event | None = None  # made for the one in many that waits for it
    _view: psycopg.AsyncConnection[Any] | None = None
    _trace: Any = None

    def begin_trace(self, worker: str | None = None) -> None:
        """Begin the span of this run, if the application has traces; in the context in which all of it runs."""
        try:
            self._trace = tracing.running(self, queue=self.claim.queue, attempt=self.claim.attempt, worker=worker)
        except Exception:
            logger.exception("trace.failed")  # the application's provider; no job is to suffer for that

    def end_trace(self, settlement: Settlement | None, error: BaseException | None = None) -> None:
        """End it, with what became of the job and why; a second time is harmless."""
        run, self._trace = self._trace, None
        if run is not None:
            known = None if settlement is None else settlement.outcome.value
            try:
                run.end("lost" if self.lost else known, error)
            except Exception:
                logger.exception("trace.failed")

    @property
    def stopping(self) -> threading.Event:
        """Set when the run should end."""
        with _making:
            if self._stopping is None:
                self._stopping = threading.Event()
                if self.stop_reason is not None:
                    self._stopping.set()
            return self._stopping

    def stop(self, reason: StopReason) -> None:
        """Say that the run should end, and why; from any thread. The last reason is the one that ends it."""
        with _making:
            self.stop_reason = reason
            if self._stopping is not None:
                self._stopping.set()

    def enter_body(self) -> bool:
        """True once, for the worker's own call; a job that calls itself by hand gets the plain function."""
        entered, self._in_body = not self._in_body, True
        return entered

    def leave_body(self, *, failed: bool) -> None:
        """From here on hooks collect. What a body that *failed* collected goes with its transaction."""
        # A send that was refused in the body was the body's to handle; in a hook nobody would.
        self.broken = None
        if failed:
            self.following.clear()
            self.rescheduled = None

    def injected(self, kind: str) -> Any:
        """What a parameter of *kind* gets."""
        if kind == "Pool":
            return self.pool
        if kind == "Context":
            return self.context
        if self.conn is None:
            raise RuntimeError(f"job {self.claim.actor!r}: no connection was opened for this run")
        return self.conn if kind == "Connection" else self.view

    @property
    def view(self) -> psycopg.AsyncConnection[Any]:
        """This run's connection for coroutines: always the same one, because each has a lock of its own."""
        if self._view is None:
            assert self.conn is not None  # noqa: S101  # asked for by a run that has one
            self._view = self.pool.view(self.conn)
        return self._view

    def leave_view(self) -> None:
        """Its connection goes back: a task that the job has left behind must not go on with it."""
        view, self._view = self._view, None
        if isinstance(view, Lent):
            view.let_go()

    @property
    def mark(self) -> str:
        """What its sessions are called, briefly; the end of an id is what differs among those of the same time."""
        return f"{self.claim.id.hex[-6:]} {self.claim.actor}"

    @property
    def context(self) -> Context:
        return Context(
            job_id=self.claim.id,
            actor=self.claim.actor,
            queue=self.claim.queue,
            attempt=self.claim.attempt,
            options=self.options,
            abilities=None if self.abilities is None else self.abilities(self),
        )

    def collect(self, new: NewJob) -> None:
        """Keep *new* for the settlement; under this job's own id it is a retry of it."""
        if new.id == self.claim.id:
            self.rescheduled = new
        else:
            self.following.append(new)

    @property
    def is_sound(self) -> bool:
        """Whether nothing but an exception could keep it from success."""
        return self.connected and not self.failed and self.rescheduled is None and self.broken is None

    def costs_no_attempt(self, exception: BaseException | None) -> bool:
        """Whether a run that ended in *exception* was cut by circumstances rather than failed by its own doing."""
        return not self.connected or isinstance(exception, Shutdown | LeaseLost) or self.was_cut(exception)

    def was_cut(self, exception: BaseException | None) -> bool:
        """
        Whether the run lost its connection or a conflict, or met a server that takes no writes.

        Free only so often, for it may be the job's own doing.
        """
        if exception is None or self.cuts >= _MAX_CUTS:
            return False
        if self.conn is None:
            return self.step_cut or (self.takes_pool and _is_disconnection(exception))
        return self.conn.broken or isinstance(exception, _CONFLICTS + _REFUSALS)

    def note_step_cut(self, conn: psycopg.Connection[Any] | None, error: Exception) -> None:
        """
        Note whether *error* cut a step whose transaction is on *conn*; it is safe to repeat, unlike what a job calls.

        So only errors within a step's own transaction are noted, not those of a function that is called without one.
        """
        self.step_cut = (conn is not None and conn.broken) or isinstance(error, _CONFLICTS + _REFUSALS)

    @property
    def takes_connection(self) -> bool:
        """Whether its run holds a connection from beginning to end."""
        signature = getattr(self.actor, "signature", None)
        return signature is not None and signature.takes_connection

    @property
    def takes_pool(self) -> bool:
        """Whether the job is given the pool, and takes its connections from there by itself."""
        signature = getattr(self.actor, "signature", None)
        return signature is not None and "Pool" in signature.injected

    @property
    def cuts(self) -> int:
        """How many runs before this one were cut."""
        cuts = self.sent_options.get("cuts", 0)
        # A hand may have written anything there, and a run must be concluded all the same.
        return cuts if isinstance(cuts, int) else 0

    def fail_after_hooks(self, exc: BaseException, encode: Callable[[Delivery, int], NewJob]) -> None:
        """
        Count a failure that came only when the transaction was to commit: retry, or dead when out of attempts.

        The middleware has seen a success by then and is not asked again, so Retries' rule is applied here, and what
        would have followed from the success does not.
        """
        self.following.clear()
        options = {**getattr(self.actor, "options", {}), **self.options}
        retries = options.get("retries", 0)
        limit = options.get("max_retries", _DEFAULT_RETRIES)
        if limit is not None and retries >= limit:
            self.fail()
            return
        high = min(options.get("max_backoff", _MAX_BACKOFF_MS), _MAX_BACKOFF_MS)
        _, delay = compute_backoff(retries, factor=options.get("min_backoff", _MIN_BACKOFF_MS), max_backoff=high)
        self.options.update(retries=retries + 1, traceback=describe(exc))
        self.rescheduled = encode(self, delay)


def _is_disconnection(exception: BaseException) -> bool:
    """Whether *exception* is what psycopg makes of a session that was ended or whose network is gone."""
    if not isinstance(exception, psycopg.OperationalError) or isinstance(exception, PoolTimeout | PoolClosed):
        return False
    # Without a code nobody answered any more; the others are said by a server that leaves.
    return exception.sqlstate is None or exception.sqlstate.startswith("08") or exception.sqlstate in _LEAVING


def describe(exception: BaseException) -> str:
    """*exception* with its traceback from the job's own code on, as it is kept with the job."""
    trace = exception.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_MACHINERY):
        trace = trace.tb_next
    # Where a job was when its time ran out is worth knowing; a coroutine has left by then.
    if isinstance(exception, Interrupt) and (trace is None or not isinstance(exception, TimeLimitExceeded)):
        return f"{type(exception).__name__}: {exception}"
    # What has no code of the job's was met by the machinery itself.
    return "".join(traceback.format_exception(type(exception), exception, trace or exception.__traceback__, limit=-20))
