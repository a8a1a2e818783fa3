"""Group commit: outcomes of many jobs, written together, none of them held up or spoiled by another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any
from uuid import UUID

import psycopg

from worker import clock, log
from worker.queue.history import History, has_no_partition
from worker.queue.schema import Schema
from worker.queue.settlement import Outcome, Settlement, settle, storable

logger = log.get_logger(__name__)

# After which an outcome that met somebody's lock is tried again.
_LOCKED_AGAIN = 1.0


class Pending:
    """An outcome that is to be written; *written* tells who waits for it whether its token still held."""

    __slots__ = ("settlement", "told", "written")

    def __init__(self, settlement: Settlement, written: Future[bool] | None = None) -> None:
        self.settlement = settlement
        self.written = written
        self.told = False

    def tell(self, held: bool) -> None:
        """It is durable, or will never be."""
        self.told = True
        if self.written is not None:
            self.written.set_result(held)


class GroupCommit:
    """
    The outcomes that are still to be written.

    `add` is for any thread, everything else for the dispatcher's.

    Args:
        told: Hears of each outcome, once it is durable, whether its token still held.
    """

    def __init__(self, schema: Schema, history: History, told: Callable[[Settlement, bool], None]) -> None:
        self._schema = schema
        self._history = history
        self._told = told
        self._pending: deque[Pending] = deque()
        self._locked: list[Pending] = []
        self._locked_until = 0.0

    def __bool__(self) -> bool:
        """Whether something can be written now."""
        return bool(self._pending)

    def add(self, settlement: Settlement, written: Future[bool] | None = None) -> None:
        """Take an outcome; *written*, which few wait for, tells once it is durable whether its token still held."""
        self._pending.append(Pending(settlement, written))

    @property
    def proofs(self) -> set[tuple[UUID, int]]:
        """The runs whose outcomes are not written yet."""
        return {item.settlement.proof for item in [*self._pending, *self._locked]}

    @property
    def num_locked(self) -> int:
        """Outcomes that wait for somebody else's lock on their job."""
        return len(self._locked)

    @property
    def again_at(self) -> float:
        """When to try those again, monotonic."""
        return self._locked_until if self._locked else float("inf")

    def take(self, *, last: bool = False) -> list[Pending]:
        """
        Everything that can be written now, to be confirmed, put back or written apart.

        Args:
            last: Those that met a lock at once, because there is no later.
        """
        batch: list[Pending] = []
        if last or clock.monotonic() >= self._locked_until:
            batch, self._locked = self._locked, []
        while self._pending:
            batch.append(self._pending.popleft())
        return batch

    def write_special(self, conn: psycopg.Connection[Any], batch: list[Pending]) -> list[Pending]:
        """
        Write those of *batch* that take several statements, and cannot go with others in one trip.

        Returns:
            The rest, to be confirmed, put back or written apart.

        Raises:
            psycopg.Error: The database is away, or takes no writes; nothing is forgotten, of the rest neither.
        """
        rest = [item for item in batch if item.settlement.is_one_statement]
        if len(rest) < len(batch):
            try:
                self.write_apart(conn, [item for item in batch if not item.settlement.is_one_statement])
            except psycopg.Error:
                self.put_back(rest)
                raise
        return rest

    def confirm(self, batch: list[Pending], lost: set[UUID]) -> None:
        """*batch* is durable, but for the *lost*, whose tokens did not hold any more."""
        for item in batch:
            settlement = item.settlement
            held = not (lost and settlement.id in lost)
            if not held:
                logger.warning("job.lease_lost", job_id=str(settlement.id), outcome=settlement.outcome.value)
            self._told(settlement, held)
            item.tell(held)

    def put_back(self, batch: list[Pending]) -> None:
        """Nobody knows whether *batch* was written: what is repeated changes nothing. What was told is not repeated."""
        self._pending.extendleft(reversed([item for item in batch if not item.told and item not in self._locked]))

    def write_apart(self, conn: psycopg.Connection[Any], batch: list[Pending]) -> None:
        """
        Write *batch* although something is wrong with it: in halves, until what is in the way is alone.

        Raises:
            psycopg.Error: The database is away, or takes no writes; nothing is forgotten.
        """
        try:
            self._write(conn, batch)
        except psycopg.Error:
            self.put_back(batch)
            raise

    def abandon(self) -> None:
        """Nobody writes any more: whoever waits must know that the job was given back."""
        self._pending.extend(self._locked)
        self._locked = []
        with suppress(IndexError):
            while True:
                item = self._pending.popleft()
                settlement = item.settlement
                logger.warning("job.lease_lost", job_id=str(settlement.id), outcome=settlement.outcome.value)
                item.tell(False)

    def _write(self, conn: psycopg.Connection[Any], batch: list[Pending]) -> None:
        try:
            owned = self._settle(conn, [item.settlement for item in batch])
        except psycopg.errors.LockNotAvailable:
            self._write_later(conn, batch)
            return
        except (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction):
            raise
        except psycopg.Error as exc:
            self._write_apart(conn, batch, exc)
            return
        self.confirm(batch, {item.settlement.id for item in batch} - owned)

    def _settle(self, conn: psycopg.Connection[Any], settlements: list[Settlement]) -> set[UUID]:
        try:
            return settle(conn, self._schema, settlements)
        except psycopg.errors.CheckViolation as exc:
            if not has_no_partition(exc):
                raise
            # The history ends before today: this process could not keep house for a week.
            self._history.maintain(conn)
            return settle(conn, self._schema, settlements)

    def _write_later(self, conn: psycopg.Connection[Any], batch: list[Pending]) -> None:
        """Somebody else's transaction has locked the row of one job in *batch*: the others must not wait for it."""
        if len(batch) > 1:
            self._write_halves(conn, batch)
            return
        logger.warning(
            "job.locked", job_id=str(batch[0].settlement.id), reason="its row is locked by another transaction"
        )
        self._locked.extend(batch)
        self._locked_until = clock.monotonic() + _LOCKED_AGAIN

    def _write_apart(self, conn: psycopg.Connection[Any], batch: list[Pending], exc: psycopg.Error) -> None:
        """One outcome of *batch* cannot be stored: halve until it is found, and bury that job with the reason."""
        if len(batch) > 1:
            self._write_halves(conn, batch)
            return
        [item] = batch
        settlement = item.settlement
        if settlement.outcome is Outcome.DEAD and not settlement.following:
            raise exc
        logger.error("job.unsettleable", job_id=str(settlement.id), reason=str(exc))
        reason = storable(f"its outcome ({settlement.outcome}) could not be stored: {exc}")
        buried = Settlement(settlement.id, settlement.token, Outcome.DEAD, error=reason)
        item.settlement = buried
        self._write(conn, batch)

    def _write_halves(self, conn: psycopg.Connection[Any], batch: list[Pending]) -> None:
        middle = len(batch) // 2
        self._write(conn, batch[:middle])
        self._write(conn, batch[middle:])
