"""`run`: boot, run, drain, close."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from uuid import UUID

from worker import clock, exits, log
from worker.config import Config
from worker.errors import ConfigError
from worker.observe import HttpServer, ServiceManager
from worker.pool import Pool, PoolOptions, bind_pool, shield
from worker.queue.broker import PostgresBroker, postgres_broker
from worker.queue.dispatcher import Dispatcher
from worker.queue.history import History
from worker.queue.lease import Lease, application_name
from worker.queue.schema import Schema
from worker.runtime.answers import Answers
from worker.runtime.budget import Budget
from worker.runtime.drain import Drain
from worker.runtime.execution import Execution
from worker.runtime.health import Health
from worker.runtime.hooks import Hooks
from worker.runtime.job_loop import JobLoop
from worker.runtime.job_threads import JobThreads
from worker.runtime.loop_watch import LoopWatch
from worker.runtime.modules import load
from worker.runtime.parent import Parent
from worker.runtime.reload import Reload, reexecute, say_goodbye
from worker.runtime.replacement import Replacement
from worker.runtime.signals import Stop, StoppedEarly, hold, stop_on_signals
from worker.runtime.slot_feed import SlotFeed
from worker.runtime.supervision import RELOAD, Supervision
from worker.runtime.tally import Tally
from worker.runtime.vitals import Stage, Vitals, dead_unless
from worker.runtime.watchdog import Watchdog
from worker.runtime.wear import Wear
from worker.schedule import Scheduler, registered

logger = log.get_logger(__name__)

# The dispatcher's statements and attempts to connect have timeouts, which are far below this.
_STUCK = 60.0


def run(config: Config, *, reload: Reload | None = None, parent: Parent | None = None) -> int:
    """
    Run jobs and schedules until a signal, or until the queue is empty if *config* says so.

    Args:
        reload: What SIGHUP makes of this process, after it has drained; None refuses it.
        parent: The supervisor, when this is one of its processes.

    Returns:
        The process's exit code.

    Raises:
        ConfigError: A module, setting or broker cannot work.
        DatabaseUnavailable: The database is out of reach at boot.
        SchemaError: Its schema is not one that this worker serves.
    """
    reload = reload or Reload(refusal="its supervisor does that: ask it")
    every = {"process": parent.number} if parent is not None else None
    log.configure(config.log_format, config.log_level, around=lambda: shield.get()(), every=every)
    with log.uncaught_in_threads(), stop_on_signals() as stop:
        try:
            if parent is not None:
                parent.hello()
            code = _run(config, stop, reload, parent)
        except StoppedEarly:
            code = exits.OK
        if code == RELOAD and reload.command is not None:
            _go_over(reload.command, stop)
            code = exits.OK
        took = {} if stop.asked_at is None else {"seconds": round(clock.monotonic() - stop.asked_at, 3)}
        logger.info("worker.stopped", code=code, **took)
        return code


def _go_over(command: Sequence[str], stop: Stop) -> None:
    """Become *command*, unless somebody wants the process to end by now."""
    say_goodbye()
    hold()
    if not stop.asked:
        logger.info("reload.executing")
        reexecute(command)


def _run(config: Config, stop: Stop, reload: Reload, parent: Parent | None) -> int:
    vitals = Vitals(ServiceManager(os.environ) if parent is None else parent)
    with ExitStack() as stack:
        with stop.raising():
            load(config.jobs)
            lease = _lease(config)
            if parent is not None:
                parent.is_worker(lease.worker_id)
            pool = stack.enter_context(open_pool(config, lease))
        broker = stack.enter_context(serving(postgres_broker(), pool, config))
        check_declared(broker, config)
        parts = stack.enter_context(working(broker, pool, lease, stop, vitals, config, reload, parent))
        if not config.until_empty:
            stack.enter_context(ticking(parts, broker, config))
        vitals.enter(Stage.RUNNING)
        logger.info("worker.running", worker=str(lease.worker_id), slots=config.job_slots, queues=parts.feed.queues)
        return parts.supervision.run()


def rehearse(config: Config) -> PostgresBroker:
    """
    What a boot does before it needs the database: import the modules, and look whether they can be served.

    Raises:
        ConfigError: A module, setting or broker cannot work.
    """
    load(config.jobs)
    broker = postgres_broker()
    check_declared(broker, config)
    return broker


def _lease(config: Config) -> Lease:
    return Lease(
        Schema(config.schema),
        duration=config.lease,
        slots=config.job_slots,
        pool_size=config.pool_size,
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
                Budget.read(conn, schema).admit(config.pool_size, whole=config.budget)
            yield pool
    finally:
        pool.close(grace=1.0)


@contextmanager
def serving(broker: PostgresBroker, pool: Pool, config: Config) -> Iterator[PostgresBroker]:
    """The broker that the modules declared their jobs on, on this worker's pool and schema."""
    with broker.on(pool, Schema(config.schema)):
        yield broker


@dataclass(frozen=True)
class Parts:
    """What a worker consists of while it works."""

    dispatcher: Dispatcher
    feed: SlotFeed
    threads: JobThreads
    health: Health
    supervision: Supervision
    tally: Tally
    vitals: Vitals


