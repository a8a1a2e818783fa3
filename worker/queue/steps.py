"""Steps: the parts of a job that its next attempt does not do again, each recorded in one fenced transaction."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import msgspec
import psycopg
from psycopg_pool import PoolTimeout

from worker import log
from worker.errors import ArgumentError, LeaseLost, LostLease, PoolDeadlock, Refused, UnrecordableStep
from worker.pool import Connection, shield
from worker.pool.lending import in_thread
from worker.queue.binding import bind
from worker.queue.delivery import Delivery
from worker.queue.job_transaction import JobTransaction
from worker.queue.json_values import NUL_ESCAPE, exact_floats, is_plain
from worker.queue.progress import check_storable
from worker.queue.schema import Schema
from worker.queue.signature import takes_connection_first
from worker.queue.step_statements import FIND_STEP, RECORD_STEP
from worker.queue.stop_reason import StopReason

logger = log.get_logger(__name__)

_MAX_NAME = 200
_MAX_VALUE = 64 * 1024
_MAX_STEPS = 1000
# Seconds between two tries to record what has happened; the last one for good.
_PAUSES = (0.1, 0.2, 0.5, 1.0)


class Steps:
    """The steps of one run."""

    def __init__(self, delivery: Delivery, schema: Schema) -> None:
        self._delivery = delivery
        self._schema = schema
        self._names: set[str] = set()

    def begin(self, name: str) -> StepBlock:
        """The step *name*, once in a run; raises as `Context.step`."""
        self._check(name)
        self._names.add(name)
        return StepBlock(self._delivery, self._schema, name)

    def do(self, name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do the step *name* by calling *fn* unless it is recorded; a coroutine when *fn* is `async def`."""
        self._check_kind(name, fn)
        block = self.begin(name)
        connected = takes_connection_first(fn, f"job {self._delivery.claim.actor!r}, step {name!r}")
        if inspect.iscoroutinefunction(fn):
            return (_await_connected if connected else _await)(block, fn, args, kwargs)
        return (_call_connected if connected else _call)(block, fn, args, kwargs)

    def _check(self, name: str) -> None:
        job = f"job {self._delivery.claim.actor!r}"
        if not isinstance(name, str) or not 1 <= len(name) <= _MAX_NAME:
            raise ArgumentError(
                f"{job}: the name of a step is {name!r:.100}: expected text of at most {_MAX_NAME} characters"
            )
        check_storable(f"{job}: the name of a step", name)
        if self._delivery.transaction is not None or self._delivery.conn is not None:
            raise Refused(
                f"{job}: step {name!r} cannot be recorded by itself, because this run has a connection of its own, from"
                " its parameter or from ctx.finish(): leave out the parameter (a step is given a connection, see"
                " ctx.step), and do the steps before ctx.finish()"
            )
        if name in self._names:
            raise Refused(
                f"{job}: step {name!r} was there before in this run: give each a name of its own, such as"
                f" {f'{name} 2'!r}, or the item's id in a loop"
            )
        if len(self._names) >= _MAX_STEPS:
            raise Refused(
                f"{job}: step {name!r} is one more than {_MAX_STEPS:,}: make larger steps, or a job of each part"
            )

    def _check_kind(self, name: str, fn: Callable[..., Any]) -> None:
        job = f"job {self._delivery.claim.actor!r}, step {name!r}"
        if not callable(fn):
            raise ArgumentError(f"{job}: expected a function and its arguments, got {fn!r:.100}")
        signature = getattr(self._delivery.actor, "signature", None)
        is_async = signature is not None and signature.is_async
        if is_async and not inspect.iscoroutinefunction(fn):
            raise ArgumentError(
                f"{job}: a plain function would block the event loop of an async job: make it `async def`, with"
                " `await asyncio.to_thread(...)` around what blocks"
            )
        if not is_async and inspect.iscoroutinefunction(fn):
            raise ArgumentError(
                f"{job}: nobody awaits an `async def` function in a plain job: make the job `async def`"
            )


