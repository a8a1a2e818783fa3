"""A stand-in for PgBouncer in transaction mode: many clients, one session, lent for a transaction at a time."""

from __future__ import annotations

import os
import socket
import struct
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from psycopg import pq
from psycopg.conninfo import make_conninfo

_PATIENCE = 20.0


class Pooler:
    """Listens on this machine for clients of the database at *url*, none of whom needs a password."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._server = socket.create_server(("127.0.0.1", 0))
        self._lent = threading.Lock()
        self._session, self._login = _log_in(url)
        self._threads = [threading.Thread(target=self._accept)]
        self._clients: list[socket.socket] = []

    @property
    def url(self) -> str:
        port = self._server.getsockname()[1]
        return make_conninfo(self._url, host="127.0.0.1", hostaddr="127.0.0.1", port=port, sslmode="disable")

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for one in (self._server, *self._clients, self._session):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._login.finish()
        for thread in self._threads:
            thread.join(_PATIENCE)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                client.settimeout(_PATIENCE)
                self._clients.append(client)
                self._threads.append(threading.Thread(target=self._serve, args=[client]))
                self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError, EOFError):
            _startup(client)
            client.sendall(_GREETING)
            while True:
                message = _message(client)
                with self._lent:
                    self._transact(client, message)

    def _transact(self, client: socket.socket, message: bytes) -> None:
        """Pass messages on until the session is in no transaction."""
        while message[:1] != b"X":
            self._session.sendall(message)
            if message[:1] in b"QS" and self._answer(client) == b"I":
                return
            message = _message(client)
        raise EOFError

    def _answer(self, client: socket.socket) -> bytes:
        while True:
            message = _message(self._session)
            client.sendall(message)
            if message[:1] == b"Z":
                return message[5:6]


def _framed(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


_GREETING = b"".join(
    [
        _framed(b"R", struct.pack("!i", 0)),
        _framed(b"S", b"server_version\x0016.0\x00"),
        _framed(b"S", b"client_encoding\x00UTF8\x00"),
        _framed(b"S", b"standard_conforming_strings\x00on\x00"),
        _framed(b"S", b"integer_datetimes\x00on\x00"),
        _framed(b"S", b"DateStyle\x00ISO, MDY\x00"),
        _framed(b"S", b"TimeZone\x00UTC\x00"),
        # A number of its own, as every pooler makes up.
        _framed(b"K", struct.pack("!ii", 2_000_000_001, 1)),
        _framed(b"Z", b"I"),
    ]
)


def _log_in(url: str) -> tuple[socket.socket, pq.abc.PGconn]:
    """A session at the server, with its greeting read; by libpq, whose socket we then use."""
    conn = pq.PGconn.connect(make_conninfo(url, sslmode="disable", gssencmode="disable").encode())
    assert conn.status == pq.ConnStatus.OK, conn.error_message
    # A copy, because libpq closes its own in the end.
    session = socket.socket(fileno=os.dup(conn.socket))
    session.setblocking(True)
    session.settimeout(_PATIENCE)
    return session, conn


def _startup(client: socket.socket) -> None:
    while True:
        (length,) = struct.unpack("!i", _exactly(client, 4))
        body = _exactly(client, length - 4)
        if struct.unpack("!i", body[:4])[0] == 196608:
            return
        client.sendall(b"N")  # neither TLS nor GSS


def _message(source: socket.socket) -> bytes:
    head = _exactly(source, 5)
    return head + _exactly(source, struct.unpack("!i", head[1:])[0] - 4)


def _exactly(source: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length:
        if not (part := source.recv(length - len(received))):
            raise EOFError
        received += part
    return received
