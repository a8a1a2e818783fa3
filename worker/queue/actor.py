"""`@job`: Dramatiq's actor, with injected parameters and typed arguments."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

import dramatiq
import psycopg
from dramatiq import Actor, Message

from worker.errors import ConfigError
from worker.pool import Pool
from worker.queue.context import Context
from worker.queue.delivery import current
from worker.queue.identity import uuid7
from worker.queue.limit import Limit
from worker.queue.signature import Signature

P = ParamSpec("P")
R = TypeVar("R")
# What may stand before the arguments of a send. One name for each place, because each is solved by itself.
A = TypeVar("A", psycopg.Connection[Any], psycopg.AsyncConnection[Any], Pool, Context)
B = TypeVar("B", psycopg.Connection[Any], psycopg.AsyncConnection[Any], Pool, Context)
C = TypeVar("C", psycopg.Connection[Any], psycopg.AsyncConnection[Any], Pool, Context)


class Job(Actor[P, R]):
    """
    An actor whose leading parameters are injected and whose arguments are checked when it is sent.

    Called directly it is the plain function, injected parameters included: `charge(conn, 42)` needs no worker.
    """

    def __init__(self, fn: Callable[..., Any], *, actor_name: str, limit: Limit | None = None, **rest: Any) -> None:
        self.signature = Signature.read(fn, actor_name)
        self.limit = limit
        if limit is not None:
            limit.check(actor_name, self.signature.parameters)
        self.body = fn
        super().__init__(fn, actor_name=actor_name, **rest)

    @property
    def required_arguments(self) -> tuple[str, ...]:
        """Names of the arguments that every send must give."""
        return self.signature.required_arguments

    def message_with_options(
        self, *, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None, **options: Any
    ) -> Message[R]:
        """Build a message without sending it; its id sorts by time."""
        message: Message[R] = super().message_with_options(args=args, kwargs=kwargs, **options)
        return message.copy(message_id=str(uuid7()))

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        delivery = current.get()
        if delivery is not None and delivery.actor is self and delivery.enter_body():
            given = self.signature.convert(args, kwargs)
            args, kwargs = tuple(delivery.injected(kind) for kind in self.signature.injected), given
        result: R = super().__call__(*args, **kwargs)
        return result


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
        options: Those of `dramatiq.actor`; and `transaction=False` for a connection in autocommit, where each statement
            and each send counts at once, and a run that is repeated repeats them: at least once, not exactly once.

    Raises:
        SignatureError: A parameter cannot work.
        ConfigError: A value cannot work.
    """
    if timeout is not None and not (isinstance(timeout, int | float) and timeout > 0):
        raise ConfigError(f"job timeout {timeout!r}: expected more than 0 seconds, or None for no limit")
    if not (isinstance(priority, int) and -1_000_000 <= priority <= 1_000_000):
        raise ConfigError(f"job priority {priority!r}: expected a whole number from -1000000 to 1000000")
    declaring: Callable[..., Any] = Job
    decorator = dramatiq.actor(
        actor_class=partial(declaring, limit=limit),
        actor_name=name,
        queue_name=queue,
        priority=priority,
        time_limit=float("inf") if timeout is None else timeout * 1000,
        **options,
    )
    return decorator if fn is None else decorator(fn)
