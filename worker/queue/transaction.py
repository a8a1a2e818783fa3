"""The outermost middleware: a job's transaction, from before everybody else's hooks to after them."""

from __future__ import annotations

from typing import Any, Protocol

import psycopg
from dramatiq.middleware import Middleware, SkipMessage
from psycopg.pq import TransactionStatus

from worker import log
from worker.errors import LostLease, TransactionEnded
from worker.pool import holder
from worker.queue.actor import Job
from worker.queue.conclusion import conclude
from worker.queue.delivery import Delivery, current
from worker.queue.enqueue import bind
from worker.queue.new_job import NewJob
from worker.queue.schema import Schema
from worker.queue.settlement import Outcome, Settlement, finish

logger = log.get_logger(__name__)


class Rows(Protocol):
    """What a job's transaction needs of its broker."""

    @property
    def schema(self) -> Schema: ...

    def encode(self, message: Delivery, delay: int | None) -> NewJob: ...


class Transaction(Middleware):
    """
    Opens the transaction of a job that takes a connection, and ends it.

    First of all before-hooks and last of all after-hooks, so that retries, callbacks and pipelines are known when it
    commits. A hook cannot veto an acknowledgement in Dramatiq, hence what counts is the settlement recorded here:
    only a run whose settlement was written is ever taken off the queue.
    """

    def before_process_message(self, broker: Rows, delivery: Delivery) -> None:  # type: ignore[override]  # ours, of our broker
        delivery.started = True
        # Left last of all, when the run's own connection is back.
        delivery.scope.callback(delivery.pool.reclaim, delivery.holder)
        _enter(delivery, current, delivery)
        _enter(delivery, holder, delivery.holder)
        if isinstance(delivery.actor, Job) and delivery.actor.signature.takes_connection:
            try:
                self._begin(delivery, delivery.actor)
            except psycopg.Error as exc:
                # Any other exception would be logged and swallowed, and the job would run without its connection.
                logger.warning("job.no_connection", reason=str(exc))
                delivery.connected = False
                raise SkipMessage("no connection") from exc

    def after_process_message(  # type: ignore[override]
        self,
        broker: Rows,
        delivery: Delivery,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        # Dramatiq's Worker comes a second time when a hook after this one was interrupted: it is over by then.
        if delivery.settlement is None:
            delivery.settlement = self._end(broker, delivery, exception)
        # By this flag Dramatiq's Worker chooses which hooks come next, and Results stores a failure in one of them.
        delivery.failed = delivery.settlement.outcome is Outcome.DEAD

    def after_skip_message(self, broker: Rows, delivery: Delivery) -> None:  # type: ignore[override]
        self.after_process_message(broker, delivery, exception=delivery._exception or SkipMessage())

    def _begin(self, delivery: Delivery, actor: Job[..., Any]) -> None:
        conn = delivery.pool.getconn()
        delivery.scope.callback(_give_back, delivery)
        delivery.conn = conn
        # A block of psycopg's refuses explicit commits inside it, which would split the job's effect.
        transaction = conn.transaction()
        transaction.__enter__()
        delivery.transaction = transaction
        if not actor.signature.is_async:
            delivery.scope.enter_context(bind(conn))

    def _end(self, broker: Rows, delivery: Delivery, exception: BaseException | None) -> Settlement:
        with delivery.scope:
            settlement = conclude(delivery, exception)
            if delivery.conn is not None and settlement.outcome is Outcome.DONE:
                return self._commit(broker, delivery, settlement)
            if delivery.transaction is not None:
                _roll_back(delivery, exception)
            return settlement

    def _commit(self, broker: Rows, delivery: Delivery, settlement: Settlement) -> Settlement:
        """Settle within the job's transaction and commit both, or neither; returns what became of the job."""
        assert delivery.conn is not None  # noqa: S101  # the caller looked
        assert delivery.transaction is not None  # noqa: S101
        try:
            _check_open(delivery.conn)
            if not finish(delivery.conn, broker.schema, settlement):
                raise LostLease(f"job {delivery.claim.id} belongs to another delivery by now")
            delivery.transaction.__exit__(None, None, None)
            delivery.settled = True
        except LostLease as exc:
            _roll_back(delivery, exc)
            delivery.settled = True
            logger.warning("job.lease_lost", job_id=str(delivery.claim.id), actor=delivery.claim.actor)
        except (psycopg.Error, TransactionEnded) as exc:
            _roll_back(delivery, exc)
            delivery.fail_after_hooks(exc, broker.encode)
            settlement = conclude(delivery, exc)
        return settlement


def _give_back(delivery: Delivery) -> None:
    conn, delivery.conn, delivery.transaction = delivery.conn, None, None
    if conn is not None:
        delivery.pool.putconn(conn)


def _enter(delivery: Delivery, variable: Any, value: Any) -> None:
    delivery.scope.callback(variable.reset, variable.set(value))


def _check_open(conn: psycopg.Connection[Any]) -> None:
    """COMMIT of a failed transaction is a silent ROLLBACK, and a job can end its transaction by plain SQL."""
    status = conn.pgconn.transaction_status
    if status == TransactionStatus.INERROR:
        raise psycopg.errors.InFailedSqlTransaction(
            "the job went on after an SQL error in its transaction: use a savepoint, `with conn.transaction()`,"
            " around a statement that may fail"
        )
    if status != TransactionStatus.INTRANS and not conn.broken:
        raise TransactionEnded("the job ended its own transaction or closed its connection: leave both to the worker")


def _roll_back(delivery: Delivery, exception: BaseException | None) -> None:
    """End the job's transaction without its effects; a connection in doubt is closed and replaced."""
    transaction, delivery.transaction = delivery.transaction, None
    if transaction is None or delivery.conn is None:
        return
    reason = exception or psycopg.Rollback()
    try:
        if delivery.conn.pgconn.transaction_status != TransactionStatus.IDLE:
            transaction.__exit__(type(reason), reason, None)
    except psycopg.Error as exc:
        logger.debug("job.rollback_failed", reason=str(exc))
    if delivery.conn.pgconn.transaction_status != TransactionStatus.IDLE or delivery.conn._num_transactions:
        delivery.conn.close()
