"""Sending: which connection new jobs are written by, and how patiently."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import psycopg
import psycopg_pool
from dramatiq.errors import BrokerConnectionError
from psycopg.pq import TransactionStatus

from worker.errors import LeaseLost, SchemaError
from worker.pool import Pool, shield
from worker.queue.binding import bound_connection
from worker.queue.delivery import current
from worker.queue.dispatcher import Dispatcher
from worker.queue.insertion import Standing, insert, insert_async, is_one_statement
from worker.queue.new_job import NewJob
from worker.queue.schema import Schema
from worker.queue.sends import SENT_IN_VAIN

T = TypeVar("T")

# How long a send inside a worker waits for the dispatcher, which may just be reconnecting.
_SEND_PATIENCE = 30.0
_NO_ANSWER = f"the database did not answer within {_SEND_PATIENCE:.0f} s"
_STOPPED = "the worker has stopped before it was written"
# A send of so many takes a connection of its own: the dispatcher has others to serve.
_MANY = 1000
# Between two tries when somebody's open transaction has the same unique key: the dispatcher must not wait for it.
_KEY_PAUSE = 0.2


class Place(Protocol):
    """What a send needs of its broker."""

    @property
    def lender(self) -> psycopg_pool.ConnectionPool[Any]: ...

    async def lender_async(self) -> psycopg_pool.ConnectionPool[Any]: ...

    @property
    def schema(self) -> Schema: ...

    @property
    def dispatcher(self) -> Dispatcher | None: ...


def write(place: Place, jobs: Sequence[NewJob]) -> Standing:
    """
    Write *jobs* where a send of this thread belongs: the bound connection, else the dispatcher's, else the pool's.

    Raises:
        SchemaError: The tables are not there.
        BrokerConnectionError: The database is out of reach; whether they exist is not known.
    """
    bound = bound_connection()
    if isinstance(bound, psycopg.Connection):
        return insert(bound, place.schema, jobs)
    with _reaching(place, jobs):
        if place.dispatcher is None or len(jobs) >= _MANY:
            return _borrow(place, jobs)
        for pause in _pauses():
            try:
                with shield.get()():
                    return wait_for(_dispatch(place, place.dispatcher, jobs)) or {}
            except psycopg.errors.LockNotAvailable:
                if pause is None:
                    raise
            time.sleep(pause)
    raise AssertionError("the last pause is None")


async def write_async(place: Place, jobs: Sequence[NewJob]) -> Standing:
    """`write` for coroutines; in an `async def` job with a connection, in its transaction."""
    bound, delivery = bound_connection(), current.get()
    if isinstance(bound, psycopg.Connection):
        return await asyncio.to_thread(insert, bound, place.schema, jobs)
    if bound is not None:
        return await insert_async(bound, place.schema, jobs)
    if delivery is not None and delivery.conn is not None:
        return await insert_async(delivery.view, place.schema, jobs)
    with _reaching(place, jobs):
        if place.dispatcher is None or len(jobs) >= _MANY:
            return await _borrow_async(place, jobs)
        for pause in _pauses():
            try:
                return await _wait_for_async(_dispatch(place, place.dispatcher, jobs)) or {}
            except psycopg.errors.LockNotAvailable:
                if pause is None:
                    raise
            await asyncio.sleep(pause)
    raise AssertionError("the last pause is None")


def _borrow(place: Place, jobs: Sequence[NewJob]) -> Standing:
    with place.lender.connection() as conn, _committing(conn, jobs):
        return insert(conn, place.schema, jobs)


@contextmanager
def _committing(conn: psycopg.Connection[Any], jobs: Sequence[NewJob]) -> Iterator[None]:
    """One statement needs no transaction around it: that would be a trip more, for COMMIT."""
    # The check of an application's pool may have begun one.
    is_idle = conn.pgconn.transaction_status == TransactionStatus.IDLE
    if conn.autocommit or not is_idle or not is_one_statement(jobs):
        yield
        return
    try:
        conn.autocommit = True
        yield
    finally:
        if conn.pgconn.transaction_status == TransactionStatus.IDLE:
            conn.autocommit = False


async def _borrow_async(place: Place, jobs: Sequence[NewJob]) -> Standing:
    lender = await place.lender_async()
    if not isinstance(lender, Pool):
        # One of the application's, which lends to threads only.
        return await asyncio.to_thread(_borrow, place, jobs)
    async with lender.connection() as conn:
        if isinstance(conn, psycopg.AsyncConnection) and is_one_statement(jobs):
            await conn.set_autocommit(True)  # of the view, and with it over
        return await insert_async(conn, place.schema, jobs)


def _dispatch(place: Place, dispatcher: Dispatcher, jobs: Sequence[NewJob]) -> Future[Any]:
    """As part of the run that sends, if it is one: who has lost the job writes nothing, here neither."""
    delivery = current.get()
    sender = None if delivery is None else delivery.claim.proof
    if all(new.is_plain for new in jobs):
        return dispatcher.send(jobs, sender)  # one statement with the sends of others

    def work(conn: psycopg.Connection[Any]) -> Standing:
        if sender is not None and dispatcher.has_lost(sender):
            raise LeaseLost(SENT_IN_VAIN)
        return insert(conn, place.schema, jobs)

    return dispatcher.submit(work)


@contextmanager
def _reaching(place: Place, jobs: Sequence[NewJob]) -> Iterator[None]:
    what = f"job {jobs[0].actor!r} was" if len(jobs) == 1 else f"{len(jobs)} jobs were"
    try:
        yield
    except psycopg.errors.UndefinedTable as exc:
        raise SchemaError(f"schema {place.schema.name!r} is not there yet: run 'worker migrate'") from exc
    except (psycopg.OperationalError, psycopg.InternalError) as exc:
        raise BrokerConnectionError(f"{what} not enqueued for certain: {exc}") from exc


def _pauses() -> Iterator[float | None]:
    """Between the tries of a send; None after the last."""
    deadline = time.monotonic() + _SEND_PATIENCE
    while time.monotonic() < deadline:
        yield _KEY_PAUSE
    yield None


def wait_for(sent: Future[T]) -> T:
    """What the dispatcher made of something, which it does soon."""
    try:
        return sent.result(_SEND_PATIENCE)
    except FutureTimeout:
        sent.cancel()
        raise psycopg.OperationalError(_NO_ANSWER) from None
    except CancelledError:
        raise psycopg.OperationalError(_STOPPED) from None


async def _wait_for_async(sent: Future[T]) -> T:
    try:
        return await asyncio.wait_for(asyncio.wrap_future(sent), _SEND_PATIENCE)
    except TimeoutError:
        raise psycopg.OperationalError(_NO_ANSWER) from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # Nobody cancels this task: the dispatcher has given up the send.
        raise psycopg.OperationalError(_STOPPED) from None
