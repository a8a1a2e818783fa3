"""How one delivery is run: before-hooks, body, after-hooks, settlement; for `def` and for `async def` bodies."""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import psycopg
from dramatiq import Actor
from dramatiq.errors import ActorNotFound, RateLimitExceeded, Retry
from dramatiq.middleware import Interrupt, MiddlewareError, SkipMessage, TimeLimitExceeded

from worker import clock, log, tracing
from worker.errors import Cancelled
from worker.pool import shield
from worker.queue.broker import PostgresBroker
from worker.queue.claim import Claim
from worker.queue.delivery import Delivery, describe
from worker.queue.dispatcher import Dispatcher
from worker.queue.settlement import Outcome, Settlement, storable
from worker.runtime.guard import Guard, ThreadGuard, clear_interrupt
from worker.runtime.hooks import Hooks
from worker.runtime.tally import Tally
from worker.runtime.watchdog import Watchdog

logger = log.get_logger(__name__)
# What that writes to; structlog makes an event of each call, also of one that nobody is to see.
_written = logging.getLogger(__name__)

_DEFAULT_LIMIT_MS = 600_000


class Ending(NamedTuple):
    """How a body ended."""

    result: Any = None
    error: BaseException | None = None


class Execution:
    """Runs deliveries, one call of `run` for each; any number of threads at once."""

    def __init__(
        self, broker: PostgresBroker, hooks: Hooks, watchdog: Watchdog, dispatcher: Dispatcher, tally: Tally
    ) -> None:
        self.watchdog = watchdog
        self._broker = broker
        self.hooks = hooks
        self._dispatcher = dispatcher
        self._tally = tally
        self._worker = str(dispatcher.lease.worker_id)

    def run(self, claim: Claim) -> None:
        """Run a claimed job of a plain `def` from its hooks to its settlement, on this thread."""
        if (delivery := self._broker.deliver(claim)) is None:
            return
        unbound = log.fields.set(partial(fields, claim))
        started = clock.monotonic()
        try:
            ending = self.prepare(delivery) or self._run_body(delivery)
            self.conclude(delivery, ending, started)
        except Exception as exc:
            self.give_up(claim, exc, delivery)
        finally:
            log.fields.reset(unbound)

    def give_up(self, claim: Claim, exc: Exception, delivery: Delivery | None = None) -> None:
        """An error of ours, not of the job: say so, and let it run again later rather than stay here for ever."""
        logger.critical("job.runner_failed", **fields(claim), exc_info=exc)
        if delivery is not None:
            delivery.end_trace(None, exc)
            with suppress(Exception):
                delivery.scope.close()
            if delivery.settled:
                self._dispatcher.forget(claim)
                return
        error = storable(f"the worker failed: {describe(exc)}")
        self._dispatcher.settle(Settlement(claim.id, claim.token, Outcome.RETRY, delay=60.0, error=error))

    def deliver(self, claim: Claim) -> Delivery | None:
        """What runs of *claim*; None when it cannot be read and is dead by now."""
        return self._broker.deliver(claim)

    def is_quick(self, delivery: Delivery) -> bool:
        """Whether what comes before its body, or behind it, waits for nothing: no database, no code of others."""
        return (
            self.hooks.are_quick(delivery)
            and not delivery.takes_connection
            and not delivery.pool.is_held_by(delivery.holder)
            and not tracing.is_on()  # whose exporter may send each span by itself
        )

    def prepare(self, delivery: Delivery) -> Ending | None:
        """The before-hooks; an ending when the body must not run."""
        delivery.begin_trace(self._worker)
        self._tally.started(delivery.claim)
        self.watchdog.hooks.enter(delivery, "before its body")
        try:
            self.hooks.before("process_message", delivery)
            if delivery.actor is None:
                raise ActorNotFound(delivery.claim.actor)
        except (MiddlewareError, ActorNotFound) as exc:
            return Ending(error=exc)
        finally:
            self.watchdog.hooks.leave(delivery)
        return Ending() if delivery.failed else None

    def conclude(self, delivery: Delivery, ending: Ending, started: float) -> None:
        """The after-hooks, then the settlement; *started* is monotonic."""
        self.watchdog.hooks.enter(delivery, "behind its body")
        try:
            self._conclude(delivery, ending, started)
        finally:
            self.watchdog.hooks.leave(delivery)

    def _conclude(self, delivery: Delivery, ending: Ending, started: float) -> None:
        delivery.collecting = True
        if isinstance(ending.error, SkipMessage):
            delivery.stuff_exception(ending.error)
            self.hooks.after("skip_message", delivery)
        elif ending.error is None:
            self.hooks.after("process_message", delivery, result=ending.result)
        else:
            self._conclude_failure(delivery, ending.error)
        self._settle(delivery, clock.monotonic() - started)
        # A kept exception keeps its frames, and they every local variable of the job.
        delivery.clear_exception()

    def _run_body(self, delivery: Delivery) -> Ending:
        """
        Call the actor; an interrupt can land anywhere between the watch and its end, and nowhere else.

        A body that had returned has succeeded, even if its time ran out just then.
        """
        actor = _actor(delivery)
        guard = ThreadGuard(delivery)
        ending: Ending | None = None
        unshielded = shield.set(guard.shielded)
        try:
            try:
                self.watchdog.watch(guard, time_limit(delivery), TimeLimitExceeded)
                ending = Ending(result=actor(*delivery.args, **delivery.kwargs))
            except BaseException as exc:
                ending = Ending(error=exc)
            _disarm(guard)
        except Interrupt as late:
            _disarm(guard)
            ending = ending or Ending(error=late)
        shield.reset(unshielded)
        self.watchdog.release(guard)
        return as_interrupted(ending, guard)

    def _conclude_failure(self, delivery: Delivery, error: BaseException) -> None:
        delivery.stuff_exception(error)
        if isinstance(error, Cancelled):
            # Retries would announce another run, which will not come.
            delivery.options["max_retries"] = 0
        try:
            # Retries formats the exception that is being handled.
            raise error
        except BaseException as exc:
            self.hooks.after("process_message", delivery, exception=exc)

    def _settle(self, delivery: Delivery, duration: float) -> None:
        # Without a settlement the outermost hook never ran: it is not known what became of the job.
        unknown = Settlement(delivery.claim.id, delivery.claim.token, Outcome.RELEASED, delay=0.5)
        settlement = delivery.settlement or unknown
        signal = "nack" if settlement.outcome is Outcome.DEAD else "ack"
        try:
            self.hooks.before(signal, delivery)
        except MiddlewareError:
            logger.warning("job.ack_vetoed", reason="a settled job cannot be kept by a hook")
        delivery.scope.close()
        if delivery.settled:
            self._dispatcher.forget(delivery.claim)
        else:
            self._dispatcher.settle_unawaited(settlement)
        self.hooks.after(signal, delivery)
        self._tally.ended(delivery.claim, settlement.outcome, duration)
        _report(delivery, settlement, duration)
        delivery.end_trace(settlement, delivery._exception)