@contextmanager
def working(
    broker: PostgresBroker,
    pool: Pool,
    lease: Lease,
    stop: Stop,
    vitals: Vitals,
    config: Config,
    reload: Reload | None = None,
    parent: Parent | None = None,
) -> Iterator[Parts]:
    """Everything that runs jobs, in order of dependence; the exit is the drain, then the writing of what is left."""
    feed = SlotFeed(broker, slots=config.job_slots, checkouts=config.checkouts, queues=config.queues)
    with ExitStack() as stack:
        dispatcher = stack.enter_context(dispatching(broker, pool, lease, feed, config))
        wear = Wear(config.max_jobs, config.max_memory, full=dispatcher.pause)
        tally = Tally(begin=wear.begin)
        health = Health(vitals, pool, dispatcher, feed, tally)
        if config.http is not None:
            stack.enter_context(HttpServer(config.http, health.pages()))
        if parent is not None:
            stack.enter_context(answering(parent, health, dispatcher, lease))
        answers = Answers(pool, broker.schema, lease.worker_id)
        dispatcher.answer = answers.write
        watchdog = stack.enter_context(Watchdog(pool, stuck=config.stuck))
        watchdog.replace = Replacement(feed, tally)
        stack.enter_context(
            vitals.watching(dispatcher=lambda: _trouble(dispatcher), watchdog=dead_unless(lambda: watchdog.is_alive))
        )
        execution = Execution(broker, Hooks(broker), watchdog, dispatcher, tally)
        drain = Drain(broker, stop, vitals, dispatcher, feed, watchdog, grace=config.grace)
        threads, loop = stack.enter_context(consuming(feed, execution, drain, config.job_slots))
        stack.enter_context(
            vitals.watching(
                job_threads=lambda: f"{', '.join(threads.dead)} ended" if threads.dead else None,
                job_loop=dead_unless(lambda: loop.is_alive),
            )
        )
        reload = reload or Reload()
        stack.callback(reload.close)
        supervision = Supervision(stop, vitals, dispatcher, feed, watchdog, LoopWatch(loop, feed), config, wear, reload)
        supervision.answer(answers)
        yield Parts(dispatcher, feed, threads, health, supervision, tally, vitals)


@contextmanager
def answering(parent: Parent, health: Health, dispatcher: Dispatcher, lease: Lease) -> Iterator[None]:
    """What the supervisor may ask for; at the end, after the drain, it is told the last numbers."""

    def bury(worker_id: str, how: str) -> Future[int]:
        return dispatcher.submit(lambda conn: lease.bury(conn, UUID(worker_id), how))

    parent.answer(health=health.told, families=lambda: [each.telling() for each in health.families()], bury=bury)
    try:
        yield
    finally:
        parent.counted([each.telling() for each in health.growing()])


def _trouble(dispatcher: Dispatcher) -> str | None:
    if not dispatcher.is_alive:
        return f"its thread has ended: {dispatcher.failure!r}"
    silence = clock.monotonic() - dispatcher.passed_at
    return f"no pass for {silence:.0f} s" if silence > _STUCK else None


@contextmanager
def dispatching(
    broker: PostgresBroker, pool: Pool, lease: Lease, feed: SlotFeed, config: Config
) -> Iterator[Dispatcher]:
    """The dispatcher; its exit writes the last outcomes and takes the worker's row away."""
    history = History(broker.schema, keep=config.history_days)
    dispatcher = Dispatcher(pool, broker.schema, lease, feed, history=history)
    broker.dispatcher = dispatcher
    try:
        with dispatcher:
            yield dispatcher
    finally:
        broker.dispatcher = None


@contextmanager
def consuming(feed: SlotFeed, execution: Execution, drain: Drain, slots: int) -> Iterator[tuple[JobThreads, JobLoop]]:
    """The slots; the exit is the drain."""
    hooks = execution.hooks
    hooks.after("process_boot")
    hooks.before("worker_boot", feed)
    threads = JobThreads(slots, execution, feed.finished, hooks)
    with threads, JobLoop(execution, feed.finished) as loop:
        hooks.after("worker_boot", feed)
        feed.connect(threads, loop, execution.watchdog)
        try:
            yield threads, loop
        finally:
            hooks.before("worker_shutdown", feed)
            drain.run(threads, loop)
    hooks.after("worker_shutdown", feed)


@contextmanager
def ticking(parts: Parts, broker: PostgresBroker, config: Config) -> Iterator[None]:
    """The schedules of the imported modules and those in the database; closed first: no new work."""
    scheduler = Scheduler(
        registered(),
        submit=parts.dispatcher.submit,
        submit_statement=parts.dispatcher.submit_statement,
        schema=broker.schema,
        modules=config.jobs,
        actors=broker.actors.get,
        keep=config.tick_days * 86400.0,
        decided=parts.tally.decided,
    )
    parts.dispatcher.on_schedules = scheduler.catch_up
    with scheduler, parts.vitals.watching(**{"schedule-timer": dead_unless(lambda: scheduler.is_alive)}):
        yield
