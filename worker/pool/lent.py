"""What is lent to coroutines: a connection that they know, and hold only until it is given back."""

from __future__ import annotations

from weakref import ref

import psycopg

from worker.pool.connection import Connection


class Lent:
    """What coroutines have of a connection."""

    _held: Connection | None
    _known: ref[Connection]

    def _lend(self, conn: Connection) -> None:
        self._held, self._known = conn, ref(conn)

    @property
    def pooled(self) -> Connection:
        """
        The connection behind it; whoever holds this holds that too, until it is given back.

        Raises:
            psycopg.OperationalError: It was given back: what is said on it from then on is the next one's.
        """
        if self._held is None:
            raise psycopg.OperationalError("the connection was given back")
        return self._held

    def let_go(self) -> None:
        """It is given back: who still knows it, if only in garbage, must not keep the connection from being missed."""
        self._held = None

    @property
    def is_given_back(self) -> bool:
        """Whether it was let go."""
        return self._held is None
