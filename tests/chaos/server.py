"""The server under the soak: one of its own that can be restarted, or the one that the environment names."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from tests.factories import own_database
from worker.embedded import binaries, shelter
from worker.embedded.account import server_account
from worker.embedded.places import Places
from worker.embedded.postgres import Postgres

_PATIENCE = 30.0


class Server(Protocol):
    """Something with a database in it."""

    url: str

    @property
    def restarts(self) -> bool:
        """Whether it can be restarted."""

    def restart(self, *, immediate: bool, down: float = 0.0) -> None: ...


class OwnServer(Postgres):
    """A server that is stopped and started again; by the main thread, with whose end it ends too."""

    restarts = True

    def __init__(self, folder: Path, log: IO[bytes]) -> None:
        account = server_account()
        places = Places.of(folder, account)
        places.make(account)
        super().__init__(shelter.readable(binaries.find(), account), places, account, fast=True)
        self.url = places.url
        self._log = log
        self.start(log)

    def restart(self, *, immediate: bool, down: float = 0.0) -> None:
        """Sessions get a goodbye from a fast shutdown; from an immediate one hardly. It is *down* for some seconds."""
        if immediate and self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(_PATIENCE)
        else:
            self.stop()
        time.sleep(down)
        self.start(self._log)


class GivenServer:
    """A server of somebody else's, who would not like it restarted."""

    restarts = False

    def __init__(self, url: str) -> None:
        self.url = url

    def restart(self, *, immediate: bool, down: float = 0.0) -> None:
        raise NotImplementedError


@contextmanager
def started() -> Iterator[Server]:
    """WORKER_TEST_DATABASE_URL's server with a fresh database on it, or an own one; gone at the end."""
    if given := os.environ.get("WORKER_TEST_DATABASE_URL"):
        with own_database(given) as url:
            yield GivenServer(url)
        return
    with tempfile.TemporaryDirectory(prefix="carpool-chaos-") as folder:
        Path(folder).chmod(0o711)  # the server may run under another account; its own folders inside are private
        with Path(folder, "log").open("ab", buffering=0) as log:
            server = OwnServer(Path(folder, "server"), log)
            try:
                yield server
            finally:
                server.stop()
                server.places.remove()
