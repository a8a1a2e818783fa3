"""The process between clients and server: starts the server once, counts who is attached, ends with the last one."""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from worker.embedded import binaries as binaries_module
from worker.embedded import shelter
from worker.embedded.account import server_account
from worker.embedded.places import Places
from worker.embedded.postgres import Postgres
from worker.errors import EmbeddedError

FIRST_CLIENT_PATIENCE = 3.0  # the starter connects at once; if it was killed before that, nobody will
LONGEST_WAIT = 0.5  # how soon the end of the server itself is noticed
LOG_TAIL = 12
FREE_SPACE = "100 MB"


class Taken(Exception):
    """Another supervisor has the folder."""


@dataclass(frozen=True)
class Order:
    """What the starter asked for. It holds for all who attach while this supervisor runs."""

    folder: Path
    binaries: Path | None = None
    grace: float = 1.0
    fast: bool = False
    temporary: bool = False


def serve(order: Order, listening: Callable[[], None]) -> None:
    """
    Run one server on *order*'s folder until nobody has been attached for its grace; call *listening* when reachable.

    Raises:
        Taken: Another supervisor has the folder; nothing was done.
        EmbeddedError: The folder cannot be used. A failure after *listening* is told to the clients instead.
    """
    account = server_account()
    places = Places.of(order.folder, account)
    with ExitStack() as stack:
        clients = stack.enter_context(Clients())  # closed last: their end of file says that all is done
        stack.enter_context(_locked(places.lock))
        log = stack.enter_context(_own_log(places.log))
        _end_on_signals()
        if order.temporary:
            stack.callback(places.remove)
        stack.callback(places.remove_sockets)
        places.make(account)
        stack.enter_context(clients.listening(places.supervisor))
        listening()
        try:
            chosen = shelter.readable(_choose(order, places), account)
            server = Postgres(chosen, places, account, fast=order.fast)
            stack.callback(server.stop)
            server.start(log)
        except (EmbeddedError, OSError) as exc:
            clients.refuse(_explain(exc, places))
            return
        binaries = {**asdict(chosen), "folder": str(chosen.folder)}
        clients.greet({"url": places.url, "binaries": binaries})
        _attend(clients, server, order.grace)


def _choose(order: Order, places: Places) -> binaries_module.Binaries:
    with suppress(FileNotFoundError):
        # Data of one major version can only be served by binaries of the same one.
        return binaries_module.find(order.binaries, major=int((places.data / "PG_VERSION").read_text()))
    return binaries_module.find(order.binaries)


def _attend(clients: Clients, server: Postgres, grace: float) -> None:
    leave_at = time.monotonic() + max(grace, FIRST_CLIENT_PATIENCE)
    while True:
        if not server.running:
            print("supervisor: the server ended by itself", file=sys.stderr, flush=True)
            return
        left = leave_at - time.monotonic()
        if left <= 0 and not clients.attached:
            return
        clients.wait(LONGEST_WAIT if clients.attached else min(LONGEST_WAIT, max(left, 0)))
        if clients.changed or clients.attached:
            leave_at = time.monotonic() + grace


class Clients:
    """
    Everyone attached, each an open socket.

    The kernel closes a socket however its process dies, so this count cannot leak as a list of pids would.
    """

    def __init__(self) -> None:
        self.attached: set[socket.socket] = set()
        self.changed = False
        """Whether anybody came or went in the last `wait`."""
        self._gone: list[socket.socket] = []
        self._greeting: dict[str, Any] = {}
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        for client in [*self._gone, *self.attached]:
            client.close()

    @contextmanager
    def listening(self, path: Path) -> Iterator[None]:
        path.unlink(missing_ok=True)  # a killed supervisor's; ours alone, as we hold the lock
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(64)
            self._selector.register(listener, selectors.EVENT_READ, self._accept)
            try:
                yield
            finally:
                self._selector.unregister(listener)

    def greet(self, greeting: dict[str, Any]) -> None:
        """Send *greeting* to everyone who connects from now on, those already waiting included."""
        self._greeting = greeting

    def refuse(self, reason: str) -> None:
        """Tell *reason* to the first to connect and those beside it, who then have to start again."""
        print(reason, file=sys.stderr, flush=True)
        self.greet({"error": reason})
        deadline = time.monotonic() + FIRST_CLIENT_PATIENCE
        while not self.changed and time.monotonic() < deadline:
            self.wait(LONGEST_WAIT)

    def wait(self, timeout: float) -> None:
        """Wait up to *timeout* seconds until somebody comes or goes."""
        self.changed = False
        for key, _ in self._selector.select(timeout):
            key.data(key.fileobj)
            self.changed = True

    def _accept(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        with suppress(OSError):  # gone already: reading will tell
            client.sendall(json.dumps(self._greeting).encode() + b"\n")
        client.setblocking(False)
        self.attached.add(client)
        self._selector.register(client, selectors.EVENT_READ, self._read)

    def _read(self, client: socket.socket) -> None:
        with suppress(ConnectionError):
            if client.recv(1024):
                return
        self._selector.unregister(client)
        self.attached.discard(client)
        self._gone.append(client)
        if self.attached:
            # Nothing ends with this one. The last one to go is closed by the end of this process, which it may await.
            while self._gone:
                self._gone.pop().close()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Taken from None
        yield


@contextmanager
def _own_log(path: Path) -> Iterator[IO[bytes]]:
    """Send what this process prints to *path* as well as what the server does, and keep the log before."""
    if path.exists():
        path.replace(path.with_name(f"{path.name}.1"))
    with path.open("ab", buffering=0) as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
        yield log


def _end_on_signals() -> None:
    """End at the first SIGTERM or SIGINT by the same way out as ever; a second one cannot cut that short."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _leave)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _leave(signum: int, frame: object) -> None:
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(0)


def _explain(exc: Exception, places: Places) -> str:
    tail = places.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL:]
    said = "".join(f"\n    {line}" for line in tail)
    if "No space left on device" in f"{exc}{said}" or "Disk quota exceeded" in f"{exc}{said}":
        advice = f"free some space (about {FREE_SPACE}) under {places.data.parent}, or name another folder"
    elif said:
        advice = "the log's last lines say why; a folder of another name starts afresh"
    else:
        advice = "mend that, or name another folder"
    return f"embedded Postgres in {places.folder} did not start: {exc}; {advice}{said}"
