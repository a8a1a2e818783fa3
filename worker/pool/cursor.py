"""Cursors of the pool: a transaction's BEGIN travels with its first statement, and the checkout is told what is run."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import generators
from psycopg._preparing import Prepare
from psycopg.pq import ExecStatus, TransactionStatus

from worker.pool.mark import marked

if TYPE_CHECKING:
    from psycopg.abc import Params, Query

Gen = Generator[Any, Any, Any]

_HAS_PIPELINES = psycopg.capabilities.has_pipeline()
# BEGIN, its name, PREPARE, the statement, the mark of the end; behind each, nothing.
_MOST_ANSWERS = 10
_COPYING = (ExecStatus.COPY_IN, ExecStatus.COPY_OUT, ExecStatus.COPY_BOTH)
# Looked up at each statement.
_IDLE = TransactionStatus.IDLE
_COMMAND_OK = ExecStatus.COMMAND_OK


class BeginsAlong:
    """
    A connection that leaves BEGIN to the cursor whose statement opens the transaction.

    So a transaction can be promised that has not begun: within it, psycopg counts it (`_num_transactions`) and the
    server does not know of it yet.
    """

    begin_along = False
    """Whether the statement that is being executed is to send BEGIN ahead of itself."""

    def _start_query(self) -> Gen:
        # Copies, streams and cursors on the server begin as psycopg has it, by a round trip of its own.
        if not self.begin_along:
            yield from super()._start_query()  # type: ignore[misc]  # of psycopg's connections

    def _exec_command(self, command: Any, *args: Any, **kwargs: Any) -> Gen:
        this: Any = self
        begins = isinstance(command, bytes) and command.startswith(b"BEGIN") and this._pipeline is None
        if not begins or not (name := self.name_in_job):
            return (yield from super()._exec_command(command, *args, **kwargs))  # type: ignore[misc]
        this._check_connection_ok()
        # psycopg takes one answer only.
        this.pgconn.send_query(command + b"; " + _naming(name))
        for result in (yield from generators.execute(this.pgconn)):
            if result.status != _COMMAND_OK:
                raise psycopg.errors.error_from_result(result, encoding=this.info.encoding)
        return None

    @property
    def name_in_job(self) -> bytes:
        """What `application_name` is to be while the job that has it uses it, as SQL; empty when no job has it."""
        this: Any = self
        if (checkout := this.checkout) is None or not checkout.mark:
            return b""
        return marked(this.pgconn.parameter_status(b"application_name") or b"", checkout.mark)

    def _check_intrans_gen(self, attribute: str) -> Gen:
        self._refuse_if_promised(f"change {attribute!r}")
        yield from super()._check_intrans_gen(attribute)  # type: ignore[misc]

    def _tpc_begin_gen(self, xid: Any) -> Gen:
        self._refuse_if_promised("start a two-phase transaction")
        yield from super()._tpc_begin_gen(xid)  # type: ignore[misc]

    @property
    def is_untouched(self) -> bool:
        """Whether no transaction has begun or is promised, so that there is nothing to end and nobody to ask."""
        this: Any = self
        return (
            this.pgconn.transaction_status == _IDLE
            and not this._num_transactions
            and this._pipeline is None
            and this._tpc is None
        )

    @property
    def is_promised(self) -> bool:
        """Whether a transaction is promised, and has not begun."""
        this: Any = self
        return bool(this._num_transactions and this.pgconn.transaction_status == _IDLE)

    def _refuse_if_promised(self, what: str) -> None:
        if self.is_promised:
            raise psycopg.ProgrammingError(f"can't {what} now: a transaction is in progress")


class FirstStatement:
    """
    A cursor that sends BEGIN and the first statement of a transaction together and waits once for both.

    psycopg waits for BEGIN by itself: with one statement in a transaction, that is a third of its round trips.
    """

    _conn: Any
    _pgconn: Any
    _encoding: str

    def _execute_gen(self, query: Query, params: Params | None = None, **options: Any) -> Gen:
        conn = self._conn
        _tell(conn, query)
        if (
            conn.pgconn.transaction_status != _IDLE
            or conn._autocommit
            or conn._pipeline is not None
            or not _HAS_PIPELINES
            # A session that has ended meanwhile says why, but not to a pipeline.
            or conn.has_news()
        ):
            yield from super()._execute_gen(query, params, **options)  # type: ignore[misc]  # of psycopg's cursors
            return
        conn.begin_along = True
        try:
            yield from super()._execute_gen(query, params, **options)  # type: ignore[misc]
        finally:
            conn.begin_along = False

    def _maybe_prepare_gen(self, pgq: Any, *, prepare: bool | None = None, binary: bool | None = None) -> Gen:
        conn = self._conn
        if conn.begin_along:
            begin = conn._get_tx_start_command()
            if _may_follow(pgq.query):
                yield from self._begin_and_execute(begin, pgq, prepare, binary)
                return
            yield from conn._exec_command(begin)
        yield from super()._maybe_prepare_gen(pgq, prepare=prepare, binary=binary)  # type: ignore[misc]

    def _begin_and_execute(self, begin: bytes, pgq: Any, prepare: bool | None, binary: bool | None) -> Gen:
        pgconn: Any = self._pgconn
        this: Any = self
        books = self._conn._prepared
        preparing, name = this._get_prepared(pgq, prepare)
        pgconn.enter_pipeline_mode()
        pgconn.send_query_params(begin, None)
        num_ahead = 1
        if in_job := self._conn.name_in_job:
            pgconn.send_query_params(_naming(in_job), None)
            num_ahead += 1
        try:
            if preparing is Prepare.NO:
                this._execute_send(pgq, force_extended=True, binary=binary)
            else:
                if preparing is Prepare.SHOULD:
                    this._send_prepare(name, pgq)
                this._send_query_prepared(name, pgq, binary=binary)
        except psycopg.Error:
            # libpq does not take it, say because of its 70,000 parameters: then BEGIN goes alone.
            pgconn.pipeline_sync()
            yield from _answers(pgconn, num_ahead)
            raise
        pgconn.pipeline_sync()
        *ahead, results = yield from _answers(pgconn, num_ahead + (2 if preparing is Prepare.SHOULD else 1))
        for result in ahead:
            if result[0].status != _COMMAND_OK:
                raise psycopg.errors.error_from_result(result[0], encoding=this._encoding)
        # Only now: what the server has refused to prepare must not be in the books.
        key = books.maybe_add_to_cache(pgq, preparing, name)
        if key is not None:
            books.validate(key, preparing, name, results)
        this._check_results(results)
        this._set_results(results)


def _naming(name: bytes) -> bytes:
    # The server tells of the change by itself, in what it answers anyway, and undoes it at the transaction's end.
    return b"SET LOCAL application_name = " + name


def _answers(pgconn: Any, num: int) -> Gen:
    """The results of each of *num* commands of the pipeline, which is left; fewer when the session ends meanwhile."""
    answers = [(yield from generators.execute(pgconn))]
    try:
        while len(answers) < num:
            answers.append((yield from generators.fetch_many(pgconn)))
        if answers[-1][0].status not in _COPYING:
            yield from generators.fetch_many(pgconn)  # the mark of its end
            pgconn.exit_pipeline_mode()
    except psycopg.OperationalError:
        # A session that is terminated says why before it is gone, and that is the error to tell.
        if answers[-1][0].status != ExecStatus.FATAL_ERROR:
            raise
    return answers


def leave_pipeline(pgconn: Any) -> None:
    """Undo what an interrupt has left of a first statement that was answered; one that was not stays in the middle."""
    if not pgconn.pipeline_status:
        return
    with suppress(psycopg.Error):
        for _ in range(_MOST_ANSWERS):
            if pgconn.is_busy():
                return
            pgconn.get_result()
        pgconn.exit_pipeline_mode()


class Cursor(FirstStatement, psycopg.Cursor[Any]):
    """The pool's cursor for threads."""

    def executemany(self, query: Query, params_seq: Iterable[Params], **options: Any) -> None:
        _tell(self._conn, query)
        super().executemany(query, params_seq, **options)


class AsyncCursor(FirstStatement, psycopg.AsyncCursor[Any]):
    """The pool's cursor for coroutines."""

    async def executemany(self, query: Query, params_seq: Iterable[Params], **options: Any) -> None:
        _tell(self._conn, query)
        await super().executemany(query, params_seq, **options)


def _tell(conn: Any, query: object) -> None:
    if (checkout := conn.checkout) is not None:
        checkout.statement = query


def _may_follow(query: bytes) -> bool:
    """Whether *query* can be executed in libpq's pipeline: one statement, and none that copies through the client."""
    return b";" not in query and query.lstrip()[:4].upper() != b"COPY"
