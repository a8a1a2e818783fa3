"""`run`: boot, run, drain, close."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from dramatiq.middleware import Shutdown

from worker import clock, log
from worker.config import Config
from worker.errors import ConfigError, LeaseLost, SchemaError
from worker.pool import Pool, PoolOptions, bind_pool, shield
from worker.queue.binding import bind
from worker.queue.broker import PostgresBroker, postgres_broker
from worker.queue.dispatcher import Dispatcher
from worker.queue.history import History
from worker.queue.identity import job_id
from worker.queue.lease import Lease, application_name
from worker.queue.schema import Schema
from worker.queue.settlement import Outcome, Settlement
from worker.queue.statements import HAS_WORK
from worker.runtime.answers import Answers
from worker.runtime.budget import Budget
from worker.runtime.execution import Execution
from worker.runtime.hooks import Hooks
from worker.runtime.job_loop import JobLoop
from worker.runtime.job_threads import JobThreads
from worker.runtime.modules import load
from worker.runtime.signals import Stop, stop_on_signals
from worker.runtime.slot_feed import SlotFeed
from worker.runtime.watchdog import Watchdog
from worker.schedule import Schedule, Scheduler, registered

logger = log.get_logger(__name__)

EXIT_OK = 0
# Something inside has died that nothing here can mend: start me again.
EXIT_INTERNAL = 70

# How often the main thread looks whether everybody lives.
_LOOK = 0.5
_CLAIM_UNDERWAY = 2.0
# What cut jobs get to let go, after their grace.
_CUT = 5.0
# Before the lease ends: a job that is cut must be over when others may take it.
_LEASE_MARGIN = 0.3


def run(config: Config) -> int:
    """
    Run jobs and schedules until a signal, or until the queue is empty if *config* says so.

    Returns:
        The process's exit code.

    Raises:
        ConfigError: A module, setting or broker cannot work.
        DatabaseUnavailable: The database is out of reach at boot.
        SchemaError: Its schema is not one that this worker serves.
    """
    log.configure(config.log_format, config.log_level, around=lambda: shield.get()())
    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        load(config.jobs)
        lease = _lease(config)
        pool = stack.enter_context(open_pool(config, lease))
        broker = stack.enter_context(serving(postgres_broker(), pool, config))
        check_declared(broker, config)
        feed = SlotFeed(broker, slots=config.job_slots, checkouts=config.checkouts, queues=config.queues)
        dispatcher = stack.enter_context(dispatching(broker, pool, lease, feed))
        answers = Answers(pool, broker.schema, lease.worker_id)
        dispatcher.answer = answers.write
        watchdog = stack.enter_context(Watchdog(pool))
        threads, loop = stack.enter_context(consuming(broker, feed, dispatcher, watchdog, stop, config))
        if not config.until_empty:
            stack.enter_context(ticking(dispatcher, broker))
        logger.info("worker.running", worker=str(lease.worker_id), slots=config.job_slots, queues=feed.queues)
        return supervise(stop, dispatcher, feed, watchdog, threads, loop, answers, config)


def _lease(config: Config) -> Lease:
    return Lease(
        Schema(config.schema),
        duration=config.lease,
        slots=config.job_slots,
        pool_size=config.pool_size,
        queues=config.queues,
    )


def check_declared(broker: PostgresBroker, config: Config) -> None:
    """Refuse to wait for ever for jobs that nobody here can run."""
    modules = ", ".join(config.jobs)
    if not broker.actors:
        raise ConfigError(f"jobs modules {modules}: no job is declared there: name others with --jobs or WORKER_JOBS")
    declared = sorted(broker.get_declared_queues())
    for queue in config.queues or ():
        if queue not in declared:
            close = difflib.get_close_matches(queue, declared, n=1)
            hint = f", did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"queue {queue!r}: no job of {modules} is on it{hint} (declared: {', '.join(declared)})")


@contextmanager
def open_pool(config: Config, lease: Lease) -> Iterator[Pool]:
    """The pool, one connection made and the schema looked at; closed last."""
    options = PoolOptions.from_config(config, application_name=application_name(lease.worker_id), min_size=0)
    pool = Pool.connect(options)
    try:
        with bind_pool(pool):
            with pool.connection() as conn:
                schema = Schema(config.schema)
                schema.check(conn)
                Budget.read(conn, schema).admit(config.pool_size)
            yield pool
    finally:
        pool.close(grace=1.0)


@contextmanager
def serving(broker: PostgresBroker, pool: Pool, config: Config) -> Iterator[PostgresBroker]:
    """The broker that the modules declared their jobs on, on this worker's pool and schema."""
    with broker.on(pool, Schema(config.schema)):
        yield broker


@contextmanager
def dispatching(broker: PostgresBroker, pool: Pool, lease: Lease, feed: SlotFeed) -> Iterator[Dispatcher]:
    """The dispatcher; its exit writes the last outcomes and takes the worker's row away."""
    dispatcher = Dispatcher(pool, broker.schema, lease, feed, history=History(broker.schema))
    broker.dispatcher = dispatcher
    try:
        with dispatcher:
            yield dispatcher
    finally:
        broker.dispatcher = None


