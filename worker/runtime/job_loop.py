"""The job loop: `async def` jobs as tasks of one event loop, which hold no thread each."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from dramatiq import Actor
from dramatiq.asyncio import async_to_sync
from dramatiq.middleware import Interrupt, TimeLimitExceeded

from worker import clock, log
from worker.queue.actor import Job
from worker.queue.claim import Claim
from worker.queue.delivery import Delivery
from worker.runtime.execution import Ending, Execution, as_interrupted, fields, time_limit
from worker.runtime.guard import Guard
from worker.runtime.stack import stack_of_task

logger = log.get_logger(__name__)

_HOOK_THREADS = 8


async def _nothing() -> None: ...


# How an actor made of a coroutine function is told from a function that merely wraps one.
_WRAPPER = async_to_sync(_nothing).__code__


def body_of(actor: Actor[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]] | None:
    """The coroutine function of an `async def` actor; None for any other."""
    if isinstance(actor, Job):
        return actor.body if actor.signature.is_async else None
    if getattr(actor.fn, "__code__", None) is _WRAPPER and inspect.iscoroutinefunction(inspect.unwrap(actor.fn)):
        body: Callable[..., Coroutine[Any, Any, Any]] = inspect.unwrap(actor.fn)
        return body
    return None


class TaskGuard(Guard):
    """The guard of a coroutine, made on its loop's thread."""

    __slots__ = ("_loop_thread", "_task")

    def __init__(self, delivery: Delivery, task: asyncio.Task[Any]) -> None:
        super().__init__(delivery)
        self._task = task
        self._loop_thread = threading.get_ident()

    def where(self) -> str:
        return stack_of_task(self._task, self._loop_thread)

    def _interrupt(self, reason: type[Interrupt]) -> None:
        self.met = True  # psycopg cancels the statement of a cancelled task by itself
        self._task.get_loop().call_soon_threadsafe(self._task.cancel)


class JobLoop:
    """One event loop on one thread; a context manager. Starts nothing until the first async job."""

    def __init__(self, execution: Execution, finished: Callable[[Claim], None]) -> None:
        self._execution = execution
        self._finished = finished
        self._opening = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        # By the number of the claim: what it has not begun, and what it has, because the loop keeps no task that waits.
        self._waiting: dict[int, Claim] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        # For hooks that may block, as they open transactions and write results.
        self._hooks = ThreadPoolExecutor(_HOOK_THREADS, thread_name_prefix="job-hooks")

    def __enter__(self) -> JobLoop:
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop is not None and self._thread is not None:
            self.call_soon(self._loop.stop)
            self._thread.join(5.0)
        self._hooks.shutdown(wait=False, cancel_futures=True)

    def start(self, claim: Claim) -> None:
        """Run *claim* as a task."""
        self._waiting[id(claim)] = claim
        (self._loop or self._open()).call_soon_threadsafe(self._begin, claim)

    def take_back(self) -> list[Claim]:
        """Everything that it has not begun, because something keeps it."""
        claims = []
        with suppress(KeyError):  # it is empty
            while True:
                claims.append(self._waiting.popitem()[1])
        return claims

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Have its thread call *callback* in its turn; nobody does when it has ended, or was never needed."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(callback)

    @property
    def has_jobs(self) -> bool:
        """Whether jobs run on it, or wait for it to begin them."""
        return bool(self._tasks or self._waiting)

    @property
    def thread(self) -> int | None:
        """The number of its thread, for its stack."""
        return None if self._thread is None else self._thread.ident

    @property
    def is_alive(self) -> bool:
        """Whether it runs, or was never needed."""
        return self._thread is None or self._thread.is_alive()

    def _open(self) -> asyncio.AbstractEventLoop:
        """The loop, running; the first jobs may come from several threads at once."""
        with self._opening:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=self._run, args=[loop], name="job-loop", daemon=True)
                thread.start()
                # Not before: one that has not started yet would be taken for one that has ended.
                self._thread = thread
                self._loop = loop
            return self._loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            # Jobs that ignored their cancellation end with the process; asyncio would complain of each.
            for task in asyncio.all_tasks(loop):
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # as `gather` does
            loop.close()

    def _begin(self, claim: Claim) -> None:
        assert self._loop is not None  # noqa: S101
        if self._waiting.pop(id(claim), None) is not None:  # else it was taken back
            self._tasks[id(claim)] = self._loop.create_task(self._run_job(claim))

    async def _run_job(self, claim: Claim) -> None:
        try:
            delivery = self._execution.deliver(claim)
            if delivery is not None:
                await self._run_delivery(delivery)
        except Exception as exc:
            self._execution.give_up(claim, exc)
        finally:
            self._tasks.pop(id(claim), None)
            self._finished(claim)

    async def _run_delivery(self, delivery: Delivery) -> None:
        # Hooks and body share one context of the job's own, entered by one of them at a time.
        context = contextvars.copy_context()
        started = clock.monotonic()
        context.run(log.fields.set, functools.partial(fields, delivery.claim))
        try:
            if self._execution.is_quick(delivery):
                ending: Ending | None = context.run(self._execution.prepare, delivery)
            else:
                ending = await self._in_hooks(context, self._execution.prepare, delivery)
            if ending is None:
                ending = await self._run_body(delivery, context)
            # An error is rendered, which takes its time.
            if ending.error is None and self._execution.is_quick(delivery):
                context.run(self._execution.conclude, delivery, ending, started)
            else:
                await self._in_hooks(context, self._execution.conclude, delivery, ending, started)
        except Exception as exc:
            await self._in_hooks(context, self._execution.give_up, delivery.claim, exc, delivery)

    async def _in_hooks(self, context: contextvars.Context, hook: Callable[..., Any], *args: Any) -> Any:
        call = functools.partial(context.run, hook, *args)
        return await asyncio.get_running_loop().run_in_executor(self._hooks, call)

    async def _run_body(self, delivery: Delivery, context: contextvars.Context) -> Ending:
        loop = asyncio.get_running_loop()
        try:
            limit = time_limit(delivery)
        except (TypeError, ValueError) as exc:
            return Ending(error=exc)
        # Sends of a job with a connection cannot be written by it from here; they are written by its settlement.
        delivery.collecting = delivery.transaction is not None
        task = loop.create_task(_call(delivery), context=context)
        guard = TaskGuard(delivery, task)
        self._execution.watchdog.watch(guard, limit, TimeLimitExceeded)
        try:
            ending = Ending(result=await task)
        except asyncio.CancelledError as exc:
            ending = Ending(error=guard.reason() if guard.reason else exc)
        except GeneratorExit:
            raise  # thrown away with the loop, at the end of a process that does not wait for it
        except BaseException as exc:
            ending = Ending(error=exc)
        if not guard.disarm():
            await loop.run_in_executor(self._hooks, guard.wait_complete)
        self._execution.watchdog.release(guard)
        delivery.leave_body(failed=ending.error is not None)
        return as_interrupted(ending, guard)


async def _call(delivery: Delivery) -> Any:
    actor = delivery.actor
    if isinstance(actor, Job):
        given = actor.signature.convert(delivery.args, delivery.kwargs)
        delivery.enter_body()
        return await actor.body(*(delivery.injected(kind) for kind in actor.signature.injected), **given)
    body = None if actor is None else body_of(actor)
    assert body is not None  # noqa: S101  # the feed looked
    return await body(*delivery.args, **delivery.kwargs)
