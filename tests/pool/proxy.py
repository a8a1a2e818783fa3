"""A network that a test can break: a TCP proxy before the server, and an address that never answers."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Proxy:
    """
    Forwards TCP connections to the server of *conninfo*, from a thread.

    Args:
        delay: Seconds that each new connection waits before its first byte is forwarded.
    """

    def __init__(self, conninfo: str, *, delay: float = 0.0) -> None:
        self._target = _address(conninfo)
        self._delay = delay
        self._silent = False
        self.sent = bytearray()
        """Everything that clients have sent."""
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        port = self._listener.getsockname()[1]
        self.conninfo = make_conninfo(conninfo, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable")
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def go_silent(self) -> None:
        """From now on nothing passes, in either direction, and nobody is told."""
        self._silent = True

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        self._listener.close()

    def _accept(self) -> None:
        self._listener.settimeout(0.05)
        while not self._over.is_set():
            with suppress(TimeoutError):
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._forward, args=(client,))
                self._threads.append(thread)
                thread.start()

    def _forward(self, client: socket.socket) -> None:
        with client, socket.socket(self._target[0]) as server, selectors.DefaultSelector() as selector:
            self._over.wait(self._delay)
            server.connect(self._target[1])
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while not self._over.is_set():
                for key, _ in selector.select(0.05):
                    if self._silent:
                        self._over.wait()
                        return
                    assert isinstance(key.fileobj, socket.socket)
                    try:
                        said = key.fileobj.recv(65536)
                        key.data.sendall(said)
                    except OSError:
                        return
                    if not said:
                        return
                    if key.fileobj is client:
                        self.sent += said


@contextmanager
def proxied(conninfo: str, *, delay: float = 0.0) -> Iterator[Proxy]:
    proxy = Proxy(conninfo, delay=delay)
    try:
        yield proxy
    finally:
        proxy.close()


@contextmanager
def black_hole() -> Iterator[str]:
    """A conninfo whose server takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        yield f"host=127.0.0.1 port={listener.getsockname()[1]} user=someone dbname=shop sslmode=disable"


def _address(conninfo: str) -> tuple[socket.AddressFamily, tuple[str, int] | str]:
    with psycopg.connect(conninfo) as conn:
        host, port = conn.info.host, conn.info.port
    if host.startswith("/"):
        return socket.AF_UNIX, f"{host}/.s.PGSQL.{port}"
    return socket.AF_INET, (str(conninfo_to_dict(conninfo).get("hostaddr", host)), port)
