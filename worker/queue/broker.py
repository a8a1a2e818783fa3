"""A complete Dramatiq broker on Postgres."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar

import dramatiq.broker
import psycopg
import psycopg_pool
from dramatiq import Actor, Broker, Consumer, Message, Middleware, middleware
from dramatiq.common import current_millis, q_name
from dramatiq.errors import BrokerConnectionError, QueueJoinTimeout, QueueNotFound
from dramatiq.middleware import GroupCallbacks, default_middleware
from dramatiq.results import Results

from worker import log, tracing
from worker.errors import ArgumentError, ConfigError
from worker.pool import Pool, PoolOptions, get_lender, get_lender_async, get_pool, shield
from worker.queue.actor import Job
from worker.queue.backends import PostgresGroups, PostgresResults
from worker.queue.binding import bound_connection
from worker.queue.claim import Claim
from worker.queue.consumer import ConsumerFeed
from worker.queue.delivery import Delivery, current, describe
from worker.queue.dispatcher import Dispatcher
from worker.queue.enqueue import encode
from worker.queue.following import Callbacks, Pipelines
from worker.queue.history import History
from worker.queue.insertion import Standing
from worker.queue.lease import Lease, application_name
from worker.queue.new_job import NewJob
from worker.queue.retries import Retries
from worker.queue.schema import Schema
from worker.queue.send_options import check_delay
from worker.queue.sending import wait_for, write, write_async
from worker.queue.sent import Sent
from worker.queue.settlement import Outcome, Settlement, storable
from worker.queue.statements import FLUSH_QUEUES, HAS_JOBS
from worker.queue.transaction import Transaction
from worker.settings import Settings

logger = log.get_logger(__name__)

T = TypeVar("T")

_OURS: dict[type[Middleware], type[Middleware]] = {
    middleware.Callbacks: Callbacks,
    middleware.Pipelines: Pipelines,
    middleware.Retries: Retries,
}
_JOIN_INTERVAL = 0.02
_STATES = ["available", "held", "throttled", "scheduled", "running"]


class PostgresBroker(Broker):
    """
    A Dramatiq broker whose queue is a table of your Postgres.

    Making one connects to nothing: the pool is opened by the first send or consume.

    Args:
        url: A libpq connection string for a pool of its own; the process's pool, `worker.get_pool()`, when None.
        pool: An open pool to use instead.
        schema: The schema that holds the tables; `WORKER_SCHEMA` or "worker" when None.
        max_args: The most bytes that the encoded arguments of a job may have; `WORKER_MAX_ARGS` or 1 MiB when None.
        middleware: When None, Dramatiq's default list, and results and groups on Postgres, so that
            `store_results=True` is all they need. The job transactions come first in any case.
        lease: Seconds without a heartbeat until other workers may rescue the jobs of a process.

    Raises:
        ConfigError: A value cannot work.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        pool: Pool | None = None,
        schema: str | None = None,
        middleware: list[Middleware] | None = None,
        lease: float = 10.0,
        max_args: int | None = None,
    ) -> None:
        _check(url, pool, schema, lease, max_args)
        # First of the list: its before-hooks come first and its after-hooks last.
        self._ours: list[Middleware] = []
        ours = [Results(backend=PostgresResults(self)), PostgresGroups(self)] if middleware is None else []
        rest = _default_middleware() if middleware is None else middleware
        self._url = url
        self._pool = pool
        self._lease_duration = lease
        self._max_args = max_args
        self._opening = threading.RLock()
        self._open = ExitStack()
        self._hearing: tuple[list[Middleware], dict[str, bool]] = ([], {})
        self._feed: ConsumerFeed | None = None
        self.dispatcher: Dispatcher | None = None
        self._schema = None if schema is None else Schema(schema)
        super().__init__([Transaction(), *rest, *ours])
        self._ours = ours
        self.queues: set[str] = set()

    @property
    def pool(self) -> Pool:
        """The pool of this broker, opened by the first use."""
        if self._pool is not None:
            return self._pool
        if self._url is None:
            return get_pool()
        with self._opening:
            if self._pool is None:
                self._pool = Pool.connect(PoolOptions(conninfo=self._url, min_size=0))
                self._open.callback(self._pool.close)
            return self._pool

    @property
    def lender(self) -> psycopg_pool.ConnectionPool[Any]:
        """What sends borrow from; other than `pool` only when the application has bound a pool of its own."""
        return get_lender() if self._pool is None and self._url is None else self.pool

    async def lender_async(self) -> psycopg_pool.ConnectionPool[Any]:
        """`lender` for coroutines: the loop goes on while it is opened."""
        if self._pool is not None:
            return self._pool
        return await get_lender_async() if self._url is None else await asyncio.to_thread(lambda: self.pool)

    @property
    def schema(self) -> Schema:
        """The schema that holds the tables: the one given, or the process's setting, read when first needed."""
        if self._schema is None:
            self._schema = Schema(Settings.read(os.environ).config.schema)
        return self._schema

    @property
    def max_args(self) -> int:
        """The most bytes that the encoded arguments of a job may have: as given, or the process's setting."""
        if self._max_args is None:
            self._max_args = Settings.read(os.environ).config.max_args
        return self._max_args

    @contextmanager
    def on(self, pool: Pool | None, schema: Schema) -> Iterator[None]:
        """Work on *pool* and *schema* while the block lasts, whatever the broker was made for; a worker does."""
        before = self._pool, self._schema
        self._pool, self._schema = pool, schema
        try:
            yield
        finally:
            self._pool, self._schema = before

    @property
    def has_lanes(self) -> bool:
        """Whether one of its actors has a limit."""
        return any(getattr(actor, "limit", None) is not None for actor in list(self.actors.values()))

    @property
    def has_rates(self) -> bool:
        """Whether one of its actors has a rate."""
        return any(getattr(actor, "rate", None) is not None for actor in list(self.actors.values()))

    # Declaring

    def declare_actor(self, actor: Actor[..., Any]) -> None:
        """
        Declare an actor, and make the jobs sent under its former names its own.

        Raises:
            ConfigError: Another actor has one of those names, or shares a limit or a rate with other numbers.
        """
        former_names = getattr(actor, "former_names", ())
        for name in [actor.actor_name, *former_names]:
            if (other := self.actors.get(name)) is not None and other is not actor:
                raise ConfigError(f"job {actor.actor_name!r}: {name!r} is a name of job {other.actor_name!r} already")
        if isinstance(actor, Job) and actor.is_limited:
            for other in set(self.actors.values()):
                if isinstance(other, Job):
                    actor.check_beside(other)
        super().declare_actor(actor)
        self.actors.update(dict.fromkeys(former_names, actor))

    def declare_queue(self, queue_name: str) -> None:
        """Declare a queue; again is harmless. No I/O: a queue is a name on a row."""
        if queue_name in self.queues:
            return
        self.emit_before("declare_queue", queue_name)
        self.queues.add(queue_name)
        # No delay queue: a delayed job waits in the table until it is due.
        self.emit_after("declare_queue", queue_name)

    def get_declared_queues(self) -> set[str]:
        return set(self.queues)

    # Enqueueing

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """
        Enqueue *message*, in the transaction it belongs to if there is one.

        That is the one bound by `worker.bind` or of the running job; without any it is durable on return. Sending a
        message again under its own id replaces the job.

        Args:
            delay: Milliseconds until it is due.

        Raises:
            QueueNotFound: Nobody declared its queue.
            ArgumentError: Its arguments do not fit the job, or the delay is no number of milliseconds from 0 on.
            BrokerConnectionError: The database is out of reach; whether the job exists is not known.
        """
        if isinstance(message, Delivery) and message.settled:
            # Dramatiq's Worker calls the hooks again when it was interrupted in them: what is committed is not retried.
            return message
        [sent] = self._enqueue([message], delay, batch=False)
        return sent

    def enqueue_many(self, messages: Sequence[Message[Any]], *, delay: int | None = None) -> list[Message[Any]]:
        """
        `enqueue` for many: all or none, in one transaction.

        Returns:
            Them in order; of one that an existing job stands for, as its unique key says, a `Sent` with that job's id.
        """
        return self._enqueue(messages, delay, batch=True)

    def _enqueue(self, messages: Sequence[Message[Any]], delay: int | None, *, batch: bool) -> list[Message[Any]]:
        prepared = [self._prepare(message, delay) for message in messages]
        bound = bound_connection()
        if messages and bound is not None and not isinstance(bound, psycopg.Connection):
            raise ArgumentError(
                f"job {messages[0].actor_name!r}: a send under a bound psycopg.AsyncConnection would block its event"
                " loop: use `await send_async(...)`, or one of its kin"
            )
        # A retry is no new message, and keeps the context of its send.
        is_retry = len(messages) == 1 and isinstance(messages[0], Delivery)
        with nullcontext(prepared) if is_retry else _sending(prepared, batch=batch) as traced:
            delivery = current.get()
            if delivery is not None and delivery.collecting:
                return self._collected(delivery, traced, delay)
            jobs = self._encode_all(traced, delay)
            return self._enqueued(traced, delay, jobs, write(self, jobs) if jobs else {})

    async def enqueue_async(
        self, messages: Sequence[Message[Any]], *, delay: int | None = None, batch: bool = True
    ) -> list[Message[Any]]:
        """`enqueue_many` for coroutines: the loop goes on meanwhile. What is no *batch* is a single send's."""
        prepared = [self._prepare(message, delay) for message in messages]
        with _sending(prepared, batch=batch) as traced:
            jobs = self._encode_all(traced, delay)
            return self._enqueued(traced, delay, jobs, await write_async(self, jobs) if jobs else {})

    def _prepare(self, message: Message[Any], delay: int | None) -> Message[Any]:
        if delay is not None:
            check_delay(message.actor_name, delay)
            message = message.copy(options={"eta": current_millis() + delay})
        # Another broker's delayed message may name its delay queue; here it has none.
        if message.queue_name not in self.queues and q_name(message.queue_name) not in self.queues:
            raise QueueNotFound(
                f"queue {q_name(message.queue_name)!r}: no job of this process is on it: declare one with"
                f" queue=, or import its module (declared: {', '.join(sorted(self.queues)) or 'none'})"
            )
        return message

    def _encode_all(self, messages: Sequence[Message[Any]], delay: int | None) -> list[NewJob]:
        """Every row, before anything is written."""
        jobs = []
        is_heard, actors, max_size = self._is_heard("before_enqueue"), self.actors, self.max_args
        for index, message in enumerate(messages):
            if is_heard:
                self.emit_before("enqueue", message, delay)
            try:
                jobs.append(encode(message, delay, actors.get(message.actor_name), max_size=max_size))
            except ArgumentError as exc:
                if len(messages) == 1:
                    raise
                raise ArgumentError(f"send_many(), item {index}: {exc}") from None
        if len({new.id for new in jobs}) < len(jobs):
            raise ArgumentError(f"send_many(): of {len(jobs)} messages some are the same: send each once")
        return jobs

    def _enqueued(
        self, messages: Sequence[Message[Any]], delay: int | None, jobs: Sequence[NewJob], standing: Standing
    ) -> list[Message[Any]]:
        if not standing and not self._is_heard("after_enqueue"):
            return [*messages]
        enqueued = []
        for message, new in zip(messages, jobs, strict=True):
            existing = standing.get(new.id)
            if existing is None:
                self.emit_after("enqueue", message, delay)
            enqueued.append(message if existing is None else Sent.of(message, existing=str(existing)))
        return enqueued

    def encode(self, message: Message[Any] | Delivery, delay: int | None) -> NewJob:
        """The row of *message*."""
        actor = self.actors.get(message.actor_name)
        return encode(message, delay, actor, max_size=self.max_args)  # type: ignore[arg-type]  # a proxy is a message

    def keep_house(self) -> None:
        """Have the dispatcher make the history's partitions now: a commit has found none for its day."""
        if self.dispatcher is not None:
            self.dispatcher.keep_house()

    def _collected(self, delivery: Delivery, messages: Sequence[Message[Any]], delay: int | None) -> list[Message[Any]]:
        for message in messages:
            self.emit_before("enqueue", message, delay)
            self._collect(delivery, message, delay)
            self.emit_after("enqueue", message, delay)
        return [*messages]

    def _collect(self, delivery: Delivery, message: Message[Any], delay: int | None) -> None:
        try:
            delivery.collect(self.encode(message, delay))
        except Exception as exc:
            # Swallowed and logged by whoever emits the hook: the settlement must know that a next step is missing.
            delivery.broken = exc
            raise

    def execute(self, work: Callable[[psycopg.Connection[Any]], T]) -> T:
        """
        Run *work*, which must be short, in a transaction of its own: in a worker on the reserved connection.

        Raises:
            BrokerConnectionError: The database is out of reach; whether it was done is not known.
        """
        with _reaching_the_database():
            if self.dispatcher is not None:
                with shield.get()():
                    return wait_for(self.dispatcher.submit(work))
            with self.pool.connection() as conn:
                return work(conn)

    def add_middleware(self, middleware: Middleware, **place: Any) -> None:
        """Add a middleware; results or groups on another backend take the place of ours, or both would count."""
        for kind in (Results, GroupCallbacks):
            if isinstance(middleware, kind):
                self.middleware = [m for m in self.middleware if m not in self._ours or not isinstance(m, kind)]
        super().add_middleware(middleware, **place)

    # Hooks

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        if signal == "worker_shutdown" and self._feed is not None:
            self._feed.drain()
        if signal == "process_message" and isinstance(args[0], Delivery):
            args[0].begin_trace()
        if self._is_heard("before_" + signal):
            super().emit_before(signal, *args, **kwargs)

    def emit_after(self, signal: str, *args: Any, **kwargs: Any) -> None:
        if signal in ("process_message", "skip_message") and isinstance(args[0], Delivery):
            # From here on every enqueue follows from the outcome and is written with it.
            args[0].collecting = True
        if self._is_heard("after_" + signal):
            super().emit_after(signal, *args, **kwargs)
        if signal in ("process_message", "skip_message") and isinstance(args[0], Delivery):
            args[0].end_trace(args[0].settlement, kwargs.get("exception"))

    def _is_heard(self, hook: str) -> bool:
        """Whether any middleware has it; the empty ones of the base class were a tenth of a bulk's time."""
        listened, heard = self._hearing
        if listened != self.middleware:
            listened, heard = self._hearing = ([*self.middleware], {})
        if hook not in heard:
            heard[hook] = any(overrides(one, hook) for one in listened)
        return heard[hook]

    # Consuming, by Dramatiq's own Worker

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30000) -> Consumer:
        """
        A consumer of *queue_name*; all of a process share one dispatcher and its connection.

        Raises:
            QueueNotFound: Nobody declared it.
            BrokerConnectionError: The database is out of reach.
        """
        if queue_name not in self.queues:
            raise QueueNotFound(queue_name)
        with _reaching_the_database(), self._opening:
            if self._feed is not None and self._feed.dispatcher.failure is not None:
                self._feed.dispatcher.stop()
                self._feed = None
            feed = self._feed or self._start_consuming()
        return feed.join(queue_name, prefetch, timeout)

    def _start_consuming(self) -> ConsumerFeed:
        feed = ConsumerFeed(self.get_declared_actors, self.deliver, lambda: self.has_lanes, lambda: self.has_rates)
        pool = self.pool
        lease = Lease(self.schema, duration=self._lease_duration, slots=0, pool_size=pool.max_size)
        history = History(self.schema, keep=Settings.read(os.environ).config.history_days)
        feed.dispatcher = Dispatcher(pool, self.schema, lease, feed, history=history)
        self.dispatcher = self._open.enter_context(feed.dispatcher)
        logger.info("broker.consuming", worker=application_name(lease.worker_id))
        self._feed = feed
        return feed

    def deliver(self, claim: Claim) -> Delivery | None:
        """What runs of a claimed job; None for one that cannot be read, which is dead by then."""
        try:
            return Delivery(claim, claim.decode(), self.actors.get(claim.actor), self.pool)
        except Exception as exc:
            logger.exception("job.unreadable", job_id=str(claim.id), actor=claim.actor)
            if self.dispatcher is not None:
                error = storable(f"unreadable: {describe(exc)}")
                self.dispatcher.settle(Settlement(claim.id, claim.token, Outcome.DEAD, error=error))
            return None

    # For tests

    def flush(self, queue_name: str) -> None:
        """Delete every job of *queue_name*, running ones included."""
        self._flush([queue_name])

    def flush_all(self) -> None:
        """Delete every job of every declared queue."""
        self._flush(sorted(self.queues))

    def _flush(self, queues: Sequence[str]) -> None:
        with _reaching_the_database(), self.pool.connection() as conn:
            conn.execute(self.schema.render(FLUSH_QUEUES).encode(), {"queues": list(queues)})

    def join(self, queue_name: str, *, timeout: int | None = None) -> None:
        """
        Wait until *queue_name* holds no job, neither waiting nor running nor scheduled.

        Args:
            timeout: Milliseconds; for ever when None.

        Raises:
            QueueNotFound: Nobody declared it.
            QueueJoinTimeout: Jobs were left after *timeout*.
            BrokerConnectionError: The database is out of reach.
        """
        if queue_name not in self.queues:
            raise QueueNotFound(queue_name)
        deadline = None if timeout is None else time.monotonic() + timeout / 1000
        while self.has_jobs([queue_name]):
            if deadline is not None and time.monotonic() >= deadline:
                raise QueueJoinTimeout(queue_name)
            time.sleep(_JOIN_INTERVAL)

    def has_jobs(self, queues: Sequence[str], states: Sequence[str] = _STATES) -> bool:
        """Whether any of *queues* holds a job in one of *states*."""
        with _reaching_the_database(), self.pool.connection() as conn:
            parameters = {"queues": list(queues), "states": list(states)}
            row = conn.execute(self.schema.render(HAS_JOBS).encode(), parameters).fetchone()
        return row is not None and bool(row[0])

    def close(self) -> None:
        """Stop consuming and close the pool if it is this broker's own; a second call does nothing."""
        self._open.close()
        self._feed = self.dispatcher = None


