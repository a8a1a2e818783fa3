"""Binding: which connection the sends of a thread or task belong to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import psycopg

AnyConnection = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]

_bound: ContextVar[AnyConnection | None] = ContextVar("bound", default=None)


def bound_connection() -> AnyConnection | None:
    """The connection that a send on this thread or task belongs to, if any."""
    return _bound.get()


@contextmanager
def bind(conn: AnyConnection) -> Iterator[None]:
    """
    Make every send within the block part of *conn*'s transaction: the jobs exist only if it commits.

    With a `psycopg.AsyncConnection` the sends are `await charge.send_async(42)`; a `send` would block its event loop
    and is refused.

    Raises:
        TypeError: *conn* is neither a `psycopg.Connection` nor a `psycopg.AsyncConnection`.
    """
    check_connection("bind()", conn)
    token = _bound.set(conn)
    try:
        yield
    finally:
        _bound.reset(token)


def check_connection(where: str, conn: object) -> None:
    """
    Refuse what is no connection of psycopg's.

    Raises:
        TypeError: Names what it is, and how to get at a connection of SQLAlchemy's.
    """
    # Behind a connection that works in threads is one of ours.
    if not isinstance(getattr(conn, "pooled", conn), psycopg.Connection | psycopg.AsyncConnection):
        raise TypeError(
            f"{where} takes a psycopg.Connection or AsyncConnection, not"
            f" {type(conn).__module__}.{type(conn).__qualname__};"
            " of a SQLAlchemy session that is session.connection().connection.driver_connection"
        )
