"""`@job`: Dramatiq's actor, with injected parameters and typed arguments."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload
from uuid import UUID

import dramatiq
import psycopg
from dramatiq import Actor, Message

from worker.errors import ArgumentError, ConfigError
from worker.pool import Pool
from worker.queue import keys
from worker.queue.binding import AnyConnection, bind, check_connection
from worker.queue.context import Context
from worker.queue.declaration import by_dramatiqs_names, check_kinds, check_values, with_names
from worker.queue.delivery import current
from worker.queue.identity import uuid7, uuid7s
from worker.queue.limit import Limit
from worker.queue.rate import Rate
from worker.queue.send_options import check_delay, check_numbers, milliseconds, prepare, read_unique
from worker.queue.sent import Sent
from worker.queue.signature import Signature
from worker.queue.unique import Unique

P = ParamSpec("P")
R = TypeVar("R")
# What may stand before the arguments of a send. One name for each place, because each is solved by itself.
A = TypeVar("A", psycopg.Connection[Any], psycopg.AsyncConnection[Any], Pool, Context)
B = TypeVar("B", psycopg.Connection[Any], psycopg.AsyncConnection[Any], Pool, Context)
C = TypeVar("C", psycopg.Connection[Any], psycopg.AsyncConnection[Any], Pool, Context)

# Understood by parts that declare no options of actors, or only at the send.
_OF_MIDDLEWARE = {"on_success", "on_failure", "on_retry_exhausted", "max_age", "time_limit"}


class Job(Actor[P, R]):
    """
    An actor whose leading parameters are injected and whose arguments are checked when it is sent.

    Called directly it is the plain function, injected parameters included: `charge(conn, 42)` needs no worker.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        actor_name: str,
        limit: Limit | None = None,
        rate: Rate | None = None,
        unique: Unique | bool | None = None,
        aliases: Mapping[str, str] | None = None,
        former_names: Sequence[str] = (),
        **rest: Any,
    ) -> None:
        self.signature = Signature.read(fn, actor_name, aliases=aliases)
        self.limit = limit
        if limit is not None:
            limit.check(actor_name, self.signature.parameters)
        self.rate = rate
        if rate is not None:
            rate.check(actor_name, self.signature.parameters, limit)
        check_numbers(actor_name, rest.get("options", {}))
        self.body = fn
        self.unique = read_unique(actor_name, unique)
        self.former_names = tuple(former_names)
        if self.unique is not None:
            self.signature.check_names(self.unique.by or ())
        super().__init__(fn, actor_name=actor_name, **rest)

    def check_beside(self, other: Job[..., Any]) -> None:
        """
        Refuse a limit or a rate that it shares with *other*, but with other numbers.

        Raises:
            ConfigError: Names both jobs and both numbers.
        """
        if self.limit is not None and other.limit is not None:
            keys.check_shared("limit", self.actor_name, self.limit, other.actor_name, other.limit)
        if self.rate is not None and other.rate is not None:
            keys.check_shared("rate", self.actor_name, self.rate, other.actor_name, other.rate)

    @property
    def is_limited(self) -> bool:
        """Whether its jobs may have to wait for others of their lane or rate."""
        return self.limit is not None or self.rate is not None

    def lane(self, name: str, args: str) -> dict[str, Any] | None:
        """What a job sent under *name* with *args*, JSON by name, is counted in, as its options have it."""
        parameters = self.signature.parameters
        lane = {} if self.limit is None else self.limit.lane(name, args, parameters)
        if self.rate is not None:
            lane["rate"] = self.rate.option(name, args, parameters, self.limit)
        return lane or None

    @property
    def required_arguments(self) -> tuple[str, ...]:
        """Names of the arguments that every send must give."""
        return self.signature.required_arguments

    # Building messages

    def message_with_options(
        self, *, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None, **options: Any
    ) -> Sent[R]:
        """
        Build a message without sending it; its id sorts by time. The options are those of `send_with_options`.

        Raises:
            ArgumentError: An option is unknown, or its value cannot work.
        """
        if options:
            # Dramatiq makes names of the actors among them.
            prepared = prepare(self.actor_name, options, self.broker.actor_options | _OF_MIDDLEWARE)
            options = super().message_with_options(**prepared).options
        return Sent.fresh(self.queue_name, self.actor_name, tuple(args), kwargs or {}, options, uuid7())

    # Sending

    def send(self, *args: P.args, **kwargs: P.kwargs) -> Sent[R]:
        """Enqueue the job; it exists when this returns, or with the transaction it belongs to."""
        return self.send_with_options(args=args, kwargs=kwargs)

    def send_with_options(
        self,
        *,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        delay: timedelta | float | None = None,
        at: datetime | None = None,
        priority: int | None = None,
        unique: Unique | str | bool | None = None,
        tags: Sequence[str] | None = None,
        connection: AnyConnection | None = None,
        **options: Any,
    ) -> Sent[R]:
        """
        Enqueue the job with options.

        Args:
            delay: A timedelta, or milliseconds as Dramatiq has it, until it is due.
            at: The instant when it is due, an aware datetime; one that is over means now.
            priority: Instead of the job's own; lower runs sooner.
            unique: Instead of the job's own: a key, a `worker.Unique`, True for the arguments, False for none.
            tags: Words that find it: `worker jobs list --tag WORD`.
            connection: The job exists only if the transaction of this `psycopg.Connection` commits.
            options: Of one run, such as `timeout` in seconds, or what Dramatiq's middleware knows: `max_retries`, ...

        Returns:
            The message; `is_new` is False when a job with the same unique key stands for it.

        Raises:
            ArgumentError: An argument does not fit the signature, or an option cannot work; says which.
            BrokerConnectionError: The database is out of reach; whether the job exists is not known.
        """
        chosen = _given(at=at, priority=priority, unique=unique, tags=tags)
        message = self._message(args, kwargs, delay, {**chosen, **options})
        with self._joining(connection, "send_with_options"):
            return self._sent(self.broker.enqueue(message, delay=milliseconds(delay)))

    def send_many(
        self, rows: Iterable[Any], *, delay: timedelta | float | None = None, **options: Any
    ) -> list[Sent[R]]:
        """
        Enqueue a job for each of *rows*, all or none, in one transaction: the one that a `send` here would join.

        Args:
            rows: A tuple of positional arguments, or a dict of named ones, or a message of this job.
            options: Those of `send_with_options`, for each of them.

        Returns:
            Their messages, in order.

        Raises:
            ArgumentError: One does not fit; says which, counted from 0, and nothing was enqueued.
        """
        connection = options.pop("connection", None)
        messages = self._messages(rows, delay, options)
        with self._joining(connection, "send_many"):
            return [*map(self._sent, self._postgres.enqueue_many(messages, delay=milliseconds(delay)))]

    # Sending within a running loop

    async def send_async(self, *args: P.args, **kwargs: P.kwargs) -> Sent[R]:
        """`send` for coroutines: the loop goes on meanwhile."""
        return await self.send_with_options_async(args=args, kwargs=kwargs)

    async def send_with_options_async(
        self,
        *,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        delay: timedelta | float | None = None,
        connection: AnyConnection | None = None,
        **options: Any,
    ) -> Sent[R]:
        """`send_with_options` for coroutines; *connection* may be a `psycopg.AsyncConnection`."""
        message = self._message(args, kwargs, delay, options)
        with self._joining(connection):
            [sent] = await self._postgres.enqueue_async([message], delay=milliseconds(delay), batch=False)
            return self._sent(sent)

    async def send_many_async(
        self, rows: Iterable[Any], *, delay: timedelta | float | None = None, **options: Any
    ) -> list[Sent[R]]:
        """`send_many` for coroutines."""
        connection = options.pop("connection", None)
        messages = self._messages(rows, delay, options)
        with self._joining(connection):
            return [*map(self._sent, await self._postgres.enqueue_async(messages, delay=milliseconds(delay)))]

    def _message(
        self, args: tuple[Any, ...], kwargs: dict[str, Any] | None, delay: object, options: Mapping[str, Any]
    ) -> Sent[R]:
        if delay is not None:
            check_delay(self.actor_name, delay)
            if options.get("at") is not None:
                raise ArgumentError(f"job {self.actor_name!r}: give delay={delay!r} or at={options['at']!r}, not both")
        return self.message_with_options(args=args, kwargs=kwargs, **options)

    def _messages(self, rows: Iterable[Any], delay: object, options: Mapping[str, Any]) -> list[Message[Any]]:
        messages: list[Message[Any]] = []
        prepared: dict[str, Any] | None = None  # once: they are the same for all
        ids = uuid7s()
        for index, row in enumerate(rows):
            try:
                if prepared is None:
                    prepared = self._message((), None, delay, options).options
                messages.append(self._message_of(row, prepared, ids))
            except ArgumentError as exc:
                raise ArgumentError(f"send_many(), item {index}: {exc}") from None
        return messages

    def _message_of(self, row: Any, prepared: dict[str, Any], ids: Iterator[UUID]) -> Message[Any]:
        # What most rows are first. The options are each message's own, because hooks may add to them.
        if isinstance(row, (tuple, list)):
            return Sent.fresh(self.queue_name, self.actor_name, tuple(row), {}, {**prepared}, next(ids))
        if isinstance(row, Message):
            if row.actor_name != self.actor_name:
                raise ArgumentError(f"job {self.actor_name!r}: it is a message of job {row.actor_name!r}")
            return row.copy(options=prepared)
        if isinstance(row, Mapping):
            return Sent.fresh(self.queue_name, self.actor_name, (), dict(row), {**prepared}, next(ids))
        raise ArgumentError(
            f"job {self.actor_name!r}: it is {row!r:.100}: expected a tuple of arguments such as (42,), a dict of named"
            " ones, or a message"
        )

    def _joining(self, connection: AnyConnection | None, blocking: str = "") -> Any:
        if connection is None:
            return nullcontext()
        check_connection(f"job {self.actor_name!r}: connection=", connection)
        if blocking and not isinstance(connection, psycopg.Connection):
            raise ArgumentError(
                f"job {self.actor_name!r}: {blocking}(connection=...) was given an async connection, which it would"
                f" block: use `await {blocking}_async(...)`"
            )
        return bind(connection)

    def _sent(self, message: Message[Any]) -> Sent[R]:
        return message if isinstance(message, Sent) else Sent.of(message)

    @property
    def _postgres(self) -> Any:
        if not hasattr(self.broker, "enqueue_many"):
            raise ConfigError(
                f"job {self.actor_name!r}: its broker is a {type(self.broker).__name__}, which has only send and"
                " send_with_options: these need a worker.PostgresBroker"
            )
        return self.broker

    # Running

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        delivery = current.get()
        if delivery is not None and delivery.actor is self and delivery.enter_body():
            given = self.signature.convert(args, kwargs)
            args, kwargs = tuple(delivery.injected(kind) for kind in self.signature.injected), given
        result: R = super().__call__(*args, **kwargs)
        return result


