"""The scheduler: the timer says when to look at a schedule, the ledger decides what fires."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import psycopg
from dramatiq import Actor
from psycopg import Connection

from worker import clock
from worker.log import get_logger
from worker.queue.schema import Schema
from worker.schedule.backlog import Entry
from worker.schedule.declaration import Schedule
from worker.schedule.journal import log_entries
from worker.schedule.ledger import KEEP, Enqueue, Ledger, Pass
from worker.schedule.register import Declared, Register, Survey
from worker.schedule.rows import Row
from worker.schedule.sending import send
from worker.schedule.stored import stored
from worker.schedule.timer import Timer
from worker.schedule.trigger import Every
from worker.schedule.warning import gap_warning

T = TypeVar("T")

log = get_logger(__name__)

# Finds what a timer missed: ticks of a failed transaction, of a suspended machine, of processes that died; and what a
# notification failed to tell: that somebody changed a schedule in the database.
HEARTBEAT = 10.0
# The timer does no I/O, so after this much something is stuck, and the process should end all the same.
STOP_TIMEOUT = 2.0

# One that runs and one that waits: the second sees all that is due when it starts, so a third has nothing to add.
_MAX_UNDERWAY = 2
# Added to a wait for the database's clock, so that rounding does not make the next look early again.
_CLOCK_GRAIN = timedelta(milliseconds=1)
# A row that somebody else holds: mostly he decides the same tick, but he may die over it.
_LOCKED_AGAIN = timedelta(seconds=1)
_FORGET_EVERY = 3600.0
# No schedule is called so, as names can be printed.
_BEAT, _POLL, _FORGET, _LOOKS = "\0beat", "\0poll", "\0forget", "\0looks"
_INTERNAL = {
    _BEAT: "scheduler.heartbeat_failed",
    _POLL: "scheduler.poll_failed",
    _FORGET: "scheduler.retention_failed",
    _LOOKS: "scheduler.looks_failed",
}
_DECLARED = {"added": "schedule.added", "changed": "schedule.changed", "confirmed": "schedule.confirmed"}
# Looks in one transaction, which shares its connection with heartbeats and claims: a tenth of a second at most.
_TOGETHER = 250

# At a schedule, for a tick that its timer went off for.
Look = tuple[Schedule, datetime | None]


class Boot(NamedTuple):
    """What the first heartbeat did, and those after it while some schedule is still to be declared."""

    declared: list[tuple[Schedule, Declared]]
    vanished: list[str]
    survey: Survey


class Submit(Protocol):
    """Runs *work* in a READ COMMITTED transaction on the caller's connection; returns at once, never waits."""

    def __call__(self, work: Callable[[Connection[Any]], T], /) -> Future[T]: ...