def fields(claim: Claim) -> dict[str, Any]:
    """What every log line of a job carries."""
    return {"job_id": str(claim.id), "actor": claim.actor, "queue": claim.queue, "attempt": claim.attempt}


def time_limit(delivery: Delivery) -> float | None:
    """Seconds that the body may take, None when there is no limit; Dramatiq's option is in milliseconds."""
    limit_ms = delivery.options.get("time_limit") or _actor(delivery).options.get("time_limit", _DEFAULT_LIMIT_MS)
    return None if math.isinf(limit_ms) else limit_ms / 1000


def as_interrupted(ending: Ending, guard: Guard) -> Ending:
    """*ending* as the interrupt that caused it: the body may have met only the cancelled statement."""
    ending = _as_interrupted(ending, guard)
    error = ending.error
    if guard.reason is TimeLimitExceeded and isinstance(error, TimeLimitExceeded) and not error.args:
        error.args = (f"it ran longer than its timeout of {time_limit(guard.delivery):g} s",)
    return ending


def _as_interrupted(ending: Ending, guard: Guard) -> Ending:
    if guard.reason is None or ending.error is None or isinstance(ending.error, Interrupt):
        return ending
    if not isinstance(ending.error, psycopg.errors.QueryCanceled):
        return ending
    interrupt = guard.reason()
    interrupt.__cause__ = ending.error
    return Ending(error=interrupt)


def _disarm(guard: Guard) -> None:
    if not guard.disarm():
        guard.wait_complete()
        clear_interrupt()


def _actor(delivery: Delivery) -> Actor[..., Any]:
    if delivery.actor is None:
        raise ActorNotFound(delivery.claim.actor)
    return delivery.actor


def _report(delivery: Delivery, settlement: Settlement, duration: float) -> None:
    if delivery.lost:
        return  # said when it was found; what it would have been is nobody's business
    if settlement.outcome is Outcome.DONE:
        # Not shown by default: a line for each of thousands of jobs a second costs more than the jobs.
        if _written.isEnabledFor(logging.DEBUG):
            logger.debug("job.done", duration=round(duration, 6))
        return
    took = round(duration, 6)
    error = delivery._exception
    if settlement.outcome is Outcome.RETRY:
        logger.warning("job.retry", duration=took, delay=settlement.delay, error=repr(error), exc_info=_shown(error))
    elif settlement.outcome is Outcome.DEAD:
        logger.error("job.dead", duration=took, error=repr(error), exc_info=_shown(error))
    else:
        logger.info("job.released", duration=took, error=repr(error))


def _shown(error: BaseException | None) -> BaseException | None:
    """An exception that the job's author expects is told in one line, as Dramatiq does."""
    return None if isinstance(error, Retry | RateLimitExceeded | Interrupt) else error
