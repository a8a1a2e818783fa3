"""The scheduler: the timer says when to look at a schedule, the ledger decides what fires."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import psycopg
from psycopg import Connection

from worker import clock
from worker.log import get_logger
from worker.queue.schema import Schema
from worker.schedule.backlog import Entry
from worker.schedule.declaration import Schedule
from worker.schedule.journal import log_entries
from worker.schedule.ledger import Declared, Enqueue, Ledger, Pass, Survey
from worker.schedule.timer import Timer
from worker.schedule.trigger import Every

T = TypeVar("T")

log = get_logger(__name__)

# Finds what a timer missed: ticks of a failed transaction, of a suspended machine, of processes that died.
HEARTBEAT = 10.0
# The timer does no I/O, so after this much something is stuck, and the process should end all the same.
STOP_TIMEOUT = 2.0

# One that runs and one that waits: the second sees all that is due when it starts, so a third has nothing to add.
_MAX_UNDERWAY = 2
# Added to a wait for the database's clock, so that rounding does not make the next look early again.
_CLOCK_GRAIN = timedelta(milliseconds=1)


class Submit(Protocol):
    """Runs *work* in a READ COMMITTED transaction on the caller's connection; returns at once, never waits."""

    def __call__(self, work: Callable[[Connection[Any]], T], /) -> Future[T]: ...


class Scheduler:
    """
    Looks at each schedule when it ticks, from `__enter__` to `__exit__`, in any number of processes at once.

    Its one thread does no I/O: each look is handed to *submit*. A look that fails is logged, and the heartbeat's finds
    its tick again. Entering or leaving twice is harmless; without schedules there is no thread.

    Args:
        submit: Runs a callable in a transaction, on a connection of its choice, and commits.
        enqueue: Sends a schedule's job on that connection and returns the job's id.
        decided: Called with the ticks that are in the ledger by now; logs them by default.
    """

    def __init__(
        self,
        schedules: Iterable[Schedule],
        *,
        submit: Submit,
        enqueue: Enqueue,
        schema: Schema,
        decided: Callable[[Schedule, tuple[Entry, ...]], None] = log_entries,
    ) -> None:
        # By name: processes that declare at the same time lock the rows in the same order.
        self._schedules = sorted(schedules, key=lambda schedule: schedule.name)
        self._submit = submit
        self._decided = decided
        self._ledger = Ledger(enqueue, schema=schema)
        self._lock = threading.Lock()
        self._timer: Timer | None = None
        self._underway: Counter[str] = Counter()
        self._stale: set[str] = set()
        self._declared = False

    def __enter__(self) -> Self:
        with self._lock:
            if self._timer is not None or not self._schedules:
                return self
            self._timer = timer = Timer()
            self._underway, self._stale, self._declared = Counter(), set(), False
        timer.repeat(Every(HEARTBEAT), self._beat, first=clock.now())
        for schedule in self._schedules:
            timer.repeat(schedule.trigger, partial(self._look, schedule))
        timer.start()
        log.info("scheduler.started", schedules=len(self._schedules))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            timer, self._timer = self._timer, None
        if timer is None:
            return
        if timer.stop(STOP_TIMEOUT):
            log.info("scheduler.stopped")
        else:
            log.warning("scheduler.stop_late", timeout=STOP_TIMEOUT)

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs, or was never needed."""
        return self._timer is None or self._timer.is_alive

    def _look(self, schedule: Schedule, tick: datetime | None = None) -> None:
        # *tick* is what the timer went off for; a look for another reason has none.
        def work(conn: Connection[Any]) -> Pass:
            return self._ledger.advance(conn, schedule)

        self._hand_over(schedule.name, work, partial(self._after_look, schedule, tick))

    def _after_look(self, schedule: Schedule, tick: datetime | None, done: Pass) -> None:
        self._decided(schedule, done.entries)
        if done.refused != "stale":
            self._stale.discard(schedule.name)
        elif schedule.name not in self._stale:
            # Once, not at each tick: in a rolling deploy the old processes say so until they end.
            self._stale.add(schedule.name)
            log.warning("schedule.stale", schedule=schedule.name, spec=schedule.spec, tz=schedule.tz)
        if done.more:
            self._look(schedule)
        if tick is not None and done.now is not None and tick > done.now and not done.refused:
            self._look_again(schedule, tick, early=tick - done.now)

    def _look_again(self, schedule: Schedule, tick: datetime, early: timedelta) -> None:
        log.debug("schedule.early", schedule=schedule.name, tick=str(tick), early=early.total_seconds())
        timer = self._timer
        if timer is not None:
            timer.once(clock.now() + early + _CLOCK_GRAIN, lambda _: self._look(schedule, tick))

    def _beat(self, _: datetime) -> None:
        # The first time, and until it succeeded once, the heartbeat also declares.
        def work(conn: Connection[Any]) -> tuple[list[Declared], Survey]:
            new = [] if self._declared else [self._ledger.declare(conn, schedule) for schedule in self._schedules]
            return new, self._ledger.survey(conn, self._schedules)

        self._hand_over("", work, self._after_beat)

    def _after_beat(self, done: tuple[list[Declared], Survey]) -> None:
        declared, survey = done
        for schedule, change in zip(self._schedules, declared, strict=False):
            log.info(f"schedule.{change}", schedule=schedule.name, spec=schedule.spec, tz=schedule.tz)
        self._declared = True
        for schedule in survey.orphaned:
            self._take_over(schedule)
        for schedule in survey.due:
            self._look(schedule)

    def _take_over(self, schedule: Schedule) -> None:
        # A transaction for each: one for all would hold some rows while it waits for others.
        def work(conn: Connection[Any]) -> Declared:
            return self._ledger.declare(conn, schedule, takeover=True)

        def then(change: Declared) -> None:
            log.info(f"schedule.{change}", schedule=schedule.name, spec=schedule.spec, tz=schedule.tz)
            self._look(schedule)

        self._hand_over(schedule.name, work, then)

    def _hand_over(self, name: str, work: Callable[[Connection[Any]], T], then: Callable[[T], None]) -> None:
        """Submit *work* and pass its result on to *then*; *name* is the schedule's, empty for the heartbeat."""
        with self._lock:
            timer, underway = self._timer, self._underway
            if timer is None or underway[name] >= _MAX_UNDERWAY:
                return
            underway[name] += 1

        def work_unless_stopped(conn: Connection[Any]) -> T | None:
            return work(conn) if self._timer is timer else None

        def settle(future: Future[T | None]) -> None:
            with self._lock:
                underway[name] -= 1
            if future.cancelled():
                return
            if exc := future.exception():
                _log_failure(name, exc)
            elif (result := future.result()) is not None:
                then(result)

        _submitted(self._submit, work_unless_stopped).add_done_callback(settle)


def _submitted(submit: Submit, work: Callable[[Connection[Any]], T]) -> Future[T]:
    try:
        return submit(work)
    except Exception as exc:  # a dispatcher that is closed refuses at once: the same as one that fails later
        failed: Future[T] = Future()
        failed.set_exception(exc)
        return failed


def _log_failure(name: str, exc: BaseException) -> None:
    event = "schedule.failed" if name else "scheduler.heartbeat_failed"
    fields = {"schedule": name} if name else {}
    # A database out of reach needs no traceback; anything else does, as it may be ours.
    trace = None if isinstance(exc, psycopg.OperationalError) else exc
    log.warning(event, **fields, error=f"{type(exc).__name__}: {exc}", exc_info=trace)