def _check(url: object, pool: object, schema: object, lease: object, max_args: object) -> None:
    """Refuse what only the first send would meet otherwise; what stands in a connection string, it meets."""
    if not isinstance(url, str | None):  # which may hold a password, whatever it is
        raise ConfigError(f"PostgresBroker(url) of type {type(url).__name__}: expected a connection string, or None")
    wrong = [
        ("pool", pool, isinstance(pool, Pool | None), "a worker.Pool, or None, and one of psycopg_pool by bind_pool()"),
        ("schema", schema, isinstance(schema, str | None), "the name of a schema, or None"),
        (
            "lease",
            lease,
            isinstance(lease, int | float) and 0 < lease < float("inf"),
            "a number of seconds, more than 0",
        ),
        ("max_args", max_args, max_args is None or (isinstance(max_args, int) and max_args > 0), "a number of bytes"),
    ]
    for name, value, is_right, expected in wrong:
        if not is_right:
            raise ConfigError(f"PostgresBroker({name}={value!r}): expected {expected}")


def ensure_broker() -> None:
    """Make a lazy PostgresBroker Dramatiq's global one, if none is set; `import worker` does it."""
    if dramatiq.broker.global_broker is None:
        dramatiq.broker.set_broker(PostgresBroker())


def postgres_broker() -> PostgresBroker:
    """
    Dramatiq's global broker, when it is one of ours.

    Raises:
        ConfigError: Another broker was set.
    """
    broker = dramatiq.broker.get_broker()
    if not isinstance(broker, PostgresBroker):
        raise ConfigError(f"Dramatiq's broker is a {type(broker).__name__}: worker run needs a worker.PostgresBroker")
    return broker


def overrides(middleware: Middleware, hook: str) -> bool:
    """Whether *middleware* does something at *hook*, by its name in Dramatiq."""
    theirs = getattr(middleware, hook, None)
    return theirs is not None and getattr(theirs, "__func__", None) is not getattr(Middleware, hook, None)


def _default_middleware() -> list[Middleware]:
    """Dramatiq's own, but with our kinds of some of them."""
    return [_OURS.get(make, make)() for make in default_middleware]


def _sending(messages: list[Message[Any]], *, batch: bool) -> AbstractContextManager[Sequence[Message[Any]]]:
    return tracing.sending(messages, with_context, batch=batch)


def with_context(message: Message[Any], context: dict[str, str]) -> Message[Any]:
    """A copy of *message* that was created in *context*, as the propagator has written it."""
    return message.copy(options={tracing.OPTION: context})


@contextmanager
def _reaching_the_database() -> Iterator[None]:
    try:
        yield
    except psycopg.OperationalError as exc:
        raise BrokerConnectionError(str(exc)) from exc
