"""The transaction of a run: begun before its body, or by `ctx.finish()` at the end of it."""

from __future__ import annotations

from contextlib import suppress
from types import TracebackType
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from worker import log
from worker.errors import Refused
from worker.pool import Connection, shield
from worker.pool.lending import in_thread
from worker.queue.binding import bind
from worker.queue.delivery import Delivery
from worker.queue.job_transaction import JobTransaction
from worker.queue.schema import Schema

logger = log.get_logger(__name__)


def begin(delivery: Delivery, schema: Schema, *, binding: bool) -> psycopg.Connection[Any]:
    """
    Take a connection for *delivery* and begin its transaction; what ends the run settles in it and gives it back.

    Args:
        binding: Whether sends of this thread join it from now on.
    """
    conn = _take(delivery)
    delivery.transaction = JobTransaction(conn, schema)
    if binding:
        delivery.scope.enter(bind(conn))
    return conn


def take_for_statements(delivery: Delivery) -> None:
    """Take a connection for *delivery* that commits each statement."""
    conn = _take(delivery)
    conn.autocommit = True
    if name := conn.name_in_job:
        # Two trips, with that of its end, for jobs that are rare and long: no transaction ends this by itself.
        conn.command(b"SET application_name = " + name)
        conn.checkout.mark = ""  # or its transactions would be marked twice
    delivery.scope.callback(_end_statements, conn)


def _end_statements(conn: Connection) -> None:
    # One that is in any other state, or is lost meanwhile, is the pool's to replace.
    with suppress(psycopg.Error):
        if conn.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
            # The pool would undo this as well, and blame the job for what is ours.
            logger.warning("job.transaction_left", advice="end it, or use `with conn.transaction()`")
            conn.rollback()
        if conn.info.transaction_status == TransactionStatus.IDLE:
            conn.autocommit = False
            conn.command(b"RESET application_name")


def _take(delivery: Delivery) -> Connection:
    """Take a connection for *delivery*; the end of its run gives it back."""
    conn = delivery.pool.acquire()
    delivery.conn = conn
    delivery.scope.callback(_give_back, delivery)
    if conn.checkout is not None:
        conn.checkout.spans_job = True
    return conn


def _give_back(delivery: Delivery) -> None:
    conn, transaction = delivery.conn, delivery.transaction
    delivery.conn = delivery.transaction = None
    delivery.leave_view()
    try:
        if transaction is not None:
            transaction.roll_back()
    finally:
        if conn is not None:
            delivery.pool.release(conn)


class Finish:
    """The block of `ctx.finish()`, `with` or `async with`."""

    def __init__(self, delivery: Delivery, schema: Schema) -> None:
        if delivery.conn is not None:
            raise Refused(
                f"job {delivery.claim.actor!r}: ctx.finish() begins the one transaction of a run, and this run has it"
                " already: from its connection parameter, or from an earlier ctx.finish()"
            )
        self._delivery = delivery
        self._schema = schema

    def __enter__(self) -> psycopg.Connection[Any]:
        # An interrupt that met the hand-over would lose the connection.
        with shield.get()():
            return begin(self._delivery, self._schema, binding=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._delivery.transaction is not None:
            with shield.get()():
                self._delivery.transaction.roll_back()

    async def __aenter__(self) -> psycopg.AsyncConnection[Any]:
        await in_thread(lambda: begin(self._delivery, self._schema, binding=False))
        # A coroutine's sends are written by the settlement, in the same transaction.
        self._delivery.collecting = True
        return self._delivery.view

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        transaction = self._delivery.transaction
        if error is not None and transaction is not None:
            await in_thread(transaction.roll_back)
