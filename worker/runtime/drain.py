"""The drain: from the last claim to the last job, in stages, within one deadline."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress

import psycopg
from dramatiq.middleware import Shutdown

from worker import clock, log
from worker.queue.broker import PostgresBroker
from worker.queue.dispatcher import Dispatcher
from worker.queue.settlement import Outcome, Settlement
from worker.queue.stop_reason import StopReason
from worker.runtime.job_loop import JobLoop
from worker.runtime.job_threads import JobThreads
from worker.runtime.signals import Stop
from worker.runtime.slot_feed import SlotFeed
from worker.runtime.stuck import abandon
from worker.runtime.vitals import Stage, Vitals
from worker.runtime.watchdog import Watchdog

logger = log.get_logger(__name__)

_CLAIM_UNDERWAY = 2.0
# What cut jobs get to let go, after their grace.
_CUT = 5.0
_LOOK = 0.1


class Drain:
    """Claims nothing more, gives back what waits, lets running jobs finish within *grace* seconds, cuts the rest."""

    def __init__(
        self,
        broker: PostgresBroker,
        stop: Stop,
        vitals: Vitals,
        dispatcher: Dispatcher,
        feed: SlotFeed,
        watchdog: Watchdog,
        *,
        grace: float,
    ) -> None:
        self._broker = broker
        self._stop = stop
        self._vitals = vitals
        self._dispatcher = dispatcher
        self._feed = feed
        self._watchdog = watchdog
        self._grace = grace

    def run(self, threads: JobThreads, loop: JobLoop) -> None:
        """Return when no job runs, or what cannot be stopped was given up."""
        started = clock.monotonic()
        # First of all: what follows may wait for a database that is away.
        self._vitals.enter(Stage.DRAINING, running=self._feed.num_running, grace=self._grace)
        self._dispatcher.pause()
        self._watchdog.announce(StopReason.SHUTDOWN)
        with suppress(TimeoutError, CancelledError, psycopg.OperationalError):
            # A claim that was under way has been put before the slots when this returns, or its reply never comes.
            self._dispatcher.submit(lambda _: None).result(_CLAIM_UNDERWAY)
        self._give_back(threads, loop)
        logger.info("worker.draining", running=self._feed.num_running, grace=self._grace)
        self._wait_idle(started + self._grace, hurried=lambda: self._stop.hurry)
        if not self._is_over:
            self._vitals.enter(Stage.CUTTING, running=self._feed.num_running)
            logger.warning("worker.cutting", running=self._feed.num_running)
            self._watchdog.cut(Shutdown)
            self._wait_idle(clock.monotonic() + _CUT)
        self._abandon_stuck()
        duration = round(clock.monotonic() - started, 3)
        logger.info("worker.drained", left=self._feed.num_running, duration=duration)
        self._vitals.enter(Stage.CLOSING)

    def _give_back(self, threads: JobThreads, loop: JobLoop) -> None:
        for claim in self._feed.take_back():
            self._dispatcher.settle(Settlement(claim.id, claim.token, Outcome.RELEASED))
        for claim in (*threads.take_back(), *loop.take_back()):
            self._dispatcher.settle(Settlement(claim.id, claim.token, Outcome.RELEASED))
            self._feed.finished(claim)

    def _wait_idle(self, deadline: float, hurried: Callable[[], bool] = lambda: False) -> None:
        while not hurried() and (left := deadline - clock.monotonic()) > 0:
            self._vitals.beat()
            if self._feed.idle.wait(min(left, _LOOK)) or self._is_over:
                return

    @property
    def _is_over(self) -> bool:
        """Whether nothing runs any more, but for what nothing ends."""
        return self._feed.idle.is_set() or self._feed.num_running <= len(self._watchdog.stuck)

    def _abandon_stuck(self) -> None:
        for guard in self._watchdog.stuck:
            if (settlement := abandon(self._broker, guard)) is not None:
                self._dispatcher.settle(settlement)
