"""The connection class of the pool: one whose end is the end of its session on the server."""

from __future__ import annotations

import os
import select
import socket
import traceback
from asyncio.events import _get_running_loop
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import current_thread, get_ident
from typing import Any, Self

import psycopg
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus

from worker import clock
from worker.pool.cursor import BeginsAlong, Cursor, leave_pipeline

# Far longer than a healthy server needs (about 2 ms), far shorter than anybody's patience.
_GOODBYE = 2.0
# How long a forgotten user's statement may take to notice its cancel before the socket is shut under it.
_LET_GO = 1.0
# The other side has closed, whether or not all that it said was read; elsewhere than on Linux poll() says so unasked.
_HANGUP = getattr(select, "POLLRDHUP", 0)
_BAD = ConnStatus.BAD  # looked up at each checkout and return
_IDLE = TransactionStatus.IDLE
_CANCEL_INTERVAL = 0.1
_TERMINATE = b"X\x00\x00\x00\x04"


class Connection(BeginsAlong, psycopg.Connection[Any]):
    """
    A `psycopg.Connection` whose `close` returns when the server has ended the session.

    Otherwise a replacement could open while the old session still counts, and the cap on sessions would be a cap on
    our own variables only. Postgres leaves its socket open until the backend has exited, just so that a client can
    wait for it (src/backend/libpq/pqcomm.c, `socket_close`).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cursor_factory = Cursor
        # Of classes that know this one; it does not know them.
        self.checkout: Any = None
        """The `Checkout` that says who has it, None while it is idle in the pool."""
        self.standard: Any = None
        """The `Standard` to which it is to come back."""
        self.idle_since = clock.monotonic()
        self.is_pooled = False
        """Whether a pooler lends it a session for a transaction at a time."""
        self.answered_at = float("-inf")
        """When it was asked last, and answered."""
        self.num_begun = 0
        """How often BEGIN was sent; whoever counts sets it to 0."""
        self.revoked = False
        """Whether it was taken from somebody who may still use it."""
        self.server_pid = 0
        """The number of its session at the server, known when it has been made."""
        self.patience: float | None = None
        """Seconds that an answer may take; None for as long as the network believes that somebody is there."""
        self.is_unconfirmed = False
        """Whether it broke without a word of the server, which may be at work for it until it notices that."""
        self._severed = self.is_silent = False
        self._end: socket.socket | None = None
        self._news: select.poll | None = None

    @classmethod
    def connect(cls, *args: Any, **kwargs: Any) -> Self:
        """
        As psycopg's, but an attempt that is given up is over when this raises.

        psycopg leaves its socket to the garbage collector, because the error keeps the frames that know of it. A server
        that was too busy, or out of reach, would take it up later: a session that nobody has, for minutes perhaps.
        """
        try:
            return super().connect(*args, **kwargs)
        except psycopg.Error as exc:
            traceback.clear_frames(exc.__traceback__)
            raise

    @property
    def closed(self) -> bool:
        """Whether it is of no more use; libpq may not have noticed that its socket was shut."""
        return self._severed or self.pgconn.status == _BAD

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        """
        Whatever is said to the server passes here: the thread that last used a connection is the one that has it.

        So one that was handed to another thread is not taken from that one when the first ends.
        """
        self._note_use()
        try:
            if self.patience is not None:
                return self._wait_patiently(*args, **kwargs)
            return super().wait(*args, **kwargs)
        except BaseException as exc:
            if self._pipeline is None:
                leave_pipeline(self.pgconn)
            self.note_break(exc)
            raise

    def _note_use(self) -> None:
        checkout = self.checkout
        if checkout is not None and (
            checkout.thread_id != get_ident()
            or checkout.loop is not None
            or _get_running_loop() is not None
            # The number of a thread that has ended is given to another. Not by `is_alive()`: before Python 3.13 an
            # interrupt that lands in there makes a thread that lives count as ended (`_wait_for_tstate_lock`).
            or checkout.thread is not current_thread()
        ):
            checkout.used_here()

    def note_break(self, exc: BaseException) -> None:
        """
        Remember it if *exc* says that the connection broke while an answer was waited for.

        Something on the way may have done that, and a session in the middle of a statement does not notice it before
        the server looks.
        """
        if self.pgconn.status == _BAD and isinstance(exc, psycopg.OperationalError) and exc.sqlstate is None:
            self.is_unconfirmed = True

    def _wait_patiently(self, *args: Any, **kwargs: Any) -> Any:
        """A network, or something in it, may drop everything and tell nobody: then no statement timeout is heard of."""
        with suppress(psycopg.errors._WaitTimeout):
            # Whoever goes on with a silent one, say to leave a pipeline, does not wait again.
            if not self.is_silent:
                return super().wait(*args, **{**kwargs, "timeout": self.patience})
        self.is_silent = True
        raise psycopg.OperationalError(f"the server did not answer within {self.patience:g} s")

    def set_autocommit(self, value: bool) -> None:
        """As psycopg's, without its lock and generator where nobody can be in the way: the server is told nothing."""
        if self.is_untouched:
            self._autocommit = bool(value)
        else:
            super().set_autocommit(value)

    def commit(self) -> None:
        """As psycopg's, and without them where there is nothing to commit, as at the end of a block in autocommit."""
        if self.is_untouched:
            self._note_use()
        else:
            super().commit()

    def _get_tx_start_command(self) -> bytes:
        self.num_begun += 1
        return super()._get_tx_start_command()

    def command(self, commands: bytes) -> None:
        """
        Run *commands* past psycopg's cursors: one message, one answer; one that fails keeps those behind it from it.

        Raises:
            psycopg.Error: As the server, or the network, refused them.
        """
        result = self.pgconn.exec_(commands)
        if result.status != ExecStatus.COMMAND_OK and result.status != ExecStatus.TUPLES_OK:
            refused = psycopg.errors.error_from_result(result, encoding=self.info.encoding)
            self.note_break(refused)
            raise refused

    @contextmanager
    def transaction(self, *args: Any, **kwargs: Any) -> Iterator[psycopg.Transaction]:
        """As psycopg's: nested in a transaction that is only promised, it begins that one first."""
        if self.is_promised:
            with self.lock:
                self.wait(self._start_query())
            if self._pipeline:
                self._pipeline.sync()
        with super().transaction(*args, **kwargs) as transaction:
            yield transaction

    def close(self, timeout: float = _GOODBYE) -> None:
        """
        Send Terminate and wait *timeout* seconds for the server to end the session; twice is harmless.

        libpq's memory must not be freed under a thread that is inside libpq, so such a thread is first made to leave:
        by a cancel, then by shutting the socket.
        """
        if self.closed:
            return
        self._cancel_statement()
        if not self.lock.acquire(timeout=_LET_GO):
            self._sever()
            return
        try:
            # By now somebody else may have: whoever is made to leave a revoked one closes it on the way out.
            if not self.closed:
                self._end = self._socket_copy()
                super().close()
        finally:
            self.lock.release()
        self.has_ended(0.0 if self.is_silent else timeout)

    def _cancel_statement(self) -> None:
        """
        A server in the middle of a statement hears Terminate only when that is over.

        A cancel that overtakes its statement on the way is lost; so once more until something is answered.
        """
        deadline = clock.monotonic() + _GOODBYE
        while self.is_busy and not self.is_silent and clock.monotonic() < deadline:
            with suppress(psycopg.Error):
                self.cancel_safe(timeout=max(0.1, deadline - clock.monotonic()))
                if not self.is_busy or _readable(self.pgconn.socket, timeout=_CANCEL_INTERVAL):
                    return

    def has_ended(self, timeout: float = 0.0) -> bool:
        """Whether the server has ended the session of this closed connection, within *timeout* seconds."""
        if self.is_unconfirmed:
            return False
        if self._end is not None and _ends(self._end, timeout, drop=True):
            self.forget_end()
        return self._end is None

    def forget_end(self) -> None:
        """Take the session for ended, although the server has not confirmed it."""
        self.is_unconfirmed = False
        end, self._end = self._end, None
        if end is not None:
            end.close()

    def revoke(self, *, by_coroutine: bool = False) -> None:
        """
        End the session although somebody may still be using it: whoever does gets an `OperationalError`.

        Args:
            by_coroutine: It was lent to a coroutine of a loop that still runs. Statements of coroutines keep a pointer
                into libpq's memory while they wait, under a lock that no thread can take: only the socket is shut, and
                the memory lives as long as somebody knows the view.
        """
        self.revoked = True
        if by_coroutine and not self.closed:
            self._cancel_statement()
            self._sever()
        else:
            self.close(_LET_GO)

    def wake(self) -> None:
        """Make whoever waits for an answer on it get an error instead. Its session at the server may live on."""
        if (end := self._socket_copy()) is not None:
            with end, suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _sever(self) -> None:
        """
        Shut the socket, so that the session ends by itself.

        What it says until then is left to who still listens: half of an answer could look like a whole one. Only a
        server that has not come to an end by then has what it says dropped (`has_ended`), as it may wait for that.
        """
        end = self._end = self._socket_copy()
        self._severed = True
        if end is not None:
            with suppress(OSError):
                if not self.pgconn.ssl_in_use:
                    end.sendall(_TERMINATE)  # or the server's log speaks of an unexpected EOF
                end.shutdown(socket.SHUT_WR)
            if _ends(end, _LET_GO, drop=False):
                self.forget_end()

    @property
    def is_busy(self) -> bool:
        """Whether the server is working on a statement."""
        return not self.closed and self.pgconn.transaction_status == TransactionStatus.ACTIVE

    def is_live(self) -> bool:
        """
        Whether the idle session still answers; costs nothing unless the server has said something meanwhile.

        An idle socket is readable only when the server closed it or sent a notice. libpq reads the last words of a
        terminated session without complaint, so readable must lead to a real question.
        """
        if self.closed:
            return False
        return not self.has_news() or self.answers(_GOODBYE)

    def has_news(self) -> bool:
        """Whether the server has said something that nobody asked for: a notice, or goodbye."""
        if self._news is None:
            self._news = select.poll()  # select() fails from file descriptor 1024 on
            self._news.register(self.pgconn.socket, select.POLLIN)
        return bool(self._news.poll(0))

    def answers(self, timeout: float) -> bool:
        """Whether the idle session answers an empty question within *timeout* seconds; blocks no longer than that."""
        deadline = clock.monotonic() + timeout
        if not self.lock.acquire(timeout=timeout):
            return False
        try:
            self.pgconn.send_query(b"")
            while self.pgconn.flush() or self.pgconn.is_busy():
                if not _readable(self.pgconn.socket, timeout=deadline - clock.monotonic()):
                    self.is_silent = True
                    return False
                self.pgconn.consume_input()
            while self.pgconn.get_result() is not None:
                pass
            self.answered_at = clock.monotonic()
            return self.pgconn.status == ConnStatus.OK
        except psycopg.Error:
            return False
        finally:
            self.lock.release()

    def _socket_copy(self) -> socket.socket | None:
        try:
            return socket.socket(fileno=os.dup(self.pgconn.socket))
        except (OSError, psycopg.Error):
            return None  # the connection is broken: there is no session to wait for


def _readable(fd: int, *, timeout: float) -> bool:
    return bool(_polled(fd, select.POLLIN, timeout))


def _polled(fd: int, events: int, timeout: float) -> int:
    poll = select.poll()
    poll.register(fd, events)
    return next((event for _, event in poll.poll(max(0.0, timeout) * 1000)), 0)


def _ends(sock: socket.socket, timeout: float, *, drop: bool) -> bool:
    """Whether the server closes *sock* within *timeout* seconds; *drop* what it still says."""
    deadline = clock.monotonic() + timeout
    if not drop:
        return bool(_polled(sock.fileno(), _HANGUP, timeout) & (_HANGUP | select.POLLHUP | select.POLLERR))
    try:
        while _readable(sock.fileno(), timeout=deadline - clock.monotonic()):
            if not sock.recv(4096, socket.MSG_DONTWAIT):
                return True
    except BlockingIOError:
        return False
    except OSError:
        return True  # a reset is an end as well
    return False
