"""The outermost middleware: a job's transaction, from before everybody else's hooks to after them."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import psycopg
from dramatiq.middleware import Middleware, SkipMessage

from worker import log
from worker.errors import LostLease, TransactionEnded
from worker.pool import holder, mark
from worker.queue.abilities import RunAbilities
from worker.queue.actor import Job
from worker.queue.conclusion import conclude
from worker.queue.delivery import Delivery, current
from worker.queue.dispatcher import Dispatcher
from worker.queue.finish import begin, take_for_statements
from worker.queue.history import has_no_partition
from worker.queue.job_transaction import JobTransaction
from worker.queue.new_job import NewJob
from worker.queue.progress import Progress, write_last_progress
from worker.queue.schema import Schema
from worker.queue.settlement import Outcome, Settlement, settle

logger = log.get_logger(__name__)


class Rows(Protocol):
    """What a job's transaction needs of its broker."""

    @property
    def schema(self) -> Schema: ...

    def encode(self, message: Delivery, delay: int | None) -> NewJob: ...

    def keep_house(self) -> None: ...

    @property
    def dispatcher(self) -> Dispatcher | None: ...


class Transaction(Middleware):
    """
    Opens the transaction of a job that takes a connection, and ends it.

    First of all before-hooks and last of all after-hooks, so that retries, callbacks and pipelines are known when it
    commits. A hook cannot veto an acknowledgement in Dramatiq, hence what counts is the settlement recorded here:
    only a run whose settlement was written is ever taken off the queue.
    """

    @property
    def actor_options(self) -> set[str]:
        """`transaction=False`: the job's connection commits each statement."""
        return {"transaction"}

    def before_process_message(self, broker: Rows, delivery: Delivery) -> None:  # type: ignore[override]  # ours, of our broker
        delivery.started = True
        # Left last of all, when the run's own connection is back.
        delivery.scope.callback(delivery.pool.reclaim, delivery.holder)
        _enter(delivery, current, delivery)
        _enter(delivery, holder, delivery.holder)
        _enter(delivery, mark, delivery.mark)
        delivery.abilities = partial(RunAbilities, broker)
        if isinstance(delivery.actor, Job) and delivery.takes_connection:
            try:
                if delivery.actor.options.get("transaction", True):
                    begin(delivery, broker.schema, binding=not delivery.actor.signature.is_async)
                else:
                    take_for_statements(delivery)
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

    def _end(self, broker: Rows, delivery: Delivery, exception: BaseException | None) -> Settlement:
        try:
            settlement = conclude(delivery, exception)
            if delivery.transaction is not None and settlement.outcome is Outcome.DONE:
                return self._commit(broker, delivery, delivery.transaction, settlement)
            return settlement
        finally:
            # What was not committed is rolled back on the way.
            delivery.scope.close()

    def _commit(
        self, broker: Rows, delivery: Delivery, transaction: JobTransaction, settlement: Settlement
    ) -> Settlement:
        """Settle within the job's transaction and commit both, or neither; returns what became of the job."""
        try:
            if (said := _unwritten(broker, delivery)) is None:
                transaction.commit(settlement)
            else:
                transaction.commit_with(lambda conn: _settle_saying(conn, broker.schema, delivery, settlement, said))
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


def _unwritten(broker: Rows, delivery: Delivery) -> Progress | None:
    return None if broker.dispatcher is None else broker.dispatcher.reports.unwritten(delivery.claim.proof)


def _settle_saying(
    conn: psycopg.Connection[Any], schema: Schema, delivery: Delivery, settlement: Settlement, said: Progress
) -> bool:
    """Write a run's outcome and what it has said last of its progress; whether its token held."""
    owned = bool(settle(conn, schema, [settlement]))
    if owned:
        write_last_progress(conn, schema, settlement.proof, delivery.claim.attempt, said)
    return owned


def _enter(delivery: Delivery, variable: Any, value: Any) -> None:
    delivery.scope.callback(variable.reset, variable.set(value))