def _given(**options: Any) -> dict[str, Any]:
    """Those of *options* that say something."""
    return {name: value for name, value in options.items() if value is not None}


class JobDecorator(Protocol):
    """What `job(...)` with options returns; the overloads are those of `job`."""

    @overload
    def __call__(self, fn: Callable[Concatenate[A, B, C, P], Awaitable[R]]) -> Job[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[A, B, P], Awaitable[R]]) -> Job[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[A, P], Awaitable[R]]) -> Job[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, Awaitable[R]]) -> Job[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[A, B, C, P], R]) -> Job[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[A, B, P], R]) -> Job[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[A, P], R]) -> Job[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R]) -> Job[P, R]: ...


@overload
def job(fn: Callable[Concatenate[A, B, C, P], Awaitable[R]]) -> Job[P, R]: ...
@overload
def job(fn: Callable[Concatenate[A, B, P], Awaitable[R]]) -> Job[P, R]: ...
@overload
def job(fn: Callable[Concatenate[A, P], Awaitable[R]]) -> Job[P, R]: ...
@overload
def job(fn: Callable[P, Awaitable[R]]) -> Job[P, R]: ...
@overload
def job(fn: Callable[Concatenate[A, B, C, P], R]) -> Job[P, R]: ...
@overload
def job(fn: Callable[Concatenate[A, B, P], R]) -> Job[P, R]: ...
@overload
def job(fn: Callable[Concatenate[A, P], R]) -> Job[P, R]: ...
@overload
def job(fn: Callable[P, R]) -> Job[P, R]: ...
@overload
def job(
    *,
    queue: str = "default",
    name: str | None = None,
    priority: int = 0,
    max_retries: int | None = 20,
    timeout: float | None = 600.0,
    limit: Limit | None = None,
    rate: Rate | None = None,
    unique: Unique | bool | None = None,
    aliases: Mapping[str, str] | None = None,
    former_names: Sequence[str] = (),
    **options: Any,
) -> JobDecorator: ...


