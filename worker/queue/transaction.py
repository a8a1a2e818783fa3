"""The outermost middleware: a job's transaction, from before everybody else's hooks to after them."""

from __future__ import annotations

from typing import Any, Protocol

import psycopg
from dramatiq.middleware import Middleware, SkipMessage

from worker import log
from worker.errors import LostLease, TransactionEnded
from worker.pool import holder
from worker.queue.actor import Job
from worker.queue.binding import bind
from worker.queue.conclusion import conclude
from worker.queue.delivery import Delivery, current
from worker.queue.history import has_no_partition
from worker.queue.job_transaction import JobTransaction
from worker.queue.new_job import NewJob
from worker.queue.schema import Schema
from worker.queue.settlement import Outcome, Settlement

logger = log.get_logger(__name__)


class Rows(Protocol):
    """What a job's transaction needs of its broker."""

    @property
    def schema(self) -> Schema: ...

    def encode(self, message: Delivery, delay: int | None) -> NewJob: ...

    def keep_house(self) -> None: ...


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
                self._begin(broker, delivery, delivery.actor)
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

    def _begin(self, broker: Rows, delivery: Delivery, actor: Job[..., Any]) -> None:
        conn = delivery.pool.acquire()
        delivery.scope.callback(_give_back, delivery)
        if conn.checkout is not None:
            conn.checkout.spans_job = True
        delivery.conn = conn
        delivery.transaction = JobTransaction(conn, broker.schema)
        if not actor.signature.is_async:
            delivery.scope.enter_context(bind(conn))

    def _end(self, broker: Rows, delivery: Delivery, exception: BaseException | None) -> Settlement:
        with delivery.scope:
            settlement = conclude(delivery, exception)
            if delivery.transaction is None:
                return settlement
            try:
                if settlement.outcome is Outcome.DONE:
                    return self._commit(broker, delivery, delivery.transaction, settlement)
                return settlement
            finally:
                delivery.transaction.roll_back()

    def _commit(
        self, broker: Rows, delivery: Delivery, transaction: JobTransaction, settlement: Settlement
    ) -> Settlement:
        """Settle within the job's transaction and commit both, or neither; returns what became of the job."""
        try:
            transaction.commit(settlement)
            delivery.settled = True
        except LostLease:
            delivery.settled = delivery.lost = True
            logger.warning("job.lease_lost", job_id=str(delivery.claim.id), actor=delivery.claim.actor)
        except (psycopg.Error, TransactionEnded) as exc:
            delivery.stuff_exception(exc)
            if has_no_partition(exc):
                # Not the job's doing: it runs again when the house is kept.
                delivery.connected = False
                broker.keep_house()
            else:
                delivery.fail_after_hooks(exc, broker.encode)
            settlement = conclude(delivery, exc)
        return settlement


def _give_back(delivery: Delivery) -> None:
    conn, transaction = delivery.conn, delivery.transaction
    delivery.conn = delivery.transaction = None
    try:
        if transaction is not None:
            transaction.roll_back()
    finally:
        if conn is not None:
            delivery.pool.release(conn)


def _enter(delivery: Delivery, variable: Any, value: Any) -> None:
    delivery.scope.callback(variable.reset, variable.set(value))
