"""A job's transaction on its connection: begun with the job's first statement, and committed with its outcome."""

from __future__ import annotations

from collections.abc import Callable
from typing import LiteralString

import psycopg
from psycopg.pq import TransactionStatus

from worker import log
from worker.errors import LostLease, TransactionEnded
from worker.pool import Connection
from worker.queue.schema import Schema
from worker.queue.settlement import Settlement, settle
from worker.queue.statements import FINISH_JOB

logger = log.get_logger(__name__)

# The job's own limits end before the last statements, no watchdog reaches them any more, and a deferred constraint or
# somebody's lock must not keep a slot for ever.
_LIMITS: LiteralString = "SET LOCAL statement_timeout = '10s'; SET LOCAL lock_timeout = '5s'"
# No statement timeout reaches what a COMMIT does by itself.
_COMMIT: LiteralString = "SET CONSTRAINTS ALL IMMEDIATE; COMMIT"
_FINISH: LiteralString = "carpool_finish"


class JobTransaction:
    """
    The one transaction of a run; making it promises it, and the job's first statement begins it.

    It speaks to libpq itself: through psycopg's cursors, beginning and ending cost a job more than its own statement.
    Explicit commits of the job are refused, as within a block of psycopg's, because they would split its effect.
    """

    def __init__(self, conn: Connection, schema: Schema) -> None:
        self._conn = conn
        self._schema = schema
        conn.num_begun = 0
        conn._num_transactions += 1
        self._open = True

    def commit(self, settlement: Settlement) -> None:
        """
        Write the job's success and commit; both, or neither and it raises. What then is left to do is `roll_back`.

        Raises:
            LostLease: The job belongs to another delivery by now.
            TransactionEnded: The job has ended its transaction by itself.
            psycopg.Error: As the server, or the network, refused it.
        """
        if settlement.following:
            self.commit_with(lambda conn: bool(settle(conn, self._schema, [settlement])))
            return
        self._check_open()
        begin = self._begin_if_not_begun()
        end = f"{begin}{_LIMITS}; {self._finish(settlement)}; {_COMMIT}"
        try:
            self._conn.command(end.encode())
        except psycopg.errors.InvalidTextRepresentation as exc:
            if "carpool lost the lease" in str(exc):
                raise LostLease(f"job {settlement.id} belongs to another delivery by now") from exc
            raise
        self._close()

    def commit_with(self, write: Callable[[Connection], bool]) -> None:
        """Commit with what *write* writes, unless it tells that the job is another's by now; raises as `commit`."""
        self._check_open()
        self._conn.command(f"{self._begin_if_not_begun()}{_LIMITS}".encode())
        if not write(self._conn):
            raise LostLease("the job belongs to another delivery by now")
        self._conn.command(_COMMIT.encode())
        self._close()

    def roll_back(self) -> None:
        """End it without its effects; twice is harmless. A connection in doubt is closed: the pool makes another."""
        if not self._open:
            return
        self._close()
        status = self._conn.pgconn.transaction_status
        if status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
            try:
                self._conn.command(b"ROLLBACK")
            except psycopg.Error as exc:
                logger.debug("job.rollback_failed", reason=str(exc))
        if self._conn.pgconn.transaction_status != TransactionStatus.IDLE or self._conn._num_transactions:
            self._conn.close()

    def _begin_if_not_begun(self) -> str:
        """A job that has said nothing to the server has not begun its transaction either."""
        return "" if self._conn.num_begun else f"{self._conn._get_tx_start_command().decode()}; "

    def _close(self) -> None:
        self._open = False
        self._conn._num_transactions -= 1

    def _check_open(self) -> None:
        """COMMIT of a failed transaction is a silent ROLLBACK, and a job can end its transaction by plain SQL."""
        status = self._conn.pgconn.transaction_status
        if not self._open:
            raise TransactionEnded("the job went on although its block of `ctx.finish()` failed: let it raise")
        if status == TransactionStatus.INERROR:
            raise psycopg.errors.InFailedSqlTransaction(
                "the job went on after an SQL error in its transaction: use a savepoint, `with conn.transaction()`,"
                " around a statement that may fail"
            )
        ended = self._conn.num_begun > 1 or (self._conn.num_begun == 1 and status != TransactionStatus.INTRANS)
        if (ended or self._conn.closed) and not self._conn.broken:
            raise TransactionEnded(
                "the job ended its own transaction or closed its connection: leave both to the worker"
            )

    def _finish(self, settlement: Settlement) -> str:
        """The statement that settles the job, or fails if that is another delivery's by now."""
        job_id, token = settlement.id, int(settlement.token)
        if self._conn.is_pooled:
            # What is prepared would stay in a session that is the next one's, and be missing in the next.
            return self._schema.render(FINISH_JOB) % {"id": f"'{job_id}'::uuid", "token": f"{token}::bigint"}
        self._prepare()
        return f"EXECUTE {_FINISH} ('{job_id}', {token})"

    def _prepare(self) -> None:
        """
        Prepare the finishing statement once a session.

        It is entered into psycopg's own books, under a key that no query of its can have, because psycopg deallocates
        everything after a rollback or a DDL: what it forgets, this forgets with it.
        """
        books = self._conn._prepared
        mark = (f"{_FINISH} in {self._schema.name}".encode(), ())
        if mark in books._names and not books._to_flush:
            return
        text = self._schema.render(FINISH_JOB) % {"id": "$1", "token": "$2"}
        books.clear()
        books._to_flush.clear()
        self._conn.command(f"DEALLOCATE ALL; PREPARE {_FINISH} (uuid, bigint) AS {text}".encode())
        books._names[mark] = _FINISH.encode()
