"""The connection class of the pool: one whose end is the end of its session on the server."""

from __future__ import annotations

import os
import select
import socket
from contextlib import suppress
from typing import Any

import psycopg

# Far longer than a healthy server needs (about 2 ms), far shorter than anybody's patience.
_GOODBYE = 2.0


class Connection(psycopg.Connection[Any]):
    """
    A `psycopg.Connection` whose `close` returns when the server has ended the session.

    Otherwise a replacement could open while the old session still counts, and the cap on sessions would be a cap on
    our own variables only. Postgres leaves its socket open until the backend has exited, just so that a client can
    wait for it (src/backend/libpq/pqcomm.c, `socket_close`).
    """

    def close(self) -> None:
        """Send Terminate and wait until the server has ended the session, 2 s at most; twice is harmless."""
        if self.closed:
            return
        if self.is_busy:
            # A server in the middle of a statement hears Terminate only when that is over.
            with suppress(psycopg.Error):
                self.cancel_safe(timeout=_GOODBYE)
        copy = self._socket_copy()
        super().close()
        if copy is not None:
            with copy:
                _wait_for_end(copy)

    @property
    def is_busy(self) -> bool:
        """Whether the server is working on a statement."""
        return not self.closed and self.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE

    def is_live(self) -> bool:
        """
        Whether the idle session still answers; costs nothing unless the server has said something meanwhile.

        An idle socket is readable only when the server closed it or sent a notice. libpq reads the last words of a
        terminated session without complaint, so readable must lead to a real question.
        """
        if self.closed:
            return False
        if not _readable(self.pgconn.socket, timeout=0):
            return True
        try:
            self.pgconn.exec_(b"")
            return self.pgconn.status == psycopg.pq.ConnStatus.OK
        except psycopg.Error:
            return False

    def _socket_copy(self) -> socket.socket | None:
        try:
            return socket.socket(fileno=os.dup(self.pgconn.socket))
        except (OSError, psycopg.Error):
            return None  # the connection is broken: there is no session to wait for


def _readable(fd: int, *, timeout: float) -> bool:
    poll = select.poll()  # select() fails from file descriptor 1024 on
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def _wait_for_end(sock: socket.socket) -> None:
    with suppress(OSError):  # a reset is an end as well
        sock.settimeout(_GOODBYE)
        while sock.recv(4096):
            pass