def job(
    fn: Callable[..., Any] | None = None,
    *,
    queue: str = "default",
    name: str | None = None,
    priority: int = 0,
    timeout: float | None = 600.0,
    limit: Limit | None = None,
    rate: Rate | None = None,
    unique: Unique | bool | None = None,
    aliases: Mapping[str, str] | None = None,
    former_names: Sequence[str] = (),
    **options: Any,
) -> Any:
    """
    Make a function a job: `charge.send(42)` then enqueues a run of it.

    Leading parameters annotated `psycopg.Connection` (`psycopg.AsyncConnection` in `async def`), `worker.Pool` or
    `worker.Context` are injected; the others are its arguments and travel as JSON. With a connection the job runs
    inside one transaction that commits together with its completion.

    Args:
        priority: Lower runs sooner; each step is worth a minute of waiting, so that a low one ages and cannot starve.
        max_retries: How often it runs again after a failure; None for ever, 20 by default.
        timeout: Seconds that one run may take; None lifts the limit.
        limit: How many of them run at once over the whole fleet, and for each value of which argument.
        rate: How many of them start within some seconds over the whole fleet, and for each value of which argument.
        unique: Of its sends that say nothing else: `worker.Unique(...)`, or True for one job with the same arguments.
        aliases: Parameters that had another name, as `{"old": "new"}`: jobs sent with the old name still run.
        former_names: Names this job had: jobs sent under them still run, and run as this one.
        options: Those of `dramatiq.actor`, by its names too (`actor_name`, `queue_name`, `time_limit` in milliseconds);
            and `transaction=False` for a connection in autocommit, where each statement and each send counts at once,
            and a run that is repeated repeats them: at least once, not exactly once.

    Raises:
        SignatureError: A parameter cannot work.
        ConfigError: A value cannot work.
    """
    name, queue, timeout = by_dramatiqs_names(name, queue, timeout, options)
    check_values(name, queue, priority, timeout)
    ours = {"limit": limit, "rate": rate, "aliases": aliases, "former_names": former_names}
    check_kinds({**options, **ours})
    declaring: Callable[..., Any] = Job
    declared = partial(declaring, unique=unique, **ours)
    decorator = dramatiq.actor(
        actor_class=declared,
        actor_name=name,
        queue_name=queue,
        priority=priority,
        time_limit=float("inf") if timeout is None else timeout * 1000,
        **with_names(options),
    )
    return decorator if fn is None else decorator(fn)
