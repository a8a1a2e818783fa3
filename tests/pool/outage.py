"""A server that a test stops and starts again, on the same address with the same data."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.waiting import wait_until
from worker import embedded
from worker.embedded.account import server_account
from worker.embedded.places import Places
from worker.embedded.postmaster import is_ready


class Server:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running = embedded.start(folder, fast=True, grace=0)
        self.url = self._running.url
        self.places = Places.of(folder, server_account())

    def stop(self) -> None:
        """As `systemctl stop` does it: sessions are terminated, then nobody listens."""
        self._running.close()
        wait_until(lambda: not self.places.data.joinpath("postmaster.pid").exists(), 30, "the end of the server")

    def start(self) -> None:
        """Returns when it takes connections."""
        self._running = embedded.start(self.folder, fast=True, grace=0)

    @property
    def pid(self) -> int:
        return int(self.places.data.joinpath("postmaster.pid").read_text().splitlines()[0])

    @property
    def is_up(self) -> bool:
        return is_ready(self.places.data, self.pid)

    def log(self) -> str:
        """What it has said since its last start."""
        return self.places.log.read_text(encoding="utf-8", errors="replace")


@contextmanager
def stoppable_server() -> Iterator[Server]:
    parent = Path(tempfile.mkdtemp(prefix="carpool-test-"))
    parent.chmod(0o755)
    server = None
    try:
        server = Server(parent / "pg")
        yield server
    finally:
        if server is not None:
            server.stop()
            server.places.remove()
        shutil.rmtree(parent, ignore_errors=True)