@contextmanager
def consuming(
    broker: PostgresBroker, feed: SlotFeed, dispatcher: Dispatcher, watchdog: Watchdog, stop: Stop, config: Config
) -> Iterator[tuple[JobThreads, JobLoop]]:
    """The slots; the exit is the drain."""
    hooks = Hooks(broker)
    execution = Execution(broker, hooks, watchdog, dispatcher)
    hooks.after("process_boot")
    hooks.before("worker_boot", feed)
    threads = JobThreads(config.job_slots, execution, feed.finished, hooks)
    with threads, JobLoop(execution, feed.finished) as loop:
        hooks.after("worker_boot", feed)
        feed.connect(threads, loop, watchdog)
        dispatcher.wake()
        try:
            yield threads, loop
        finally:
            hooks.before("worker_shutdown", feed)
            drain(feed, dispatcher, threads, watchdog, stop, config.grace)
    hooks.after("worker_shutdown", feed)


def drain(
    feed: SlotFeed, dispatcher: Dispatcher, threads: JobThreads, watchdog: Watchdog, stop: Stop, grace: float
) -> None:
    """Claim nothing more, give back what waits, let running jobs finish within *grace*, cut the rest."""
    started = clock.monotonic()
    dispatcher.pause()
    with suppress(TimeoutError, CancelledError, psycopg.OperationalError):
        # A claim that was under way has been put before the slots when this returns, or its reply never comes.
        dispatcher.submit(lambda _: None).result(_CLAIM_UNDERWAY)
    for claim in threads.take_back():
        dispatcher.settle(Settlement(claim.id, claim.token, Outcome.RELEASED))
        feed.finished(claim)
    logger.info("worker.draining", running=feed.num_running, grace=grace)
    deadline = started + grace
    while not stop.hurry.is_set() and (left := deadline - clock.monotonic()) > 0:
        if feed.idle.wait(min(left, 0.1)):
            break
    if not feed.idle.is_set():
        logger.warning("worker.cutting", running=feed.num_running)
        watchdog.cut(Shutdown)
        feed.idle.wait(_CUT)
    logger.info("worker.drained", left=feed.num_running, duration=round(clock.monotonic() - started, 3))


@contextmanager
def ticking(dispatcher: Dispatcher, broker: PostgresBroker) -> Iterator[None]:
    """The schedules of the imported modules; closed first: no new work."""

    def enqueue(conn: psycopg.Connection[Any], schedule: Schedule, tick: datetime) -> UUID:
        with bind(conn):
            message = schedule.actor.send_with_options(schedule=schedule.name, scheduled_for=tick.isoformat())
        return job_id(message.message_id)

    with Scheduler(registered(), submit=dispatcher.submit, enqueue=enqueue, schema=broker.schema):
        yield


def supervise(
    stop: Stop,
    dispatcher: Dispatcher,
    feed: SlotFeed,
    watchdog: Watchdog,
    threads: JobThreads,
    loop: JobLoop,
    answers: Answers,
    config: Config,
) -> int:
    """Wait for the end, and look every half second whether everybody lives; returns the exit code."""
    while not stop.asked.wait(_LOOK):
        if stop.report.is_set():
            stop.report.clear()
            answers.log()
        if dispatcher.failure is not None:
            if isinstance(dispatcher.failure, SchemaError):
                raise dispatcher.failure
            return EXIT_INTERNAL
        internals = {"dispatcher": dispatcher.is_alive, "watchdog": watchdog.is_alive, "job-loop": loop.is_alive}
        if dead := threads.dead + [name for name, lives in internals.items() if not lives]:
            logger.critical("worker.thread_died", threads=dead)
            return EXIT_INTERNAL
        if dispatcher.lease.remaining < config.lease * _LEASE_MARGIN and not feed.idle.is_set():
            logger.error("worker.lease_ending", remaining=round(dispatcher.lease.remaining, 3))
            watchdog.interrupt_all(LeaseLost)
        if config.until_empty and feed.idle.is_set() and _is_empty(dispatcher, feed):
            logger.info("worker.empty")
            return EXIT_OK
    return EXIT_OK


def _is_empty(dispatcher: Dispatcher, feed: SlotFeed) -> bool:
    """Whether no job of ours is due or running, anywhere; what is scheduled for later stays."""

    def look(conn: psycopg.Connection[Any]) -> bool:
        row = conn.execute(
            dispatcher.schema.render(HAS_WORK).encode(), {"queues": feed.queues, "actors": feed.actors}
        ).fetchone()
        return row is not None and not row[0]

    try:
        return dispatcher.submit(look).result(timeout=10.0)
    except (TimeoutError, psycopg.OperationalError) as exc:
        logger.warning("worker.empty_unknown", reason=str(exc))
        return False