class StepBlock:
    """One step, `with` or `async with`; see `worker.queue.context.Step`."""

    def __init__(self, delivery: Delivery, schema: Schema, name: str) -> None:
        self.name = name
        self.done = False
        self.value: Any = None
        self._delivery = delivery
        self._schema = schema
        self._proof = {"id": delivery.claim.id, "token": delivery.claim.token, "name": name}
        self._attempt: int | None = None
        self._conn: Connection | None = None
        self._view: psycopg.AsyncConnection[Any] | None = None
        self._transaction: JobTransaction | None = None
        self._binding: Any = None

    @property
    def conn(self) -> Any:
        if self.done:
            raise Refused(f"{self._where}: it was done by attempt {self._attempt}: do nothing in it `if step.done`")
        if self._transaction is None:
            raise Refused(f"{self._where}: it has a connection within its block only: `with ctx.step(...) as step:`")
        return self._conn if self._view is None else self._view

    # As a block

    def __enter__(self) -> StepBlock:
        try:
            # An interrupt that met the hand-over would lose the connection.
            with shield.get()():
                self._conn = self._delivery.pool.acquire()
                self._begin()
        except BaseException:
            self._give_back()
            raise
        if self.done:
            self._give_back()
        else:
            self._bind(self._conn)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unbind()
        self._note(error)
        try:
            if error is None and not self.done:
                self._commit()
        finally:
            self._give_back()

    async def __aenter__(self) -> StepBlock:
        try:
            view = await self._delivery.pool.acquire_async()
            self._view, self._conn = view, getattr(view, "pooled")  # noqa: B009  # both kinds of view have it
            await in_thread(self._begin)
        except BaseException:
            await self._give_back_async()
            raise
        if self.done:
            await self._give_back_async()
        else:
            self._bind(view)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unbind()
        self._note(error)
        try:
            if error is None and not self.done:
                await in_thread(self._commit)
        finally:
            await self._give_back_async()

    # As a look and a record, each with a connection of its own, so that none is held in between

    def look(self) -> bool:
        """Whether it is recorded; then with its value."""
        with self._delivery.pool.connection() as conn:
            self._found(conn)
        return self.done

    def record(self) -> Iterator[float]:
        """
        Record `value`, in transactions of their own until one has committed; yields seconds to pause before the next.

        What was called has happened, so a run that gave up here would do it again; and a record that is written twice,
        because a commit's answer was lost, is the same record.
        """
        value = self._encoded()
        for pause in itertools.chain(_PAUSES, itertools.repeat(_PAUSES[-1])):
            try:
                # Not over the pauses: an interrupt is what ends this when the job is to end.
                with shield.get()():
                    self._record(value)
                return
            except psycopg.Error as exc:
                if not self._may_pass(exc):
                    raise
                logger.warning("step.not_recorded", name=self.name, reason=str(exc), pause=pause)
            finally:
                # Were it given up now, what was called would not be safe to repeat for free.
                self._delivery.step_cut = False
            yield pause

    def _record(self, value: bytes) -> None:
        self._delivery.step_cut = False
        self._conn = self._delivery.pool.acquire()
        try:
            self._transaction = JobTransaction(self._conn, self._schema)
            self._commit_value(value)
        finally:
            self._give_back()

    def _may_pass(self, error: psycopg.Error) -> bool:
        """Whether to try again after *error*: somebody's lock, a conflict, a lost connection, a server that is away."""
        # The grace of a shutdown is time to record in; its end, as any other reason, comes with an interrupt. One that
        # the function has swallowed does not come again.
        if self._delivery.stop_reason not in (None, StopReason.SHUTDOWN):
            return False
        passing = (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled, PoolTimeout)
        return self._delivery.step_cut or (isinstance(error, passing) and not isinstance(error, PoolDeadlock))

    # The transaction

    def _begin(self) -> None:
        assert self._conn is not None  # noqa: S101  # taken just before
        self._transaction = JobTransaction(self._conn, self._schema)
        self._found(self._conn)

    def _found(self, conn: psycopg.Connection[Any]) -> None:
        self._delivery.step_cut = False
        with self._noting(conn):
            row = conn.execute(self._schema.render(FIND_STEP).encode(), self._proof).fetchone()
        if row is None:
            raise LeaseLost(f"{self._where}: the job is another worker's by now")
        self.done, value, self._attempt = row
        if self.done:
            self.value = msgspec.json.decode(value)

    def _commit(self) -> None:
        self._commit_value(self._encoded())

    def _commit_value(self, value: bytes) -> None:
        assert self._transaction is not None  # noqa: S101  # begun when the block was
        parameters = {**self._proof, "value": value.decode()}
        statement = self._schema.render(RECORD_STEP).encode()
        try:
            with self._noting(self._conn):
                self._transaction.commit_with(lambda conn: conn.execute(statement, parameters).fetchone() is not None)
        except LostLease as exc:
            raise LeaseLost(f"{self._where}: the job is another worker's by now, nothing was written") from exc
        # What JSON makes of it, so that the first attempt sees what a later one would.
        self.value = msgspec.json.decode(value)

    @contextmanager
    def _noting(self, conn: psycopg.Connection[Any] | None) -> Iterator[None]:
        try:
            yield
        except Exception as exc:
            self._delivery.note_step_cut(conn, exc)
            raise

    def _note(self, error: BaseException | None) -> None:
        if isinstance(error, Exception):
            self._delivery.note_step_cut(self._conn, error)

    def _give_back(self) -> None:
        with shield.get()():
            conn, self._conn = self._conn, None
            if conn is not None:
                try:
                    self._roll_back()
                finally:
                    self._delivery.pool.release(conn)

    async def _give_back_async(self) -> None:
        view, self._view, self._conn = self._view, None, None
        if view is not None:
            try:
                await in_thread(self._roll_back)
            finally:
                await self._delivery.pool.release_async(view)

    def _roll_back(self) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            transaction.roll_back()

    # Sends within the block are part of its transaction

    def _bind(self, conn: Any) -> None:
        self._binding = bind(conn)
        self._binding.__enter__()

    def _unbind(self) -> None:
        binding, self._binding = self._binding, None
        if binding is not None:
            binding.__exit__(None, None, None)

    # The value

    @property
    def _where(self) -> str:
        return f"job {self._delivery.claim.actor!r}, step {self.name!r}"

    def _encoded(self) -> bytes:
        """
        `value` as `jsonb` takes it and gives it back.

        Raises:
            UnrecordableStep: It does not; says why.
        """
        try:
            if not is_plain(self.value):
                raise UnrecordableStep(
                    f"{self._where}: its value is {self.value!r:.100}, a {type(self.value).__name__}, which is not"
                    " plain JSON: give None, finite numbers, text, or lists and dicts of them (a datetime as text, an"
                    " object by its id)"
                )
            text = exact_floats(msgspec.json.encode(self.value))
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as exc:
            raise UnrecordableStep(f"{self._where}: its value cannot be written as JSON: {exc}") from None
        if len(text) > _MAX_VALUE:
            raise UnrecordableStep(
                f"{self._where}: its value is {len(text):,} bytes of JSON, expected at most {_MAX_VALUE:,}: keep what"
                " is large in a table or a file, and return its id"
            )
        if NUL_ESCAPE.search(text):
            raise UnrecordableStep(f"{self._where}: its value holds the character U+0000, which Postgres cannot store")
        return text


def _call(block: StepBlock, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not block.look():
        block.value = fn(*args, **kwargs)
        for pause in block.record():
            time.sleep(pause)
    return block.value


def _call_connected(block: StepBlock, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with block:
        if not block.done:
            block.value = fn(block.conn, *args, **kwargs)
    return block.value


async def _await(
    block: StepBlock, fn: Callable[..., Coroutine[Any, Any, Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if not await in_thread(block.look):
        block.value = await fn(*args, **kwargs)
        recording = block.record()
        while (pause := await in_thread(lambda: next(recording, None))) is not None:  # noqa: ASYNC110  # it tries again, it does not wait for a flag
            await asyncio.sleep(pause)
    return block.value


async def _await_connected(
    block: StepBlock, fn: Callable[..., Coroutine[Any, Any, Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    async with block:
        if not block.done:
            block.value = await fn(block.conn, *args, **kwargs)
    return block.value
