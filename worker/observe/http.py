"""A few pages over HTTP, from threads of their own, with a deadline on everything."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from worker import clock, log
from worker.config import Address
from worker.errors import ConfigError

logger = log.get_logger(__name__)

# A probe asks and reads within milliseconds; whoever takes longer is hung up on.
_PATIENCE = 5.0
_LOOK = 1.0
_MAX_CLIENTS = 16


class Page(NamedTuple):
    """An answer."""

    status: int
    content_type: str
    body: str


class HttpServer:
    """
    Serves *pages* by path at *address*; a context manager.

    A page is made by its callable on the thread of the client who asked. One that raises is an answer of 500.

    Raises:
        ConfigError: On entering: the address cannot be had.
    """

    def __init__(self, address: Address, pages: Mapping[str, Callable[[], Page]]) -> None:
        self._wanted = address
        self._pages = pages
        self._server: _Server | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def __enter__(self) -> HttpServer:
        try:
            self._server = _Server(self._wanted, self._pages)
        except OSError as exc:
            raise ConfigError(f"http={self._wanted}: nothing can be served there: {exc.strerror or exc}") from exc
        self._thread.start()
        logger.info("http.serving", address=str(self.address))
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        with suppress(OSError):
            # The thread sleeps until somebody asks.
            _connect(self.address, timeout=_LOOK).close()
        self._thread.join(2 * _LOOK)
        if self._server is not None:
            self._server.close()

    @property
    def address(self) -> Address:
        """Where it really serves: the port that 0 was made into."""
        if self._server is None or self._wanted.path:
            return self._wanted
        return Address(self._wanted.host, self._server.server_address[1])

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        assert self._server is not None  # noqa: S101  # made by whoever starts the thread
        while not self._stopped.is_set():
            self._server.handle_request()
            self._server.hang_up(older_than=_PATIENCE)


class _Server(ThreadingHTTPServer):
    """The stdlib's server with a limit on clients, and on the time that each may take from first to last."""

    daemon_threads = True
    block_on_close = False
    timeout = _LOOK

    def __init__(self, address: Address, pages: Mapping[str, Callable[[], Page]]) -> None:
        self.pages = pages
        self._clients: dict[Any, float] = {}
        self._path = Path(address.path) if address.path else None
        if self._path:
            self.address_family = socket.AF_UNIX
            _remove_stale(self._path)
        elif ":" in address.host:
            self.address_family = socket.AF_INET6
        super().__init__(address.path or (address.host, address.port), _Handler)  # type: ignore[arg-type]  # or a path

    def server_bind(self) -> None:
        # Not HTTPServer's, which looks its own name up and may wait for a name server.
        if self._path:
            self.socket.bind(str(self._path))
            self.server_address = (str(self._path), 0)
        else:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(self.server_address)
            self.server_address = self.socket.getsockname()[:2]
        self.server_name, self.server_port = "", 0

    def get_request(self) -> tuple[Any, Any]:
        client, _ = super().get_request()
        return client, ("", 0)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        if len(self._clients) >= _MAX_CLIENTS:
            return False
        self._clients[request] = clock.monotonic()
        return True

    def shutdown_request(self, request: Any) -> None:
        self._clients.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("http.client_failed", exc_info=True)

    def hang_up(self, *, older_than: float) -> None:
        """End the connections of clients who have taken longer."""
        now = clock.monotonic()
        for client, since in list(self._clients.items()):
            if now - since >= older_than:
                with suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.hang_up(older_than=0.0)
        self.server_close()
        if self._path:
            self._path.unlink(missing_ok=True)


class _Handler(BaseHTTPRequestHandler):
    server_version = "carpool"
    sys_version = ""
    timeout = _PATIENCE
    server: _Server

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        page = self._page(self.path.split("?")[0])
        body = page.body.encode()
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _page(self, path: str) -> Page:
        make = self.server.pages.get(path)
        if make is None:
            return Page(404, "text/plain", "there are " + ", ".join(self.server.pages) + "\n")
        try:
            return make()
        except Exception:
            logger.exception("http.page_failed", path=path)
            return Page(500, "text/plain", "the page could not be made, the log says why\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a probe every few seconds is no news."""


def ask(address: Address, path: str, *, timeout: float = _PATIENCE) -> Page:
    """
    The page at *path* of a server at *address*.

    Raises:
        OSError: Nobody answers there within *timeout* seconds.
    """
    deadline = clock.monotonic() + timeout
    with _connect(address, timeout) as client:
        client.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        answer = b""
        while True:
            client.settimeout(max(0.01, deadline - clock.monotonic()))
            if not (received := client.recv(65536)):
                break
            answer += received
    head, _, body = answer.decode().partition("\r\n\r\n")
    words = head.split(maxsplit=2)
    if len(words) < 2 or not words[1].isdigit():
        raise ConnectionError("it does not speak HTTP")
    return Page(int(words[1]), "", body)


def _connect(address: Address, timeout: float) -> socket.socket:
    if not address.path:
        # An address that stands for all of them is not one to connect to.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104
        return socket.create_connection((host, address.port), timeout)
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(timeout)
    try:
        client.connect(address.path)
    except BaseException:
        client.close()
        raise
    return client


def _remove_stale(path: Path) -> None:
    """A socket that nobody serves any more, as a killed process leaves it."""
    with suppress(OSError):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            try:
                _connect(Address(path=str(path)), 1.0).close()
            except ConnectionRefusedError:
                path.unlink()