class Scheduler:
    """
    Looks at each schedule when it ticks, from `__enter__` to `__exit__`, in any number of processes at once.

    Its one thread does no I/O: each look is handed to *submit*. A look that fails is logged, and the heartbeat's finds
    its tick again. Entering or leaving twice is harmless.

    Args:
        schedules: Those that this process declares; the ones in the database it finds by itself.
        submit: Runs a callable in a transaction, on a connection of its choice, and commits.
        submit_statement: The same for a single statement, without the two round it; *submit* when None.
        enqueue: Sends a schedule's job on that connection and returns the job's id.
        modules: The modules that were loaded: what they once declared and do not any more is disabled.
        actors: Finds the actor by that name, for the schedules in the database; None when this process has none.
        keep: Seconds that the ledger keeps its rows.
        decided: Called with the ticks that are in the ledger by now; logs them by default.
    """

    def __init__(
        self,
        schedules: Iterable[Schedule],
        *,
        submit: Submit,
        submit_statement: Submit | None = None,
        schema: Schema,
        enqueue: Enqueue = send,
        modules: Sequence[str] = (),
        actors: Callable[[str], Actor[Any, Any] | None] = lambda name: None,
        keep: float = KEEP,
        decided: Callable[[Schedule, tuple[Entry, ...]], None] = log_entries,
    ) -> None:
        # By name: processes that declare at the same time lock the rows in the same order.
        self._declared = sorted(schedules, key=lambda schedule: schedule.name)
        self._submit = submit
        self._submit_statement = submit_statement or submit
        self._decided = decided
        self._ledger = Ledger(enqueue, schema=schema)
        self._register = Register(schema, modules)
        self._actors = actors
        self._keep = keep
        self._lock = threading.Lock()
        self._timer: Timer | None = None
        self._reset()

    def _reset(self) -> None:
        self._underway: Counter[str] = Counter()
        self._waiting: dict[str, Look] = {}
        self._stale: set[str] = set()
        self._out_of_reach: set[str] = set()
        self._undeclared = list(self._declared)
        self._booted = self._declaring_again = False
        self._revision: tuple[int, int] | None = None
        self._found: dict[str, Schedule] = {}
        self._cancels: dict[str, Callable[[], None]] = {}

    def __enter__(self) -> Self:
        with self._lock:
            if self._timer is not None:
                return self
            self._timer = timer = Timer(self._look_at_waiting)
            self._reset()
        timer.repeat(Every(HEARTBEAT), self._beat, first=clock.now())
        timer.repeat(Every(_FORGET_EVERY), self._forget, first=clock.now())
        for schedule in self._declared:
            timer.repeat(schedule.trigger, partial(self._await_look, schedule))
        timer.start()
        log.info("scheduler.started", schedules=len(self._declared))
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

    def catch_up(self) -> None:
        """
        Look now at what the heartbeat looks at: somebody has changed a schedule, or the database was out of reach.

        From any thread; returns at once.
        """
        self._beat(clock.now())

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs, between entering and leaving; True at any other time."""
        timer = self._timer
        return timer is None or timer.is_alive

    @property
    def schedules(self) -> list[Schedule]:
        """All that it looks at: those of this process and those in the database whose actor it knows."""
        return [*self._declared, *self._found.values()]

    # Looking at schedules

    def _look(self, schedule: Schedule) -> None:
        """Look at *schedule* soon, for another reason than that its timer went off."""
        self._await_look(schedule, None)
        self._look_at_waiting()

    def _await_look(self, schedule: Schedule, tick: datetime | None) -> None:
        """Look at *schedule* with the others that tick at this wake-up; *tick* is what its timer went off for."""
        with self._lock:
            # One that waits sees all that is due when its turn comes: a second only makes it wait for the later tick.
            _, waiting = self._waiting.get(schedule.name, (schedule, None))
            self._waiting[schedule.name] = schedule, max(filter(None, (tick, waiting)), default=None)

    def _look_at_waiting(self) -> None:
        if not self._waiting:
            return
        # Those that tick together share a transaction: with one each, hundreds of commits would make the last late.
        taken: list[Look] = []

        def work(conn: Connection[Any]) -> list[Pass]:
            with self._lock:
                names = list(self._waiting)[:_TOGETHER]
                taken.extend(self._waiting.pop(name) for name in names)
            return self._ledger.advance_all(conn, [schedule for schedule, _ in taken])

        def then(done: list[Pass]) -> None:
            for (schedule, tick), decided in zip(taken, done, strict=True):
                self._after_look(schedule, tick, decided)
            self._look_at_waiting()

        def failed(exc: BaseException) -> None:
            if not taken or _is_out_of_reach(exc):
                # For every one of them.
                self._say_failed(_LOOKS, exc)
            elif len(taken) == 1:
                self._say_failed(taken[0][0].name, exc)
            else:
                # One of them failed and took the others with it: each by itself, the others pass.
                for look in taken:
                    self._look_alone(*look)
            if taken:
                self._look_at_waiting()

        self._hand_over(_LOOKS, work, then, failed)

    def _look_alone(self, schedule: Schedule, tick: datetime | None) -> None:
        def work(conn: Connection[Any]) -> Pass:
            [done] = self._ledger.advance_all(conn, [schedule])
            return done

        self._hand_over(schedule.name, work, partial(self._after_look, schedule, tick))

    def _after_look(self, schedule: Schedule, tick: datetime | None, done: Pass) -> None:
        self._decided(schedule, done.entries)
        if done.failed is not None:
            self._say_failed(schedule.name, done.failed)
        if done.refused != "stale":
            self._stale.discard(schedule.name)
        elif schedule.name not in self._stale and schedule.source == "code":
            # Once, not at each tick: in a rolling deploy the old processes say so until they end.
            self._stale.add(schedule.name)
            log.warning("schedule.stale", schedule=schedule.name, spec=schedule.spec, tz=schedule.tz)
        if done.more:
            self._look(schedule)
        if done.refused == "locked":
            self._look_again(schedule, None, _LOCKED_AGAIN)
        elif tick is not None and done.now is not None and tick > done.now and not done.refused:
            log.debug("schedule.early", schedule=schedule.name, tick=str(tick))
            self._look_again(schedule, tick, tick - done.now + _CLOCK_GRAIN)

    def _look_again(self, schedule: Schedule, tick: datetime | None, wait: timedelta) -> None:
        timer = self._timer
        if timer is not None and (schedule.source == "code" or self._found.get(schedule.name) is schedule):
            timer.once(clock.now() + wait, lambda _: self._await_look(schedule, tick))

    # The heartbeat: declaring, and finding what was missed

    def _beat(self, _: datetime) -> None:
        if self._booted and not self._undeclared:
            self._hand_over(_BEAT, self._survey, self._after_survey, submit=self._submit_statement)
        else:
            self._hand_over(_BEAT, self._boot, self._after_boot)

    def _boot(self, conn: Connection[Any]) -> Boot:
        declared = [(schedule, self._register.declare(conn, schedule)) for schedule in self._undeclared]
        # Once: a process that goes on doing so would disable what a newer deploy adds.
        vanished = [] if self._booted else self._register.disable_vanished(conn, self._declared)
        return Boot(declared, vanished, self._survey(conn))

    def _survey(self, conn: Connection[Any]) -> Survey:
        return self._register.survey(conn, self.schedules)

    def _declare_again(self, now: datetime) -> None:
        self._declaring_again = False
        self._beat(now)

    def _after_boot(self, done: Boot) -> None:
        self._booted = True
        self._undeclared = [schedule for schedule, change in done.declared if change == "locked"]
        if self._undeclared and not self._declaring_again and (timer := self._timer) is not None:
            self._declaring_again = True
            timer.once(clock.now() + _LOCKED_AGAIN, self._declare_again)
        for schedule, change in done.declared:
            _log_declared(schedule, change)
        for name in done.vanished:
            log.warning("schedule.disabled", schedule=name, reason="its module was loaded and does not declare it")
        self._after_survey(done.survey)

    def _after_survey(self, survey: Survey) -> None:
        for schedule in survey.orphaned:
            self._take_over(schedule)
        for schedule in survey.due:
            self._look(schedule)
        if survey.revision != self._revision:
            self._hand_over(_POLL, self._read_database, self._follow_database)

    def _take_over(self, schedule: Schedule) -> None:
        # A transaction for each: one for all would hold some rows while it waits for others.
        def work(conn: Connection[Any]) -> Declared:
            return self._register.declare(conn, schedule, takeover=True)

        def then(change: Declared) -> None:
            _log_declared(schedule, change)
            self._look(schedule)

        self._hand_over(schedule.name, work, then)

    # Schedules in the database

    def _read_database(self, conn: Connection[Any]) -> tuple[tuple[int, int], list[Row]]:
        # In this order: what is changed between the two is seen now, and looks changed the next time.
        revision = self._register.revision(conn)
        return revision, [] if revision == self._revision else self._register.in_database(conn)

    def _follow_database(self, done: tuple[tuple[int, int], list[Row]]) -> None:
        revision, rows = done
        timer = self._timer
        if revision == self._revision or timer is None:
            return
        self._revision = revision
        found = {schedule.name: schedule for row in rows if (schedule := stored(row, self._actors)) is not None}
        for name in [name for name, schedule in self._found.items() if found.get(name) != schedule]:
            del self._found[name]
            self._cancels.pop(name)()
            if name not in found:
                log.info("schedule.gone", schedule=name)
        for name, schedule in found.items():
            if name not in self._found:
                self._found[name] = schedule
                self._cancels[name] = timer.repeat(schedule.trigger, partial(self._await_look, schedule))
                log.info("schedule.found", schedule=name, spec=schedule.spec, tz=schedule.tz)
                # It may have ticked before we heard of it.
                self._look(schedule)

    # Retention

    def _forget(self, _: datetime) -> None:
        def work(conn: Connection[Any]) -> bool:
            return self._ledger.forget(conn, keep=self._keep)

        def then(more: bool) -> None:
            timer = self._timer
            if more and timer is not None:
                timer.once(clock.now() + _LOCKED_AGAIN, self._forget)

        self._hand_over(_FORGET, work, then)

    def _hand_over(
        self,
        name: str,
        work: Callable[[Connection[Any]], T],
        then: Callable[[T], None],
        failed: Callable[[BaseException], None] | None = None,
        *,
        submit: Submit | None = None,
    ) -> None:
        """Submit *work* and pass its result on to *then*; at most two of a *name* are under way."""
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
                (failed or partial(self._say_failed, name))(exc)
                return
            if (result := future.result()) is None:
                return
            if result != []:  # a look that found nobody waiting proves nothing
                self._out_of_reach.discard(name)
            then(result)

        _submitted(submit or self._submit, work_unless_stopped).add_done_callback(settle)

    def _say_failed(self, name: str, exc: BaseException) -> None:
        """Of a database that is out of reach once, however many ticks come meanwhile: each is found again."""
        if _is_out_of_reach(exc):
            if name in self._out_of_reach:
                return
            self._out_of_reach.add(name)
        event = _INTERNAL.get(name, "schedule.failed")
        fields = {} if name in _INTERNAL else {"schedule": name}
        # A database out of reach needs no traceback; anything else does, as it may be ours.
        trace = None if isinstance(exc, psycopg.OperationalError) else exc
        log.warning(event, **fields, error=f"{type(exc).__name__}: {exc}", exc_info=trace)


def _submitted(submit: Submit, work: Callable[[Connection[Any]], T]) -> Future[T]:
    try:
        return submit(work)
    except Exception as exc:  # a dispatcher that is closed refuses at once: the same as one that fails later
        failed: Future[T] = Future()
        failed.set_exception(exc)
        return failed


def _log_declared(schedule: Schedule, change: Declared) -> None:
    if change == "locked":
        return
    log.info(_DECLARED[change], schedule=schedule.name, spec=schedule.spec, tz=schedule.tz)
    if change in ("added", "changed") and (warning := gap_warning(schedule.trigger, clock.now())):
        log.warning("schedule.gap", schedule=schedule.name, warning=warning)


def _is_out_of_reach(exc: BaseException) -> bool:
    """Whether the database could not be talked to, or takes no writes; a timeout, a deadlock may be one schedule's."""
    if isinstance(exc, psycopg.errors.ReadOnlySqlTransaction | psycopg.errors.DiskFull):
        return True
    if not isinstance(exc, psycopg.OperationalError) or isinstance(exc, psycopg.errors.QueryCanceled):
        return False
    # By the classes of Postgres' error codes: connection exceptions, and an operator's intervention.
    return exc.sqlstate is None or exc.sqlstate[:2] in ("08", "57")
