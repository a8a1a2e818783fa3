"""Supervision: the main thread waits for the end, and looks whether everybody lives."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from typing import Any

import psycopg

from worker import exits, log
from worker.config import Config
from worker.errors import LeaseLost, SchemaError
from worker.queue.dispatcher import Dispatcher
from worker.queue.statements import HAS_WORK
from worker.runtime.answers import Answers
from worker.runtime.execution import fields
from worker.runtime.loop_watch import LoopWatch
from worker.runtime.reload import Reload
from worker.runtime.signals import Stop
from worker.runtime.slot_feed import SlotFeed
from worker.runtime.stack import stack_of_thread
from worker.runtime.vitals import Stage, Vitals
from worker.runtime.watchdog import Watchdog
from worker.runtime.wear import Wear

logger = log.get_logger(__name__)

# Not an exit code: this process goes on as new code.
RELOAD = -1

# How often the main thread looks whether everybody lives.
_LOOK = 0.5
# A pass of the dispatcher takes milliseconds. With the look, one that does not end is noticed within 2 s.
SLOW_PASS = 1.4
# Before the lease ends: a job that is cut must be over when others may take it.
_LEASE_MARGIN = 0.3


class Supervision:
    """What the main thread does while jobs run: `run` it until it returns the exit code."""

    def __init__(
        self,
        stop: Stop,
        vitals: Vitals,
        dispatcher: Dispatcher,
        feed: SlotFeed,
        watchdog: Watchdog,
        loop_watch: LoopWatch,
        config: Config,
        wear: Wear,
        reload: Reload,
    ) -> None:
        self._stop = stop
        self._vitals = vitals
        self._dispatcher = dispatcher
        self._feed = feed
        self._watchdog = watchdog
        self._loop_watch = loop_watch
        self._wear = wear
        self._reload = reload
        self._config = config
        self._slow = self._lease_ending = False

    def answer(self, answers: Answers) -> None:
        """What signals other than those to stop ask for."""
        self._stop.on(signal.SIGUSR1, answers.log)
        self._stop.on(signal.SIGUSR2, self._log_stacks)
        self._stop.on(signal.SIGTSTP, self._pause)
        self._stop.on(signal.SIGCONT, self._resume)
        self._stop.on(signal.SIGHUP, self._reload.ask)

    def run(self) -> int:
        """
        Wait for the end, and look every half second whether everybody lives; returns the exit code, or `RELOAD`.

        Raises:
            SchemaError: The schema has become one that this worker cannot serve.
        """
        while not self._stop.wait(_LOOK):
            self._vitals.beat()
            if self._dispatcher.failure is not None:
                if isinstance(self._dispatcher.failure, SchemaError):
                    raise self._dispatcher.failure
                return exits.INTERNAL
            if troubles := self._vitals.troubles():
                logger.critical("worker.thread_died", threads=sorted(troubles), troubles=troubles)
                return exits.INTERNAL
            if stuck := self._watchdog.stuck:
                logger.critical("worker.stuck", jobs=[str(guard.delivery.claim.id) for guard in stuck])
                return exits.INTERNAL
            self._guard_lease()
            self._watch_dispatcher()
            self._loop_watch.look()
            if worn := self._wear.told:
                logger.info("worker.worn", **worn)
                return exits.RECYCLED
            if self._reload.is_approved():
                self._vitals.reload()
                return RELOAD
            if self._config.until_empty and self._feed.idle.is_set() and self._is_empty():
                logger.info("worker.empty")
                return exits.OK
        return exits.OK

    def _guard_lease(self) -> None:
        remaining = self._dispatcher.lease.remaining
        ending = remaining < self._config.lease * _LEASE_MARGIN
        if ending and not self._feed.idle.is_set():
            if not self._lease_ending:
                logger.error("worker.lease_ending", remaining=round(remaining, 3))
            self._lease_ending = True
            self._watchdog.interrupt_all(LeaseLost)
        elif not ending:
            self._lease_ending = False

    def _watch_dispatcher(self) -> None:
        """Say once that a pass does not end, and once that it has."""
        busy_for = self._dispatcher.busy_for
        if busy_for > SLOW_PASS and not self._slow:
            stack = stack_of_thread(self._dispatcher.thread)
            logger.error("dispatcher.stuck", busy_for=round(busy_for, 3), stack=stack)
            self._slow = True
        elif busy_for <= SLOW_PASS and self._slow:
            logger.info("dispatcher.goes_on")
            self._slow = False

    def _is_empty(self) -> bool:
        """Whether no job of ours is due or running, anywhere; what is scheduled for later stays."""

        def look(conn: psycopg.Connection[Any]) -> bool:
            parameters = {"queues": self._feed.queues, "actors": self._feed.actors}
            row = conn.execute(self._dispatcher.schema.render(HAS_WORK).encode(), parameters).fetchone()
            return row is not None and not row[0]

        try:
            return self._dispatcher.submit(look).result(timeout=10.0)
        except (TimeoutError, psycopg.OperationalError) as exc:
            logger.warning("worker.empty_unknown", reason=str(exc))
            return False

    def _pause(self) -> None:
        if self._vitals.stage is Stage.RUNNING:
            self._dispatcher.pause()
            self._vitals.enter(Stage.PAUSED, running=self._feed.num_running)

    def _resume(self) -> None:
        if self._vitals.stage is Stage.PAUSED:
            self._dispatcher.resume()
            self._vitals.enter(Stage.RUNNING)

    def _log_stacks(self) -> None:
        """Which jobs run, and where every thread is; without arguments or other variables."""
        for claim in self._feed.running():
            logger.info("worker.running_job", **fields(claim))
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        for ident, frame in sys._current_frames().items():
            stack = "".join(traceback.format_stack(frame))
            logger.info("worker.stack", thread=names.get(ident, str(ident)), stack=stack)
