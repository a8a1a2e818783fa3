"""A connection of the sync pool, as an `AsyncConnection` over the same session, for `async def` jobs."""

from __future__ import annotations

from functools import partial
from typing import Any
from weakref import ref

import psycopg
from psycopg._connection_base import BaseConnection


def async_view(conn: psycopg.Connection[Any]) -> psycopg.AsyncConnection[Any]:
    """
    *conn* as an `AsyncConnection`: same session, same transaction, same prepared statements.

    Use one of the two at a time: each has a lock of its own, and the session has one protocol stream. The view must
    not be closed; what it changed on itself ends with it.
    """
    view: psycopg.AsyncConnection[Any] = psycopg.AsyncConnection(conn.pgconn)
    view._prepared = conn._prepared
    view._adapters = conn.adapters
    view._notice_handlers = conn._notice_handlers
    view._notify_handlers = conn._notify_handlers
    # Making the view has pointed the session's handlers at the view, which is gone when the job is.
    conn.pgconn.notice_handler = partial(BaseConnection._notice_handler, ref(conn))
    conn.pgconn.notify_handler = partial(BaseConnection._notify_handler, ref(conn))
    view._autocommit = conn.autocommit
    view.row_factory = conn.row_factory  # type: ignore[assignment]  # row makers are the same for both kinds
    # Inside `conn.transaction()` an explicit commit is an error on the connection, so it is one on the view.
    view._num_transactions = conn._num_transactions
    view._pool = conn._pool  # only looked at: a pooled connection is not closed on exit
    return view
